"""docs/machines.md: its commands and its libraries, and a secret that is changed under load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import requests
from redis import Redis

from tests import ROOT
from tests.e2e.estate import ROOT as ADMIN
from tests.e2e.estate import create_root
from tests.e2e.pages.gateways import Server, nginx_before
from tests.rig import HOPELESS_S, Service
from tests.servers.binaries import BinaryMissing, tool

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = ROOT / "docs/machines.md"
LIBRARIES = ROOT / ".venv/javascript/node_modules"
FEED = "/orders/feed/7"
#: Requests behind the gateway while the secret changes: so many a second, and so many in each phase.
RATE, PHASE = 50, 25
CHECKS = 20


def blocks(language: str) -> list[str]:
    """The blocks of the page in *language*, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def service(make_service) -> Service:
    """A service of two workers, reached by its issuer's address."""
    made: Service = make_service(at_issuer=True, MACHINES="on", RATE_LIMIT_TOKEN_CLIENT="off")
    create_root(made.env, made.log.parent)
    return made


@pytest.fixture(scope="module")
def admin(service) -> str:
    """The token of an admin."""
    return str(service.log_in(ADMIN)["access_token"])


@pytest.fixture(scope="module")
def behind(_nginx_is_here, service) -> Iterator[str]:
    """Where a service behind nginx is reached, with the configuration of the page for gateways."""
    with Server() as orders, nginx_before(service.port, orders) as nginx:
        yield nginx.url


class Client:
    """A client over the API, and one secret of it."""

    def __init__(self, service: Service, admin: str) -> None:
        self.service, self.admin = service, admin
        made = self.manage("POST", "", {"name": "billing", "scopes": ["orders:read"]})
        self.id, self.secret = made["client_id"], made["client_secret"]
        self.secret_id = made["secrets"][0]["id"]

    def manage(self, method: str, path: str, body: object = None) -> Any:
        """What an admin does to it."""
        answer = self.service.call(method, f"/v1/clients{path}", token=self.admin, json=body)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def token(self) -> str:
        """A token for the secret that it has."""
        answer = self.service.call(
            "POST",
            "/v1/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=(self.id, self.secret),
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])


@pytest.fixture
def client(service, admin) -> Client:
    """A client with the scope that the page asks for."""
    return Client(service, admin)


def behind_nginx(url: str, token: str) -> int:
    """The status of a call to the service behind."""
    headers = {"Authorization": f"Bearer {token}"}
    return requests.get(url + FEED, headers=headers, timeout=HOPELESS_S).status_code


@pytest.mark.parametrize("position", [0, 1], ids=["authlib", "requests-oauthlib"])
def test_a_python_library_gets_a_token_that_opens_a_service(client, service, behind, position, monkeypatch):
    """The page's own code; a service behind nginx then answers."""
    # oauthlib refuses plain HTTP otherwise.
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    names = {"url": service.url, "client_id": client.id, "client_secret": client.secret}

    with closing_sessions(names):
        exec(blocks("python")[position], names)

    assert jwt.decode(names["token"], options={"verify_signature": False})["scope"] == "orders:read"
    assert behind_nginx(behind, names["token"]) == 200


def closing_sessions(names: dict[str, Any]) -> closing[Any]:
    """Close the session that a block leaves open."""

    class Session:
        def close(self) -> None:
            names["session"].close()

    return closing(Session())


def test_a_javascript_library_gets_a_token_that_opens_a_service(client, service, behind, tmp_path):
    """The same with oauth4webapi, which finds the endpoint by the metadata."""
    node = str(tool("node", "nodejs"))
    if not LIBRARIES.is_dir():
        message = "no oauth4webapi here: run `make javascript`, which needs npm"
        if os.environ.get("CI") == "true":
            raise BinaryMissing(message)
        pytest.skip(message)
    (code,) = blocks("javascript")
    given = {"url": service.url, "clientId": client.id, "clientSecret": client.secret}
    constants = "".join(f"const {name} = {json.dumps(value)}\n" for name, value in given.items())
    (tmp_path / "block.mjs").write_text(f"{constants}{code}\nconsole.log(token)\n")
    (tmp_path / "node_modules").symlink_to(LIBRARIES)

    done = subprocess.run(
        [node, "block.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert behind_nginx(behind, done.stdout.strip()) == 200


def test_a_secret_changes_under_load_and_the_old_one_takes_its_tokens_along(client, service, behind):
    """No request fails meanwhile; afterwards old tokens are refused and new ones good, flushed or not."""
    old_token, old_id = client.token(), client.secret_id
    using = {"token": old_token}
    outcomes: Counter[int] = Counter()
    asked, over = threading.Semaphore(0), threading.Event()

    def call_at_a_rate() -> None:
        while not over.wait(4 / RATE):
            outcomes[behind_nginx(behind, using["token"])] += 1
            asked.release()

    def go_on() -> None:
        for _ in range(PHASE):
            assert asked.acquire(timeout=HOPELESS_S)

    with ThreadPoolExecutor(4) as callers:
        running = [callers.submit(call_at_a_rate) for _ in range(4)]
        go_on()
        added = client.manage("POST", f"/{client.id}/secrets")
        go_on()
        client.secret = added["client_secret"]
        using["token"] = new_token = client.token()
        go_on()
        client.manage("DELETE", f"/{client.id}/secrets/{old_id}")
        go_on()
        over.set()
        for caller in running:
            caller.result()

    assert outcomes.keys() == {200}
    assert outcomes[200] >= 4 * PHASE
    check_everywhere(service, behind, old_token, new_token)
    with closing(Redis.from_url(service.env["REDIS_URL"])) as redis:
        redis.flushall()
    check_everywhere(service, behind, old_token, new_token)


def check_everywhere(service: Service, behind: str, old_token: str, new_token: str) -> None:
    """Of 20 checks each, by each worker and behind the gateway: every old one no, every new one yes."""

    def ask(token: str) -> Counter[int]:
        return Counter(
            service.call(
                "GET", "/v1/auth/verify-machine", token=token, headers={"Connection": "close"}
            ).status_code
            for _ in range(CHECKS)
        )

    for token, inside, outside in ((old_token, 401, 401), (new_token, 200, 200)):
        assert service.from_each_worker(partial(ask, token)) == [Counter({inside: CHECKS})] * 2
        assert {behind_nginx(behind, token) for _ in range(CHECKS)} == {outside}


def test_the_commands_of_the_page_run_in_order(service, tmp_path):
    """From creating a client to a checked call, and to a secret that is gone."""
    made: dict[str, str] = {}
    env = {**service.env, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", command.replace("http://127.0.0.1:8080", service.url)],
            cwd=tmp_path,
            env=env | made,
            capture_output=True,
            text=True,
            timeout=HOPELESS_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    create, get, check, change = blocks("sh")
    created = json.loads(run(create))
    made |= {"CLIENT_ID": created["client_id"], "CLIENT_SECRET": created["client_secret"]}
    answer = json.loads(run(get))
    made["TOKEN"] = answer["access_token"]
    headers = run(check)
    rotate, listing, drop = change.splitlines()
    second = json.loads(run(rotate))
    (listed,) = [one for one in json.loads(run(listing))["clients"] if one["client_id"] == made["CLIENT_ID"]]
    made["SECRET_ID"] = listed["secrets"][0]["id"]
    run(drop)

    assert (answer["token_type"], answer["expires_in"], answer["scope"]) == ("Bearer", 600, "orders:read")
    assert f"X-Auth-Client-Id: {made['CLIENT_ID']}\n" in headers.replace("\r", "")
    assert "X-Auth-Scopes: orders:read\n" in headers.replace("\r", "")
    assert [one["id"] for one in listed["secrets"]] == [made["SECRET_ID"], second["id"]]
    assert [one["last_used_on"] is None for one in listed["secrets"]] == [False, True]
    assert run(check).startswith("HTTP/1.1 401 ")
    made["CLIENT_SECRET"] = second["client_secret"]
    made["TOKEN"] = json.loads(run(get))["access_token"]
    assert run(check).startswith("HTTP/1.1 200 ")
