"""Signing keys change under two workers that serve: nobody notices, until a key is taken away."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from authsvc.cli.keys import generate_key
from authsvc.store.key_folder import FolderTimings, read_key
from tests.e2e.rotation import Load, add_key
from tests.processes import wait_until
from tests.rig import PASSWORD, Service, run_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from requests import Response

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

EMAIL = "alice@example.com"
#: For so long clients use a token: then a retired key is no longer needed.
USED_FOR_S = 1.0
#: The age of a key that both workers publish by the time it signs; names have whole seconds.
REREAD_S = FolderTimings().reread_s
SIGNS_SOON_S = 300 - REREAD_S - 1.5


@pytest.fixture(scope="module")
def service(make_service, tmp_path_factory) -> Service:
    """Two workers with one ES256 key, an hour old; a refresh token that was used up has no second chance."""
    folder = tmp_path_factory.mktemp("rotation")
    (folder / "keys").mkdir()
    add_key(folder / "keys", "ES256", age_s=3600)
    made: Service = make_service(folder, REFRESH_GRACE_SECONDS="0")
    assert made.register(EMAIL).status_code == 201
    return made


@pytest.fixture
def keys(service) -> Path:
    """Find the folder of keys."""
    return Path(service.env["JWT_KEYS_DIR"])


def test_a_rotation_through_all_algorithms_fails_no_request(service, keys):
    """ES256, EdDSA, RS256 under 200 requests a second; old keys go when nobody uses their tokens."""
    (first,) = keys.glob("*.pem")

    with Load(service, clients=8, per_s=200, life_s=USED_FOR_S) as load:
        second = add_key(keys, "EdDSA", age_s=SIGNS_SOON_S)
        wait_until(lambda: load.everybody_has("EdDSA"))
        third = add_key(keys, "RS256", age_s=SIGNS_SOON_S)
        wait_until(lambda: load.is_over("ES256"))
        first.unlink()
        wait_until(lambda: load.everybody_has("RS256") and load.is_over("EdDSA"))
        second.unlink()
        # The load goes on while both workers read the folder once more; only a failure would show it.
        time.sleep(REREAD_S + 0.5)

    assert load.failures == {}
    assert load.outcomes["check 200"] > 200
    assert load.outcomes["published"] == load.outcomes["login 200"] + load.outcomes["refresh 200"]
    wait_until(lambda: published(service) == {read_key(third).kid}, what="the last key alone")


def test_a_key_that_is_taken_away_verifies_nothing_after_an_idle_time(service, keys, tmp_path):
    """A leak: the next key is there, the old one is forced out, and no worker's first answer is a yes."""
    (leaked,) = keys.glob("*.pem")
    made = generate_key(keys, "ES256")
    wait_until(lambda: made.kid in published(service), what="both workers publish the new key")
    stolen = service.log_in(EMAIL)["access_token"]
    assert service.verify_everywhere(stolen, times=1) == {200: 2}

    retire = ("keys", "retire", leaked.name, "--force")
    retired = run_command(*retire, env={"JWT_KEYS_DIR": str(keys)}, folder=tmp_path)
    # No request may come meanwhile, because a worker reads the folder on a request: so nothing can be polled.
    time.sleep(REREAD_S)
    answers = service.from_each_worker(lambda: at_once(8, lambda: service.verify(stolen)))

    assert retired.returncode == 0
    assert answers == [{401: 8}] * 2
    assert jwt.get_unverified_header(service.log_in(EMAIL)["access_token"])["kid"] == made.kid


def test_an_emptied_folder_is_an_outage_that_heals(service, keys):
    """Not ready, 503 for whoever needs a token, and nothing is used up: later all goes on as before."""
    (last,) = keys.glob("*.pem")
    pair, probe = service.log_in(EMAIL), partial(ready, service)
    last.rename(last.with_suffix(".aside"))
    wait_until(lambda: service.from_each_worker(probe) == [503] * 2, what="no worker is ready")

    login = service.call("POST", "/v1/auth/login", json={"email": EMAIL, "password": PASSWORD})
    refreshes = [refresh(service, pair) for _ in range(3)]
    check = service.verify(pair["access_token"])
    keys_answer = service.call("GET", "/.well-known/jwks.json")
    last.with_suffix(".aside").rename(last)
    wait_until(lambda: service.from_each_worker(probe) == [200] * 2, what="both workers are ready")

    assert (login.status_code, "Retry-After" in login.headers) == (503, True)
    assert [answer.status_code for answer in refreshes] == [503] * 3
    assert (check, keys_answer.status_code) == (401, 503)
    assert "max-age" not in keys_answer.headers["Cache-Control"]
    assert refresh(service, pair).status_code == 200
    assert service.verify_everywhere(service.log_in(EMAIL)["access_token"], times=1) == {200: 2}


def test_the_log_tells_of_every_key_that_came_and_went(service):
    """For each worker: what it started with, and each change; the kid and the algorithm, and nothing more."""
    changes = {
        ("key.added", "ES256", "start"): 2,
        ("key.added", "EdDSA", "reread"): 2,
        ("key.added", "RS256", "reread"): 2,
        ("key.removed", "ES256", "reread"): 4,
        ("key.removed", "EdDSA", "reread"): 2,
        ("key.removed", "RS256", "reread"): 2,
        ("key.added", "ES256", "reread"): 4,
    }

    # A thread of its own writes the log.
    wait_until(lambda: told(service).total() >= sum(changes.values()), what="all of it in the log")
    assert told(service) == changes


def told(service: Service) -> Counter[tuple[str, ...]]:
    """How often the log says what became of keys: event, algorithm and occasion."""
    # What follows the last line end is still being written.
    lines = [line for line in service.log.read_text().split("\n")[:-1] if '"key.' in line]
    found = [json.loads(line) for line in lines]
    return Counter((line["event"], *line["detail"].split()[1:]) for line in found)


def published(service: Service) -> set[str]:
    """The keys that all workers publish; empty while they disagree."""
    sets = service.from_each_worker(lambda: service.call("GET", "/.well-known/jwks.json").json()["keys"])
    first, second = ({key["kid"] for key in keys} for keys in sets)
    return first if first == second else set()


def ready(service: Service) -> int:
    """What a readiness probe is told."""
    return service.call("GET", "/v1/health/ready").status_code


def refresh(service: Service, pair: dict[str, Any]) -> Response:
    """Ask for the successors of *pair*."""
    return service.call("POST", "/v1/auth/refresh", json={"refresh_token": pair["refresh_token"]})


def at_once(times: int, ask: Callable[[], int]) -> Counter[int]:
    """What *ask* returns, *times* times at once."""
    with ThreadPoolExecutor(times) as pool:
        return Counter(pool.map(lambda _: ask(), range(times)))
