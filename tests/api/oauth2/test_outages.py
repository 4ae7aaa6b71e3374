"""Introspection and revocation while Redis or SQL is away, in one process with real stores behind proxies."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from authsvc.domain.errors import StoreUnavailable
from authsvc.store.sql import SqlTimings
from tests.api.driver import Api, code_of, json_of
from tests.api.gateway import INACTIVE, INTROSPECT, REVOKE, TOKEN, Gateway, basic, refusal
from tests.processes import wait_until
from tests.rig import development
from tests.servers import drop_database
from tests.servers.proxy import Mode, TcpProxy
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.driver import Person

AWAY = (503, "temporarily_unavailable")
#: How long SQL is waited for here, and that a busy machine does not make two such waits of one.
SQL_S = 4.0
ANSWER_S = 1.95 * SQL_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An application that reaches its stores through proxies, a client that it knows, one never met."""

    api: Api
    known: Gateway
    stranger: Gateway
    redis: TcpProxy
    sql: TcpProxy

    @contextmanager
    def without(self, *proxies: TcpProxy, mode: Mode = Mode.REFUSE) -> Iterator[None]:
        """Cut some of the stores off, and make everything whole again."""
        for proxy in proxies:
            proxy.switch(mode)
        try:
            yield
        finally:
            for proxy in proxies:
                proxy.switch(Mode.PASS)
            wait_until(self.is_whole, what="both stores after the fault")

    def is_whole(self) -> bool:
        """Redis is proven again and SQL answers, each also for the requests: their breakers are closed."""
        services = self.api.services
        try:
            services.client_registry.every()
        except StoreUnavailable:
            return False
        return services.compare() and bool(services.health.summary().body["status"] == "ok")


@pytest.fixture(scope="module")
def scene(postgres_server, redis_server, template, tmp_path_factory) -> Iterator[Scene]:
    """Set the scene once; every test leaves it whole."""
    url = postgres_server.create_database(template=template)
    with ExitStack() as stack:
        stack.callback(drop_database, postgres_server.url, url)
        redis, sql = (stack.enter_context(TcpProxy(target)) for target in (redis_server.url, url))
        settings = {"CACHE_KEY_PREFIX": "outages", "CACHE_CB_RECOVERY_TIMEOUT": "200", "MACHINES": "on"}
        folder = tmp_path_factory.mktemp("outages")
        # A look at the stores from before the fault must not pass for one from after it.
        timings = replace(UNHURRIED, health=replace(UNHURRIED.health, look_s=0))
        env = development(sql.url_for(url), redis.url_for(redis_server.url), folder, **settings)
        api = Api(env, timings=timings)
        stack.callback(api.close)
        known, stranger = Gateway.of(api, "known"), Gateway.of(api, "stranger")
        yield Scene(api=api, known=known, stranger=stranger, redis=redis, sql=sql)


@pytest.fixture
def person(scene: Scene) -> Person:
    """Log somebody in while everything works; the known client is met."""
    scene.api.prove_redis()
    person = scene.api.someone()
    assert scene.known.introspect(person.access)["active"]
    return person


def asked(gateway: Gateway, token: str) -> object:
    """What an introspection comes to: the body, or the refusal."""
    answer = gateway.post(INTROSPECT, {"token": token})
    if answer.status_code == 503:
        assert int(answer.headers["Retry-After"]) >= 1
    return json_of(answer) if answer.status_code == 200 else refusal(answer)


def is_active(gateway: Gateway, token: str) -> bool:
    """An introspection says yes."""
    found = asked(gateway, token)
    return isinstance(found, dict) and found["active"] is True


def test_without_redis_sql_decides(scene, person):
    """For every client, of both tokens; a wrong secret is 401 though nobody can count it."""
    gone = scene.api.someone()
    scene.api.log_out(access=gone.access)

    with scene.without(scene.redis):
        assert is_active(Gateway.of(scene.api, "new"), person.access)
        assert is_active(scene.known, person.refresh_token)
        assert asked(scene.known, gone.access) == asked(scene.known, gone.refresh_token) == INACTIVE
        wrong = scene.api.call("POST", INTROSPECT, headers=basic(scene.known.id, "x"), data={"token": "x"})
        assert refusal(wrong) == (401, "invalid_client")


def test_without_sql_a_proven_redis_decides_for_clients_that_were_met(scene, person):
    """Access tokens alone, since Redis knows no refresh token; strangers are asked to come again."""
    gone = scene.api.someone()
    scene.api.log_out(access=gone.access)

    with scene.without(scene.sql):
        assert is_active(scene.known, person.access)
        assert asked(scene.known, gone.access) == INACTIVE
        assert asked(scene.known, "x") == INACTIVE
        assert asked(scene.known, person.refresh_token) == AWAY
        assert asked(scene.stranger, person.access) == AWAY
        assert asked(Gateway(api=scene.api, id=scene.known.id, secret="wrong"), person.access) == AWAY
        assert refusal(scene.known.post(REVOKE, {"token": person.access})) == AWAY

    assert person.is_accepted()


def test_while_sql_hangs_nobody_waits_for_it_twice(scene, person):
    """One deadline of SQL at most, also for what SQL alone could say after the client's own look-up."""
    hurried = replace(UNHURRIED, sql=SqlTimings(deadline_s=SQL_S))
    with closing(Api(scene.api.env, timings=hurried)) as api:
        known = replace(scene.known, api=api)
        wait_until(lambda: is_active(known, person.access), what="the client met")
        with scene.without(scene.sql, mode=Mode.SILENT):
            answers = []
            for token in (person.access, person.refresh_token):
                began_s = time.monotonic()
                answers.append((asked(known, token), time.monotonic() - began_s))

    (access, access_s), (refresh, refresh_s) = answers
    assert isinstance(access, dict)
    assert access["active"]
    assert refresh == AWAY
    assert max(access_s, refresh_s) < ANSWER_S


def test_without_both_nobody_guesses(scene, person):
    """503 for all, `false` for what is no token of anybody."""
    with scene.without(scene.redis, scene.sql):
        assert asked(scene.known, person.access) == AWAY
        assert asked(scene.known, person.refresh_token) == AWAY
        assert asked(scene.stranger, person.access) == AWAY
        assert asked(scene.known, "x") == INACTIVE


@pytest.mark.parametrize("shown", ["access_token", "refresh_token"])
def test_revoked_in_sql_alone_is_no_success_and_may_be_repeated(scene, person, shown):
    """503 while Redis cannot be written (RFC 7009 §2.2.1), though the session is over; then 200."""
    token = person.pair[shown]

    with scene.without(scene.redis):
        first = scene.known.post(REVOKE, {"token": token})
        again = scene.known.post(REVOKE, {"token": token})
        meanwhile = asked(scene.known, person.access)

    assert refusal(first) == refusal(again) == AWAY
    assert int(first.headers["Retry-After"]) >= 1
    assert meanwhile == INACTIVE
    # Connections that broke with Redis are found out one by one: each may cost a repetition more.
    wait_until(lambda: scene.known.revoke(token) == 200, what="the revocation of what is revoked")
    assert not person.is_accepted()
    assert code_of(scene.api.refresh(person.refresh_token)) == "session_ended"


GRANT = {"grant_type": "client_credentials"}


def token_of(gateway: Gateway) -> str:
    """A token of its own."""
    answer = gateway.post(TOKEN, GRANT)
    assert answer.status_code == 200, answer.text
    return str(json_of(answer)["access_token"])


def check(api: Api, token: str) -> int:
    """The status that a gateway gets."""
    return api.call("GET", "/v1/auth/verify-machine", token=token).status_code


def test_without_redis_services_get_tokens_and_lose_them(scene, person):
    """From SQL, uncounted; what is dropped then is answered 202, and is dead at once and afterwards."""
    client, admin = Gateway.of(scene.api), scene.api.an_admin()
    secret = scene.api.services.client_registry.get(client.id).secrets[0]
    old = token_of(client)

    with scene.without(scene.redis):
        during = token_of(client)
        before = [check(scene.api, token) for token in (old, during)]
        dropped = admin.call("DELETE", f"/v1/clients/{client.id}/secrets/{secret.id}")
        after = [check(scene.api, token) for token in (old, during)]

    assert (before, dropped.status_code, after) == ([200, 200], 202, [401, 401])
    assert [check(scene.api, token) for token in (old, during)] == [401, 401]


def test_without_sql_no_service_gets_a_token_and_those_there_are_stay_good(scene, person):
    """503, also for a client that this process has met: its secret may have been dropped meanwhile."""
    token = token_of(scene.known)
    assert check(scene.api, token) == 200

    with scene.without(scene.sql):
        refused = [refusal(one.post(TOKEN, GRANT)) for one in (scene.known, scene.stranger)]
        checked = check(scene.api, token)
        revoked = refusal(scene.known.post(REVOKE, {"token": token}))

    assert (refused, checked, revoked) == ([AWAY, AWAY], 200, AWAY)
    assert check(scene.api, token) == 200


def test_without_both_nobody_can_say(scene, person):
    """503, and everything is as before when they are back."""
    token = token_of(scene.known)

    with scene.without(scene.redis, scene.sql):
        assert refusal(scene.known.post(TOKEN, GRANT)) == AWAY
        assert check(scene.api, token) == 503

    assert check(scene.api, token) == 200
