"""What a unit of work asks of PostgreSQL: its statements, and a sign of life only of what lay idle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta

import psycopg
import pytest

from authsvc.cache.breaker import CircuitBreaker
from authsvc.domain.audit import Entry
from authsvc.domain.revocations import Committed
from authsvc.domain.sessions import Ending, Rotation, Standing
from authsvc.domain.values.identifiers import timed_id
from authsvc.store.postgres.connecting import IDLE_S, DeadlineConnection
from authsvc.store.sql import Database, DatabaseEvents
from tests.contract.store.stores import Stores
from tests.timings import UNHURRIED


class Clock:
    """The monotonic clock, which a test moves on."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return time.monotonic() + self.ahead_s


@contextmanager
def listening(url: str, clock: Clock) -> Iterator[tuple[Stores, list[str]]]:
    """The stores over one connection to *url*, and the statements that go over it."""
    said: list[str] = []

    class Listening(psycopg.Cursor):
        """Notes each statement."""

        def execute(self, query, params=None, **options):
            said.append(query.split()[0] if query.split() else query)
            return super().execute(query, params, **options)

    def listen(connection: DeadlineConnection) -> DeadlineConnection:
        connection.cursor_factory = Listening
        return connection

    database = Database(
        url,
        breaker=CircuitBreaker(clock=clock),
        clock=clock,
        pool_size=1,
        events=DatabaseEvents(on_connect=listen),
        timings=UNHURRIED.sql,
    )
    with closing(database):
        yield Stores.over(database), said


@pytest.fixture
def clock() -> Clock:
    """A clock that the test moves on."""
    return Clock()


def test_a_rotation_is_one_query_and_one_update(postgres_url, clock):
    """Nothing else goes over a connection that is in use."""
    with listening(postgres_url, clock) as (stores, said):
        session = stores.log_in(stores.register())
        said.clear()

        (standing,) = stores.sessions.standings([session.id])
        assert isinstance(standing, Standing)
        now = stores.clock()
        rotation = Rotation(session=standing.session, now=now, idle_expires_at=now + timedelta(days=7))
        assert stores.sessions.rotate_free([rotation]) != [None]

        assert said == ["SELECT", "WITH"]


def test_the_end_of_a_session_is_one_statement_with_event_and_log_entry(postgres_url, clock):
    """Nothing else goes over the connection: no BEGIN, no COMMIT."""
    with listening(postgres_url, clock) as (stores, said):
        session = stores.log_in(stores.register())
        told = Entry(id=timed_id(session.created_at), at=session.created_at, action="session.ended")
        said.clear()

        (committed,) = stores.sessions.end_free([Ending(session_id=session.id, reason="logout", event=told)])

        assert isinstance(committed, Committed)
        assert committed.is_noted
        assert said == ["WITH"]


def test_a_connection_that_lay_idle_is_asked_first(postgres_url, clock):
    """A balancer may have forgotten it without a word."""
    with listening(postgres_url, clock) as (stores, said):
        session = stores.log_in(stores.register())
        said.clear()
        clock.ahead_s += 2 * IDLE_S

        assert stores.sessions.standing(session.id) is not None

        assert said == [";", "SELECT"]


@pytest.mark.parametrize("ahead_s", [0.0, 2 * IDLE_S], ids=["in use", "idle"])
def test_a_connection_that_the_server_ended_is_replaced_before_use(postgres_url, clock, ahead_s):
    """Whether it was in use a moment ago or not: nobody gets an error."""
    with (
        listening(postgres_url, clock) as (stores, _),
        psycopg.connect(postgres_url, autocommit=True) as admin,
    ):
        session = stores.log_in(stores.register())
        for _ in range(5):
            _end_others(admin)
            clock.ahead_s += ahead_s

            assert stores.sessions.standing(session.id) is not None


def _end_others(admin: psycopg.Connection) -> None:
    """End every other connection to this database, and wait until they are gone."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
