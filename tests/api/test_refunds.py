"""An attempt whose credentials were not checked is uncounted for account, device and address."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from threading import Event
from typing import TYPE_CHECKING, cast

import psycopg
import pytest

from authsvc.api.frame.context import DEVICE_HEADER
from authsvc.domain.errors import StoreUnavailable
from tests.api.driver import Api, MakeApi, code_of, new_email
from tests.api.mailing import MAIL, Postbox, code_in, token_in
from tests.api.second_factors import FACTORS, OTHER_KEY, Guarded, guarded, refused
from tests.processes import wait_until
from tests.rig import PASSWORD, development, operator_of
from tests.servers import drop_database
from tests.servers.proxy import Mode, TcpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from werkzeug.test import TestResponse

    from authsvc.domain.passwords.lane import BoundedPasswords
    from tests.api.driver import Person

#: No session is begun or changed, as while somebody holds a lock on the table.
LOCKED = """
CREATE FUNCTION locked() RETURNS trigger AS $$ BEGIN RAISE lock_not_available; END $$ LANGUAGE plpgsql;
CREATE TRIGGER locked BEFORE INSERT OR UPDATE ON sessions EXECUTE FUNCTION locked();
"""
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
def api(sql_proxy, served_redis, tmp_path_factory) -> Iterator[Api]:
    """Share an application with limits, whose SQL can be cut off."""
    settings = {"CACHE_KEY_PREFIX": "refunds", **LIMITS, **MAIL, "RATE_LIMIT_MAIL_ADDRESS": "off"}
    api = Api(development(sql_proxy[1], served_redis, tmp_path_factory.mktemp("refunds"), **settings))
    yield api
    api.close()


@pytest.fixture
def person(api) -> Person:
    """Somebody with an account, and no attempt counted for anybody."""
    person: Person = api.someone()
    with operator_of(api.env) as redis:
        redis.delete(*redis.scan_iter("refunds:v1:auth:rate-limit:*"))
    return person


def attempts(api: Api) -> dict[str, int]:
    """How many attempts Redis counts, by rule."""
    with operator_of(api.env) as redis:
        keys = list(redis.scan_iter(f"{api.env['CACHE_KEY_PREFIX']}:v1:auth:rate-limit:*"))
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


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/auth/login", {"email": "ada@example.com", "password": PASSWORD}),
        ("/v1/auth/register", {"email": "ada@example.com", "password": PASSWORD}),
        ("/v1/auth/email/verify", {"email": "ada@example.com", "password": PASSWORD, "code": "BBBB-BBBB"}),
        ("/v1/auth/password/reset", {"token": "x", "new_password": PASSWORD}),
        ("/v1/me/email", {"email": "ada@example.com", "password": PASSWORD}),
        ("/v1/me/password", {"current_password": PASSWORD, "new_password": PASSWORD * 2}),
    ],
)
def test_without_room_for_a_password_nothing_else_is_done_for_it(api, sql_proxy, person, path, body):
    """SQL is not asked and nothing is counted: in a storm of requests most are refused."""
    with full_lane(api, sql_proxy[0]), no_sql(api, sql_proxy[0]):
        answer = person.call("POST", path, json=body)

    assert (answer.status_code, code_of(answer)) == (503, "busy")
    assert attempts(api) == {}


def hashes(api: Api) -> float:
    """How many passwords this process has hashed or verified."""
    text = api.services.metrics.exposition()[0].decode()
    (line,) = [line for line in text.splitlines() if line.startswith("authsvc_password_hash_seconds_count")]
    return float(line.rpartition(" ")[2])


def test_no_password_is_hashed_where_a_limit_is_exhausted(make_api):
    """Whoever may not show another code may not have passwords hashed either; the mail stays good."""
    api = make_api(**MAIL, RATE_LIMIT_CODE_IP="2/hour")
    postbox, person = Postbox(api), api.someone()
    mail = postbox.newest(person.email)
    proof, verify = {"email": person.email, "password": PASSWORD}, "/v1/auth/email/verify"
    wrong = [api.post(verify, {**proof, "code": "BBBB-BBBB"}).status_code for _ in range(2)]
    before = hashes(api)

    stopped = [
        api.post(verify, {**proof, "code": code_in(mail)}),
        api.post("/v1/auth/password/reset", {"token": token_in(mail), "new_password": PASSWORD}),
    ]

    assert wrong == [401, 401]
    assert [(one.status_code, code_of(one)) for one in stopped] == [(429, "rate_limited")] * 2
    assert hashes(api) == before
    assert api.post(verify, {**proof, "code": code_in(mail)}, ip="198.51.100.9").status_code == 204


@contextmanager
def no_sessions(api: Api) -> Iterator[Api]:
    """Let SQL count tries, and open no session and raise no level."""
    with psycopg.connect(api.env["DATABASE_URL"], autocommit=True) as operator:
        operator.execute(LOCKED)
        try:
            yield api
        finally:
            operator.execute("DROP TRIGGER locked ON sessions; DROP FUNCTION locked")


@contextmanager
def no_key(api: Api) -> Iterator[Api]:
    """Ask a process that cannot read the secrets of apps."""
    with closing(Api({**api.env, "DATA_KEY": OTHER_KEY})) as other:
        other.clock.tick((api.clock() - other.clock()).total_seconds())
        yield other


@pytest.fixture(scope="module")
def factors_api(make_module_api: MakeApi) -> Api:
    """Share an application with second factors and their limits."""
    return make_module_api(**FACTORS)


def step_up(them: Guarded, api: Api, **answer: str) -> TestResponse:
    """Prove again who they are."""
    return api.post("/v1/auth/step-up", answer, token=them.person.access)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(no_sessions, "code"), (no_sessions, "recovery_code"), (no_key, "code")],
    ids=["no sessions", "no sessions, recovery code", "no key"],
)
@pytest.mark.parametrize("what", ["login", "step-up"])
def test_a_second_factor_that_opened_nothing_for_want_of_a_store_is_given_back(
    factors_api, fault, kind, what
):
    """However often: it ends no challenge, locks no app and counts for no limit; afterwards it is good."""
    api, them = factors_api, guarded(factors_api)
    challenge = them.challenge()
    right = {kind: them.next_code() if kind == "code" else them.recovery_codes[0]}

    def show(at: Api) -> TestResponse:
        return them.answer(challenge, api=at, **right) if what == "login" else step_up(them, at, **right)

    with psycopg.connect(api.env["DATABASE_URL"], autocommit=True) as operator:
        operator.execute("UPDATE factors SET failures = 94")
    with fault(api) as broken:
        answers = [show(broken) for _ in range(6)]

    assert [(answer.status_code, code_of(answer)) for answer in answers] == [(503, "unavailable")] * 6
    assert attempts(api) == {}
    assert show(api).status_code == 200
    # Else the above would show nothing: what is wrong counts.
    assert refused(them.answer(them.challenge(), code=them.app.wrong()))
    assert attempts(api).pop("second-factor") == 1
    with operator_of(api.env) as redis:
        redis.delete(*redis.scan_iter(f"{api.env['CACHE_KEY_PREFIX']}:v1:auth:rate-limit:*"))


def test_wrong_second_factors_count_while_nothing_can_be_opened(make_api):
    """An outage lets nobody guess on: five wrong answers end the challenge, and only right ones are 503."""
    api = make_api(**FACTORS, RATE_LIMIT_SECOND_FACTOR="off")
    them = guarded(api)
    challenge = them.challenge()

    with no_sessions(api):
        for _ in range(4):
            assert refused(them.answer(challenge, code=them.app.wrong()))
            assert them.answer(challenge, recovery_code=them.recovery_codes[0]).status_code == 503
        assert refused(them.answer(challenge, code=them.app.wrong()))

    assert refused(them.answer(challenge, recovery_code=them.recovery_codes[0]))
