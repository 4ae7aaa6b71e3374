"""
One code at the same moment in three replicas, whatever becomes of Redis: one session.

Codes are those of the real clock: an app is confirmed with the code of now, and the next one is raced for.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from threading import Barrier
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from redis import Redis

from tests.api.passkeys import LOGIN, ME, PASSKEYS
from tests.api.second_factors import UNLIMITED, App
from tests.authenticator import Authenticator
from tests.rig import HOPELESS_S, PASSWORD, Service, development, migrate
from tests.servers import RedisServer, drop_database
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import requests

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REPLICAS, USES, CHALLENGES, GUESSES = 3, 50, 20, 100


@dataclass(frozen=True, slots=True)
class Estate:
    """Three replicas over one PostgreSQL and one Redis."""

    services: Sequence[Service]
    redis: RedisServer

    def at_once(self, bodies: Sequence[dict[str, Any]], path: str = "/v1/auth/login/second") -> Counter[int]:
        """How often each status answered these requests, which begin together in all replicas."""
        gate = Barrier(len(bodies))

        def ask(service: Service, body: dict[str, Any]) -> int:
            gate.wait(HOPELESS_S)
            return service.call("POST", path, json=body).status_code

        with ThreadPoolExecutor(len(bodies)) as pool:
            return Counter(pool.map(ask, cycle(self.services), bodies))


@pytest.fixture(scope="module")
def estate(postgres_server, tmp_path_factory) -> Iterator[Estate]:
    """Start them at once; development alone hashes so cheaply that requests really meet."""
    folder = tmp_path_factory.mktemp("factors")
    url = postgres_server.create_database()
    with RedisServer() as redis, ExitStack() as stack:
        stack.callback(drop_database, postgres_server.url, url)
        env = development(url, redis.url, folder, LOG_LEVEL="warning", **PASSKEYS | UNLIMITED)
        migrate(env)
        services = [Service(env, folder, entry=PATIENT) for _ in range(REPLICAS)]
        with ThreadPoolExecutor(REPLICAS) as pool:
            started = [pool.submit(service.start) for service in services]
            for service in services:
                stack.push(service)
        for start in started:
            start.result()
        yield Estate(services, redis)


@dataclass(frozen=True, slots=True)
class Owner:
    """Somebody with an authenticator app; *token* is of the session that added it."""

    service: Service
    email: str
    token: str
    app: App

    def begin(self) -> requests.Response:
        """The first step of a login."""
        credentials = {"email": self.email, "password": PASSWORD}
        return self.service.call("POST", "/v1/auth/login", json=credentials)

    def challenges(self, number: int) -> list[str]:
        """So many logins, begun."""
        answers = [self.begin() for _ in range(number)]
        assert {answer.status_code for answer in answers} == {403}
        return [answer.json()["challenge"] for answer in answers]

    def sessions(self) -> int:
        """How many they have."""
        return len(self.service.call("GET", "/v1/me/sessions", token=self.token).json()["items"])


@pytest.fixture
def owner(estate) -> Owner:
    """Somebody new with an app."""
    service = estate.services[0]
    email = f"{uuid4().hex}@example.com"
    assert service.register(email).status_code == 201
    token = service.log_in(email)["access_token"]
    enrolment = service.call("POST", "/v1/me/factors/totp", token=token, json={}).json()
    app = App(enrolment["secret"], lambda: datetime.now(UTC))
    path = f"/v1/me/factors/totp/{enrolment['id']}/confirm"
    assert service.call("POST", path, token=token, json={"code": app.code()}).status_code == 200
    return Owner(service, email, token, app)


@pytest.mark.parametrize("loss", ["none", "flush", "old dump"])
def test_one_code_in_three_replicas_opens_one_session(estate, owner, loss):
    """Of 50 parallel uses; and none of 50 more, though Redis has forgotten the first."""
    with closing(Redis.from_url(estate.redis.url)) as client:
        dump = {key: client.dump(key) for key in client.scan_iter()}
        code = owner.app.code(1)

        first = estate.at_once([{"challenge": one, "code": code} for one in owner.challenges(USES)])
        if loss != "none":
            client.flushall()
        for key, value in dump.items() if loss == "old dump" else ():
            assert value is not None
            client.restore(key, 0, value)
        more = estate.at_once([{"challenge": one, "code": code} for one in owner.challenges(USES)])

    assert (first, more) == ({200: 1, 401: USES - 1}, {401: USES})
    assert owner.sessions() == 2


def test_one_assertion_of_a_passkey_in_three_replicas_opens_one_session(estate):
    """Of 50 parallel uses; and none of 50 more, though Redis has forgotten everything."""
    service, authenticator = estate.services[0], Authenticator(counts=False)
    email = f"{uuid4().hex}@example.com"
    service.register(email)
    token = service.log_in(email)["access_token"]
    options = service.call("POST", f"{ME}/options", token=token).json()
    registration = {"credential": authenticator.create(options)}
    assert service.call("POST", ME, token=token, json=registration).status_code == 201
    assertion = {"credential": authenticator.get(service.call("POST", f"{LOGIN}/options").json())}

    first = estate.at_once([assertion] * USES, LOGIN)
    with closing(Redis.from_url(estate.redis.url)) as client:
        client.flushall()
    more = estate.at_once([assertion] * USES, LOGIN)

    assert (first, more) == ({200: 1, 401: USES - 1}, {401: USES})


def test_of_100_guesses_in_three_replicas_five_are_judged(estate, owner):
    """Over 20 challenges, which are all dead then; with the next one the owner gets in."""
    challenges = owner.challenges(CHALLENGES)
    wrong = owner.app.wrong()
    guesses = [{"challenge": challenges[number % CHALLENGES], "code": wrong} for number in range(GUESSES)]

    assert estate.at_once(guesses) == {401: GUESSES}

    with psycopg.connect(owner.service.env["DATABASE_URL"]) as connection:
        judged = connection.execute(
            "SELECT failures FROM factors JOIN users ON users.id = user_id WHERE email = %s", [owner.email]
        ).fetchone()
    assert judged == (5,)
    code = owner.app.code(1)
    assert estate.at_once([{"challenge": one, "code": code} for one in challenges]) == {401: CHALLENGES}
    assert estate.at_once([{"challenge": one, "code": code} for one in owner.challenges(1)]) == {200: 1}
