"""Tokens verified elsewhere: a logout holds within the promised lag, also while things break."""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import jwt
import psycopg
import pytest
from redis import Redis

from authsvc.domain.tokens.keys import generate
from authsvc.verifier import FeedStale, Options, TokenInvalid, Unavailable, Verifier, WhenStale
from tests import ROOT
from tests.e2e.verifier.verified import PROMISED_LAG_S, Verified, client_options, play
from tests.processes import wait_until
from tests.rig import PASSWORD, Service, environment, migrate, run_command
from tests.servers import drop_database
from tests.servers.proxy import Mode, TcpProxy
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROUNDS, THREADS = 40, 4
#: Any change of state here is there long before (seconds).
SAFE_S = 60
PAGE = ROOT / "docs" / "verifier.md"


class World:
    """The service on its stores, with wires that can be cut: to PostgreSQL, and to the service itself."""

    def __init__(self, service: Service, sql: TcpProxy, database_url: str, folder: Path) -> None:
        self.service = service
        self.sql = sql
        self.database_url = database_url
        self.folder = folder
        self.way = TcpProxy(service.url)
        self._direct_options = client_options(service, folder)

    def options(self, *, directly: bool = False) -> dict[str, Any]:
        """What a verifier is told that comes on the wire that can be cut; all are one client."""
        way = {} if directly else {"url": self.way.url_for(self.service.url)}
        return self._direct_options | way

    @contextmanager
    def verifier(self, **options: Any) -> Iterator[Verifier]:
        """A verifier that has caught up."""
        patiently = {"max_staleness_s": 60.0}
        with Verifier(Options(**self.options() | patiently | options)) as verifier:
            assert verifier.wait_ready(SAFE_S)
            yield verifier

    def newcomer(self) -> tuple[str, dict[str, Any]]:
        """Somebody new, logged in: their address and their tokens."""
        email = f"{uuid4().hex}@example.com"
        assert self.service.register(email).status_code == 201
        return email, self.service.log_in(email)

    def machine(self) -> tuple[dict[str, Any], str]:
        """A new client with a scope, as the command line shows it, and a token of its own."""
        command = ("clients", "create", "billing", "--scope", "orders:read")
        done = run_command(*command, env=self.service.env, folder=self.folder, entry=PATIENT)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        answer = self.service.call(
            "POST",
            "/v1/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=(made["client_id"], made["client_secret"]),
        )
        assert answer.status_code == 200, answer.text
        return made, answer.json()["access_token"]

    def log_out(self, pair: dict[str, Any]) -> None:
        """End the session of *pair*."""
        assert self.service.call("POST", "/v1/auth/logout", token=pair["access_token"]).status_code == 204

    def is_whole(self) -> bool:
        """Each worker has both stores."""
        states = self.service.from_each_worker(lambda: self.service.call("GET", "/v1/health").json())
        return [state["status"] for state in states] == ["ok", "ok"]

    def marker(self) -> int:
        """Up to which entry of the log Redis has been compared."""
        with Redis.from_url(self.service.env["REDIS_URL"]) as client:
            value = client.get("verifier:v1:auth:revocations:seq")
        return int(value) if value and value.isdigit() else -1

    def key_requests(self) -> int:
        """How often the service was asked for its keys until now, by its own log."""
        marks = [uuid4().hex, uuid4().hex]
        unused = iter(marks)
        self.service.from_each_worker(
            lambda: self.service.call("GET", "/v1/me", headers={"X-Request-Id": next(unused)})
        )
        # Each worker writes in the order of its requests, on a thread of its own.
        wait_until(lambda: all(mark in self.service.log.read_text() for mark in marks), what="the log")
        return self.service.log.read_text().count('"/.well-known/jwks.json"')


@pytest.fixture(scope="module")
def world(postgres_server, redis_server, tmp_path_factory) -> Iterator[World]:
    """One service of two workers for all of these tests."""
    folder = tmp_path_factory.mktemp("verifier")
    database_url = postgres_server.create_database()
    with ExitStack() as stack:
        sql = stack.enter_context(TcpProxy(database_url))
        prefix = {"CACHE_KEY_PREFIX": "verifier", "MACHINES": "on"}
        env = environment(sql.url_for(database_url), redis_server.url, folder, **prefix)
        migrate(env)
        service = stack.enter_context(Service(env, folder, entry=PATIENT))
        made = World(service, sql, database_url, folder)
        stack.enter_context(made.way)
        yield made
    drop_database(postgres_server.url, database_url)


def verdict(verifier: Verifier, token: str) -> str:
    """``yes``, ``no``, or ``unknown``."""
    try:
        verifier.verify(token)
    except TokenInvalid:
        return "no"
    except Unavailable:
        return "unknown"
    return "yes"


def decided(verifier: Verifier, token: str) -> str:
    """Wait until *verifier* knows: ``yes`` or ``no``."""
    found: list[str] = []

    def is_known() -> bool:
        found.append(verdict(verifier, token))
        return found[-1] != "unknown"

    wait_until(is_known, what="a yes or a no")
    return found[-1]


def becomes(verifier: Verifier, token: str, expected: str) -> None:
    """Wait until *verifier* says *expected* of *token*."""
    wait_until(
        lambda: verdict(verifier, token) == expected, timeout_s=SAFE_S, what=f"{expected} of the token"
    )


def test_after_a_logout_and_the_promised_lag_nobody_takes_the_token(world):
    """Two processes of a service, another that verifies by itself; forty rounds, four at a time."""
    with Verified(world.options(directly=True) | {"max_staleness_s": 60.0}) as verified:
        rounds = play(world.service, verified, rounds=ROUNDS, threads=THREADS)

    assert len(rounds) == ROUNDS
    assert sum(one.late for one in rounds) == 0
    assert max(one.lag_s for one in rounds) <= PROMISED_LAG_S


def test_whatever_makes_a_token_worthless_is_heard(world):
    """Password, roles, status, deletion, ending all: what the service refuses, the verifier refuses."""
    boss, boss_tokens = world.newcomer()
    with world.verifier() as verifier:

        def admin(method: str, path: str, **options: Any) -> None:
            token = world.service.log_in(boss)["access_token"]
            answer = world.service.call(method, f"/v1/users/{path}", token=token, **options)
            assert answer.status_code in {200, 204}, answer.text

        promote(world, boss)
        becomes(verifier, boss_tokens["access_token"], "no")
        changes = {
            "roles": lambda user: admin("PATCH", user, json={"roles": ["admin"]}),
            "status": lambda user: admin("PATCH", user, json={"status": "disabled"}),
            "sessions": lambda user: admin("DELETE", f"{user}/sessions"),
            "deletion": lambda user: admin("DELETE", user),
        }
        for name, change in changes.items():
            _, pair = world.newcomer()
            token = pair["access_token"]
            assert verdict(verifier, token) == "yes", name
            change(jwt.decode(token, options={"verify_signature": False})["sub"])
            assert world.service.verify(token) == 401
            becomes(verifier, token, "no")

        email, other = world.newcomer()
        kept = world.service.log_in(email)["access_token"]
        body = {"current_password": PASSWORD, "new_password": "another horse, another staple"}
        assert world.service.call("POST", "/v1/me/password", token=kept, json=body).status_code == 204
        becomes(verifier, other["access_token"], "no")
        assert verdict(verifier, kept) == "yes"


def promote(world: World, email: str) -> None:
    """Make somebody an admin, as the operator does."""
    done = run_command(
        *("users", "set-role", email, "admin"), env=world.service.env, folder=world.folder, entry=PATIENT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", [Mode.SILENT, Mode.REFUSE, Mode.RESET], ids=lambda mode: mode.value)
def test_a_cut_feed_stops_every_yes_and_is_resumed(world, mode):
    """Within the staleness that was chosen; nothing that was revoked meanwhile is missed afterwards."""
    _, leaving = world.newcomer()
    _, staying = world.newcomer()
    with world.verifier(max_staleness_s=1.0) as verifier:
        assert decided(verifier, leaving["access_token"]) == "yes"
        world.way.switch(mode)
        try:
            world.log_out(leaving)
            becomes(verifier, staying["access_token"], "unknown")
            with pytest.raises(FeedStale):
                verifier.verify(leaving["access_token"])
        finally:
            world.way.switch(Mode.PASS)

        becomes(verifier, staying["access_token"], "yes")
        assert decided(verifier, leaving["access_token"]) == "no"


def test_without_the_feed_the_service_is_asked_if_it_shall_be(world):
    """PostgreSQL is away: the feed has nothing to say, checks go on from Redis, and so does introspection."""
    _, leaving = world.newcomer()
    _, staying = world.newcomer()
    options = world.options() | {"max_staleness_s": 1.0}
    asking = Verifier(Options(**options, when_stale=WhenStale.INTROSPECT))
    with asking as trusting, Verifier(Options(**options)) as refusing:
        assert trusting.wait_ready(SAFE_S)
        assert decided(trusting, staying["access_token"]) == "yes"
        world.log_out(leaving)
        # Each worker has to have met this client, to know it while it cannot ask SQL.
        world.service.from_each_worker(lambda: introspect(world.service, options))
        world.sql.switch(Mode.REFUSE)
        try:
            becomes(refusing, staying["access_token"], "unknown")
            wait_until(lambda: trusting.lag_s > 1, what="a stale feed")
            assert decided(trusting, leaving["access_token"]) == "no"
            becomes(trusting, staying["access_token"], "yes")
        finally:
            world.sql.switch(Mode.PASS)

        becomes(refusing, staying["access_token"], "yes")
    # One worker has SQL again; the other's breaker may be open still.
    wait_until(world.is_whole, what="both workers with both stores")


def introspect(service: Service, options: dict[str, Any]) -> None:
    """Ask about a token that is none."""
    auth = (options["client_id"], options["client_secret"])
    answer = service.call("POST", "/v1/oauth2/introspect", data={"token": "x"}, auth=auth)
    assert answer.json() == {"active": False}


def test_a_restarted_service_is_found_again(world):
    """Its stop is not held up by those who wait; from the first to the last no dead token is taken."""
    _, leaving = world.newcomer()
    _, staying = world.newcomer()
    with world.verifier() as verifier:
        world.log_out(leaving)
        becomes(verifier, leaving["access_token"], "no")
        verdicts: set[str] = set()
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(0.02):
                verdicts.add(verdict(verifier, leaving["access_token"]))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            began_s = time.monotonic()
            assert world.service.stop() == 0
            stopped_in_s = time.monotonic() - began_s
            world.service.start()
            _, late = world.newcomer()
            world.log_out(late)
            becomes(verifier, late["access_token"], "no")
        finally:
            is_over.set()
            watching.join()

        assert verdicts == {"no"}
        assert stopped_in_s < 15
        assert verdict(verifier, staying["access_token"]) == "yes"


def test_a_restored_log_is_read_anew(world):
    """Who was cut off by the restore is refused here too; the cursor of the lost log is worth nothing."""
    email, pair = world.newcomer()
    with world.verifier() as verifier:
        assert verdict(verifier, pair["access_token"]) == "yes"
        _, lost = world.newcomer()
        world.log_out(lost)
        becomes(verifier, lost["access_token"], "no")
        with psycopg.connect(world.database_url, autocommit=True) as connection:
            ((head,),) = connection.execute("SELECT max(seq) FROM revocations").fetchall()
            # Only who has compared Redis with SQL up to here can tell that SQL goes back.
            wait_until(lambda: world.marker() >= head, timeout_s=SAFE_S, what="the comparison")
            # What came last is lost: the registration, the login and the logout.
            connection.execute("DELETE FROM revocations WHERE seq > (SELECT max(seq) - 3 FROM revocations)")
            connection.execute("SELECT setval('revocations_seq_seq', (SELECT max(seq) FROM revocations))")

        becomes(verifier, pair["access_token"], "no")
        assert decided(verifier, lost["access_token"]) == "no"
        # Anew each time: the other worker may find the restored log later, and cut everybody off once more.
        wait_until(
            lambda: verdict(verifier, world.service.log_in(email)["access_token"]) == "yes",
            what="a yes for who has logged in again",
        )


def test_a_storm_of_unknown_keys_and_a_rotated_one(world):
    """One request for the keys in a while, counted by the service itself; a new key is seen at once."""
    _, pair = world.newcomer()
    header = {"typ": "at+jwt"}
    key = generate("ES256", datetime.now(UTC))[1]
    with world.verifier(refetch_keys_s=1.0) as verifier:
        assert verdict(verifier, pair["access_token"]) == "yes"
        forged = [jwt.encode({}, key, "ES256", headers=header | {"kid": f"made-up-{n}"}) for n in range(100)]
        # The verifier requests the keys at most once a second (refetch_keys_s): let that time end.
        time.sleep(1.1)
        before, began_s = world.key_requests(), time.monotonic()

        assert {verdict(verifier, token) for token in forged} == {"no"}
        often = 1 + int((time.monotonic() - began_s) / 1.0)
        assert 1 <= world.key_requests() - before <= often

        # Older than those that there are, and so old that it may sign: the newest of that age does.
        name, pem = generate("EdDSA", datetime.now(UTC) - timedelta(seconds=400))
        (Path(world.service.env["JWT_KEYS_DIR"]) / name).write_bytes(pem)

        # Somebody else asks: beyond ten sessions the oldest gives way, and its token with it.
        other, _ = world.newcomer()

        def is_signed_anew() -> bool:
            token = world.service.log_in(other)["access_token"]
            return bool(jwt.get_unverified_header(token)["alg"] == "EdDSA")

        wait_until(is_signed_anew, timeout_s=SAFE_S, what="a token of the new key")
        becomes(verifier, world.service.log_in(other)["access_token"], "yes")
        assert verdict(verifier, pair["access_token"]) == "yes"


def test_whatever_makes_the_token_of_a_machine_worthless_is_heard(world):
    """A dropped secret, scopes that are cut, a deleted client, the token itself: as the service does."""
    boss, _ = world.newcomer()
    promote(world, boss)
    admin = world.service.log_in(boss)["access_token"]

    def change(method: str, path: str, body: object = None) -> None:
        answer = world.service.call(method, f"/v1/clients/{path}", token=admin, json=body)
        assert answer.status_code in {200, 204}, answer.text

    def is_refused(token: str) -> bool:
        try:
            verifier.verify_machine(token)
        except TokenInvalid:
            return True
        return False

    with world.verifier() as verifier:
        changes = {
            "secret": lambda one, said: change("DELETE", f"{one['client_id']}/secrets/{said['sid']}"),
            "scopes": lambda one, _: change("PATCH", one["client_id"], {"scopes": []}),
            "client": lambda one, _: change("DELETE", one["client_id"]),
            "token": lambda one, said: world.service.call(
                "POST",
                "/v1/oauth2/revoke",
                data={"token": said["token"]},
                auth=(one["client_id"], one["client_secret"]),
            ),
        }
        for name, make_worthless in changes.items():
            made, token = world.machine()
            assert verifier.verify_machine(token, ["orders:read"]).client_id == made["client_id"], name
            said = jwt.decode(token, options={"verify_signature": False}) | {"token": token}
            make_worthless(made, said)
            wait_until(partial(is_refused, token), timeout_s=SAFE_S, what=f"{name} refused")


def test_the_blocks_of_the_page_run_in_order(world):
    """Every example of docs/verifier.md, against a real service."""
    _, pair = world.newcomer()
    text = PAGE.read_text(encoding="utf-8")
    given = world.options(directly=True)
    tokens = {"token": pair["access_token"], "machine_token": world.machine()[1]}
    names = {"__name__": "orders", **tokens, **{k: given[k] for k in given}}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))

    for block in blocks:
        line = text[: block.start(1)].count("\n")
        code = compile("\n" * line + block.group(1), str(PAGE), "exec", dont_inherit=True)
        exec(code, names)

    assert len(blocks) >= 4
