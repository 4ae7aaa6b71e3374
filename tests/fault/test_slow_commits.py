"""A 202 of one replica holds in the other, however slow the commits of others are."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from authsvc.store.revocations import LOG_LOCK
from tests.fault import breaking_redis
from tests.fault.asking import ALL_ACCEPTED, ALL_REFUSED, PATIENCE_S, answered, ask, everywhere
from tests.fault.observing import figures
from tests.processes import wait_until
from tests.servers.proxy import Mode, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from tests.fault.world import Member, World

pytestmark = [pytest.mark.fault, pytest.mark.slow]

CUT_OFF = breaking_redis.on_the_wire(Rule(mode=Mode.REFUSE))
#: docs/failure-modes.md.
HOLDS_WITHIN_S = 2.0
SLOWLY = """
    CREATE FUNCTION commit_slowly() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF random() < {share} THEN PERFORM pg_sleep({seconds}); END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER slowly BEFORE INSERT ON revocations FOR EACH ROW EXECUTE FUNCTION commit_slowly()
"""
AT_ONCE = "DROP TRIGGER slowly ON revocations; DROP FUNCTION commit_slowly()"


def append(connection: psycopg.Connection) -> None:
    """Another session ends, as a third replica would write it; not committed."""
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (LOG_LOCK,))
    connection.execute(
        "INSERT INTO revocations (at, reason, expires_at, user_id, session_id)"
        " VALUES (now(), 'test', now() + interval '1 hour', %s, %s)",
        (uuid4(), uuid4()),
    )


def from_redis(world: World) -> float:
    """How many checks of living tokens Redis has decided in the replica that reaches it."""
    return figures(world.ahead).get('authsvc_token_checks_total{result="active",source="redis"}', 0)


def test_a_202_holds_elsewhere_while_another_commit_is_under_way(world: World):
    """The replica that reaches both stores need not wait for it, and goes on believing Redis."""
    stays, leaves = world.log_in("stays"), world.log_in("leaves")
    assert everywhere(world.ahead, leaves.access) == [ALL_ACCEPTED]

    with CUT_OFF(world), world.sql_admin() as other, other.transaction():
        append(other)
        accepted = answered(partial(world.at(world.beside).log_out, leaves))
        # Before anybody asks about it: a check that SQL answers would write the tombstone, too.
        wait_until(lambda: world.redis_session(leaves) == "ended", timeout_s=PATIENCE_S, what="tombstone")
        assert everywhere(world.ahead, leaves.access) == [ALL_REFUSED]
        before = from_redis(world)
        assert everywhere(world.ahead, stays.access) == [ALL_ACCEPTED]
        assert from_redis(world) - before == ALL_ACCEPTED.total()

    assert accepted.status == 202
    world.wait_replayed()


@dataclass(slots=True)
class Figures:
    """What a run came to."""

    left_s: dict[str, float] = field(default_factory=dict)
    #: How long after its 202 a token was accepted for the last time (seconds).
    accepted_s: dict[str, float] = field(default_factory=dict)
    probes: int = 0
    written: int = 0

    def late(self) -> list[float]:
        """Tokens that were accepted for longer than is promised."""
        return [seconds for seconds in self.accepted_s.values() if seconds > HOLDS_WITHIN_S]


@dataclass(slots=True)
class Crowd:
    """Others write, people leave through the replica without Redis, the other one is asked about them."""

    world: World
    leaving: list[Member]
    run: Figures
    over: threading.Event = field(default_factory=threading.Event)

    def write(self) -> None:
        """One entry after the other."""
        with self.world.sql_admin() as connection:
            while not self.over.is_set():
                with connection.transaction():
                    append(connection)
                self.run.written += 1

    def leave(self) -> None:
        """One after the other; when each was acknowledged is noted."""
        while not self.over.is_set() and self.leaving:
            member = self.leaving.pop()
            if self.world.at(self.world.beside).log_out(member).status == 202:
                self.run.left_s[member.access] = time.monotonic()

    def probe(self) -> None:
        """Each token that was acknowledged lately, again and again."""
        while not self.over.wait(0.005):
            for token, left_s in list(self.run.left_s.items()):
                if time.monotonic() - left_s < 3 * HOLDS_WITHIN_S:
                    self._ask(token, left_s)

    def _ask(self, token: str, left_s: float) -> None:
        began_s = time.monotonic()
        answer = ask(self.world.ahead, "GET", "/v1/auth/verify", token=token)
        self.run.probes += 1
        if answer.status == 200:
            self.run.accepted_s[token] = max(self.run.accepted_s.get(token, 0), began_s - left_s)


@contextmanager
def busily(crowd: Crowd, *, writers: int) -> Iterator[None]:
    """Keep everybody busy while the block runs."""
    work = [crowd.write] * writers + [crowd.leave] * 2 + [crowd.probe] * 2
    with ThreadPoolExecutor(len(work)) as pool:
        working = [pool.submit(one) for one in work]
        try:
            yield
        finally:
            crowd.over.set()
    for one in working:
        one.result()


@pytest.mark.long
@pytest.mark.parametrize(
    ("share", "seconds", "writers"),
    [pytest.param(0.4, "0.3", 12, id="0.3 s"), pytest.param(1.0, "random()", 55, id="up to 1 s")],
)
def test_a_202_holds_elsewhere_within_two_seconds_of_busy_commits(
    world: World, record_property, share: float, seconds: str, writers: int
):
    """Around 100 entries of the log a second; the checks of living tokens stay with Redis."""
    stays = world.log_in("stays")
    leaving = [world.log_in("leaves") for _ in range(200)]
    run = Figures()
    with world.sql_admin() as connection:
        connection.execute(SLOWLY.format(share=share, seconds=seconds))
    try:
        with CUT_OFF(world), busily(Crowd(world, leaving, run), writers=writers):
            wait_until(lambda: len(run.left_s) > 2, timeout_s=PATIENCE_S)
            before, began_s = figures(world.ahead), time.monotonic()
            while time.monotonic() - began_s < 12:
                assert answered(partial(world.at(world.ahead).check, stays)).status == 200
                time.sleep(0.01)
            after = figures(world.ahead)
    finally:
        with world.sql_admin() as connection:
            connection.execute(AT_ONCE)
    sources = {
        source: after.get(name, 0) - before.get(name, 0)
        for source in ("redis", "sql")
        for name in [f'authsvc_token_checks_total{{result="active",source="{source}"}}']
    }
    slowest = max(run.accepted_s.values(), default=0.0)
    record_property("slow_commits", f"left={len(run.left_s)} late={len(run.late())} slowest={slowest:.2f}")
    print(  # noqa: T201 - the figures of the run
        f"\n202s {len(run.left_s)}, probes {run.probes}, entries/s {run.written / 12:.0f},"
        f" slowest {slowest:.2f} s, late {len(run.late())}, sources {sources}"
    )
    assert run.late() == []
    assert sources["redis"] >= 0.95 * sum(sources.values())
