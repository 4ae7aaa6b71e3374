"""An attempt that nobody could judge is given back to the account, the device and the address."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import TYPE_CHECKING, cast

import pytest
from redis import Redis

from authsvc.api.frame.context import DEVICE_HEADER
from authsvc.domain.errors import StoreUnavailable
from tests.api.driver import Api, code_of, new_email
from tests.processes import wait_until
from tests.rig import PASSWORD, development
from tests.servers import drop_database
from tests.servers.proxy import Mode, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from werkzeug.test import TestResponse

    from authsvc.domain.passwords.lane import BoundedPasswords
    from tests.api.driver import Person

#: More jobs than any lane has threads and places.
CROWD = 64
LIMITS = {
    "RATE_LIMIT_LOGIN_IP": "9/hour",
    "RATE_LIMIT_LOGIN_ACCOUNT": "9/hour",
    "RATE_LIMIT_LOGIN_DEVICE": "9/hour",
    "RATE_LIMIT_REGISTER_IP": "9/hour",
}


@pytest.fixture(scope="module")
def sql_proxy(postgres_server, template) -> Iterator[tuple[TcpProxy, str]]:
    """Share a database behind a proxy that can be cut."""
    url = postgres_server.create_database(template=template)
    with ExitStack() as stack:
        stack.callback(drop_database, postgres_server.url, url)
        proxy = stack.enter_context(TcpProxy(url))
        yield proxy, proxy.url_for(url)


@pytest.fixture(scope="module")
def api(sql_proxy, redis_server, tmp_path_factory) -> Iterator[Api]:
    """Share an application with limits, whose SQL can be cut off."""
    settings = {"CACHE_KEY_PREFIX": "refunds", **LIMITS}
    api = Api(development(sql_proxy[1], redis_server.url, tmp_path_factory.mktemp("refunds"), **settings))
    yield api
    api.close()


@pytest.fixture
def person(api) -> Person:
    """Somebody with an account, and no attempt counted for anybody."""
    person: Person = api.someone()
    with Redis.from_url(api.env["REDIS_URL"]) as redis:
        redis.delete(*redis.scan_iter("refunds:v1:auth:rate-limit:*"))
    return person


def attempts(api: Api) -> dict[str, int]:
    """How many attempts Redis counts, by rule."""
    with Redis.from_url(api.env["REDIS_URL"], decode_responses=True) as redis:
        keys = list(redis.scan_iter("refunds:v1:auth:rate-limit:*"))
        return {key.split(":")[4]: redis.zcard(key) for key in keys}


@contextmanager
def full_lane(api: Api, _proxy: TcpProxy) -> Iterator[None]:
    """Let no password be hashed: every thread of the lane is busy, and every place to wait is taken."""
    lane = cast("BoundedPasswords", api.services.authentication.proof.passwords).lane
    opened = Event()
    with ThreadPoolExecutor(CROWD) as crowd:
        wait([crowd.submit(lane.run, opened.wait) for _ in range(CROWD)], return_when=FIRST_EXCEPTION)
        try:
            yield
        finally:
            opened.set()


@contextmanager
def no_sql(api: Api, proxy: TcpProxy) -> Iterator[None]:
    """Cut SQL off, and wait until it is back."""

    def is_back() -> bool:
        try:
            api.services.client_registry.every()
        except StoreUnavailable:
            return False
        return api.services.compare()

    proxy.switch(Mode.REFUSE)
    try:
        yield
    finally:
        proxy.switch(Mode.PASS)
        wait_until(is_back, what="SQL after the fault")


def log_in(api: Api, email: str, device: str = "", password: str = PASSWORD) -> TestResponse:
    """Log in, perhaps on a known device."""
    headers = {DEVICE_HEADER: device} if device else {}
    return api.post("/v1/auth/login", {"email": email, "password": password}, headers=headers)


@pytest.mark.parametrize(("fault", "code"), [(full_lane, "busy"), (no_sql, "unavailable")])
@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda api, person: log_in(api, person.email), id="login"),
        pytest.param(lambda api, _: log_in(api, new_email()), id="login of nobody"),
        pytest.param(lambda api, _: log_in(api, "no address"), id="login without an address"),
        pytest.param(lambda api, _: api.register(new_email()), id="registration"),
    ],
)
def test_an_attempt_that_could_not_be_judged_is_given_back(
    api, sql_proxy, person, fault, code, act: Callable[[Api, Person], TestResponse]
):
    """Three 503 in a row leave no attempt behind, by address nor by account; the headers say so."""
    with fault(api, sql_proxy[0]):
        answers = [act(api, person) for _ in range(3)]

    assert [(answer.status_code, code_of(answer)) for answer in answers] == [(503, code)] * 3
    assert {answer.headers["RateLimit"].split(";")[1] for answer in answers} == {"r=9"}
    assert attempts(api) == {}


def test_a_device_gets_its_attempt_back(api, sql_proxy, person):
    """Its own budget is not touched by a full lane, nor is that of strangers."""
    device = log_in(api, person.email).headers[DEVICE_HEADER]
    before = attempts(api)

    with full_lane(api, sql_proxy[0]):
        answers = [log_in(api, person.email, device) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [503] * 3
    assert attempts(api) == before == {"login-ip": 1}
    # Else the above would show nothing: a failure on this device counts for itself.
    assert log_in(api, person.email, device, "wrong horse battery staple").status_code == 401
    assert attempts(api) == {"login-ip": 2, "login-device": 1}


def test_a_password_that_could_not_be_verified_is_given_back(api, sql_proxy, person):
    """Change of password and deletion count in the account's bucket as a login does."""
    body = {"current_password": PASSWORD, "new_password": PASSWORD * 2}

    with full_lane(api, sql_proxy[0]):
        answers = [
            person.call("POST", "/v1/me/password", json=body),
            person.call("DELETE", "/v1/me", json={"password": PASSWORD}),
        ]

    assert [(answer.status_code, code_of(answer)) for answer in answers] == [(503, "busy")] * 2
    assert attempts(api) == {}
