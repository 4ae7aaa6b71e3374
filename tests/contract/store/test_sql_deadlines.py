"""SQL that hangs, is locked, full, restarted or gone: every wait ends, and the errors are the domain's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from authsvc.cache.breaker import CircuitBreaker, State
from authsvc.domain.errors import NotFound, StoreUnavailable
from authsvc.domain.values.clocks import Monotonic
from authsvc.store.sql import Database, SqlTimings
from tests.contract.cache.clients import in_threads
from tests.contract.copies.redis_side import Stopwatch
from tests.processes import free_port, wait_until
from tests.servers import PostgresServer
from tests.timings import UNHURRIED

FAILURES_TO_OPEN = 5


#: Nobody waits for so long, however busy the machine.
HOPELESS_S = 20


def ask(made: Database) -> object:
    """One query, read."""
    with made.read() as connection:
        return connection.execute(text("SELECT 1")).scalar_one()


def transact(made: Database) -> object:
    """One query in a transaction."""
    with made.transaction() as connection:
        return connection.execute(text("SELECT 1")).scalar_one()


@contextmanager
def database(
    url: str, *, pool_size: int = 2, clock: Monotonic = time.monotonic, timings: SqlTimings | None = None
) -> Iterator[Database]:
    """A database as the service has it, with its breaker, whose *clock* may be another."""
    breaker = CircuitBreaker(clock=clock)
    made = Database(url, breaker=breaker, clock=time.monotonic, pool_size=pool_size, timings=timings)
    with closing(made):
        yield made


def unhurried(made: Database, work: Callable[[Database], object] = ask) -> object:
    """What *work* returns, for which there is time."""
    made.timings = UNHURRIED.sql
    try:
        return work(made)
    finally:
        made.timings = SqlTimings()


def seconds_to_refuse(work: Callable[[], object], *, cause: str = "sql") -> float:
    """How long *work* takes to be unavailable, for *cause*."""
    began_s = time.monotonic()
    with pytest.raises(StoreUnavailable, match=cause):
        work()
    return time.monotonic() - began_s


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """Share one server among these tests, which break and mend it."""
    with PostgresServer() as server:
        yield server


@contextmanager
def paused(server: PostgresServer) -> Iterator[None]:
    """A server whose every process stands still: the kernel accepts connections, nobody answers."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


class TestHanging:
    """Stopped processes fire no statement timeout: the client's own clock must."""

    def test_a_hanging_server_is_given_up_within_three_seconds(self, own_postgres):
        """With a connection from before, and without one; a query, and one in a transaction."""
        assert (SqlTimings().deadline_s, SqlTimings().connect_s) == (2.5, 2)
        with ExitStack() as stack:
            works = [
                (work, stack.enter_context(database(own_postgres.url)))
                for work in (ask, transact, ask, transact)
            ]
            assert [unhurried(made, work) for work, made in works[:2]] == [1, 1]

            with paused(own_postgres):
                waits = in_threads(*(partial(seconds_to_refuse, partial(work, made)) for work, made in works))

            assert max(waits) < HOPELESS_S
            assert [unhurried(made, work) for work, made in works] == [1] * 4

    def test_a_server_that_hangs_within_a_transaction_is_given_up(self, own_postgres):
        """Statement, roll-back and the connection's return to the pool together."""
        with database(own_postgres.url) as made:

            def hang() -> None:
                with made.transaction() as connection:
                    connection.execute(text("SELECT 1"))
                    own_postgres.pause()
                    connection.execute(text("SELECT 2"))

            try:
                assert seconds_to_refuse(hang) < HOPELESS_S
            finally:
                own_postgres.resume()
            assert unhurried(made) == 1

    def test_after_five_failures_nobody_waits(self, own_postgres):
        """The breaker answers at once; after its pause one query closes it."""
        clock = Stopwatch()
        with database(own_postgres.url, pool_size=8, clock=clock) as made:
            with paused(own_postgres):
                callers = [
                    threading.Thread(target=seconds_to_refuse, args=(lambda: ask(made),)) for _ in range(5)
                ]
                for caller in callers:
                    caller.start()
                for caller in callers:
                    caller.join(60)

                assert made.state is State.OPEN
                seconds_to_refuse(partial(ask, made), cause="breaker open")
                seconds_to_refuse(partial(transact, made), cause="breaker open")

            clock.tick(2.05)  # the breaker's own pause
            assert [unhurried(made) for _ in range(3)] == [1, 1, 1]


class TestLocks:
    """What others hold is waited for, but not for long."""

    @pytest.fixture
    def made(self, own_postgres) -> Iterator[Database]:
        """Open a database with one table."""
        with database(own_postgres.create_database()) as made:
            with made.transaction() as connection:
                connection.execute(text("CREATE TABLE t (id integer PRIMARY KEY)"))
            yield made

    def test_a_locked_table_is_given_up_within_a_second_and_a_half(self, made):
        """It is no outage: the breaker stays closed, others go on."""

        def write() -> None:
            with made.transaction() as connection:
                connection.execute(text("INSERT INTO t VALUES (1)"))

        with made.transaction() as locking:
            locking.execute(text("LOCK TABLE t IN ACCESS EXCLUSIVE MODE"))
            assert 0.9 < seconds_to_refuse(write, cause="LockNotAvailable") < HOPELESS_S
            assert made.state is State.CLOSED

        write()

    def test_a_slow_statement_is_given_up(self, made):
        """By the server, so that the connection is as good as before."""

        def sleep() -> None:
            with made.read() as connection:
                connection.execute(text("SELECT pg_sleep(60)"))

        assert 1.4 < seconds_to_refuse(sleep, cause="QueryCanceled") < HOPELESS_S
        assert ask(made) == 1
        assert made.state is State.CLOSED

    def test_a_forgotten_transaction_is_ended_by_the_server(self, made):
        """It must not hold its locks for ever."""
        with made.read() as connection:
            limit = connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one()

        assert limit == "5s"


class TestPool:
    """Connections are few, and waiting for one is short."""

    def test_an_exhausted_pool_is_given_up_within_half_a_second(self, own_postgres):
        """It is no outage of the server, and over as soon as one comes back."""
        with database(own_postgres.url, pool_size=1) as made:
            with made.read() as taken:
                taken.execute(text("SELECT 1"))
                assert made.pool_figures() == {"in_use": 1, "size": 1}
                waits = in_threads(*[lambda: seconds_to_refuse(lambda: ask(made))] * (FAILURES_TO_OPEN + 1))
                assert max(waits) < HOPELESS_S
                assert min(waits) > 0.4

            assert made.state is State.CLOSED
            assert ask(made) == 1
            assert made.pool_figures() == {"in_use": 0, "size": 1}

    def test_a_probe_without_connection_does_not_close_the_breaker(self, own_postgres):
        """Nothing was asked, so nothing is known of the server."""
        now_s = [0.0]
        breaker = CircuitBreaker(clock=lambda: now_s[0])
        made = Database(own_postgres.url, breaker=breaker, clock=time.monotonic, pool_size=1)
        with closing(made), made.read() as taken:
            taken.execute(text("SELECT 1"))
            breaker.open()
            now_s[0] = 3.0
            in_threads(lambda: seconds_to_refuse(lambda: ask(made)))

            assert made.state is State.HALF_OPEN

    def test_a_restarted_server_is_used_at_once(self, own_postgres):
        """The connections from before are found dead, and made anew, without an error to anybody."""
        with database(own_postgres.url, timings=UNHURRIED.sql) as made:
            with made.read() as one, made.read() as two:
                one.execute(text("SELECT 1"))
                two.execute(text("SELECT 1"))

            own_postgres.restart()

            assert [ask(made), transact(made), ask(made)] == [1, 1, 1]
            assert made.state is State.CLOSED

    def test_a_connection_that_the_server_ends_costs_one_answer(self, own_postgres):
        """The one that was being given; the next goes through."""
        with database(own_postgres.url) as made:

            def be_ended() -> None:
                with made.read() as connection:
                    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
                    with psycopg.connect(own_postgres.url, autocommit=True) as admin:
                        admin.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])
                    connection.execute(text("SELECT 1"))

            assert seconds_to_refuse(be_ended) < HOPELESS_S
            assert ask(made) == 1


class TestGone:
    """Nobody listens."""

    def test_a_refused_connection_is_an_outage_at_once(self):
        """Five of them open the breaker."""
        with database(f"postgresql://nobody@127.0.0.1:{free_port()}/none") as made:
            waits = [seconds_to_refuse(lambda: ask(made)) for _ in range(FAILURES_TO_OPEN)]

            assert max(waits) < HOPELESS_S
            assert made.state is State.OPEN

    def test_a_server_that_takes_no_more_connections_is_an_outage(self):
        """Full for us is down for us; the error names no address."""
        with PostgresServer("-c", "max_connections=5", "-c", "superuser_reserved_connections=0") as server:
            held: list[psycopg.Connection[Any]] = []

            def are_all_taken() -> bool:
                with suppress(psycopg.OperationalError):  # somebody has not quite gone
                    held.append(psycopg.connect(server.url))
                return len(held) == 5

            try:
                wait_until(are_all_taken, what="five connections")
                with database(server.url) as made, pytest.raises(StoreUnavailable) as refusal:
                    ask(made)
            finally:
                for connection in held:
                    connection.close()

        assert str(server.port) not in str(refusal.value)

    def test_a_read_only_server_refuses_writes_and_answers_reads(self, own_postgres):
        """After a failover to a standby: an outage for writers alone, the breaker stays closed."""
        with database(own_postgres.create_database()) as made:
            with made.transaction() as connection:
                connection.execute(text("CREATE TABLE t (id integer PRIMARY KEY)"))

            def write() -> None:
                with made.transaction() as connection:
                    connection.execute(text("SET TRANSACTION READ ONLY"))
                    connection.execute(text("INSERT INTO t VALUES (1)"))

            for _ in range(FAILURES_TO_OPEN + 1):
                seconds_to_refuse(write)
            assert made.state is State.CLOSED
            assert ask(made) == 1


class TestRefusals:
    """An answer is an answer, whatever it says."""

    def test_a_broken_constraint_opens_nothing(self, sql_url):
        """The server did answer: it could not do it, and what it refused is the cause of the error."""
        with database(sql_url) as made:
            for _ in range(FAILURES_TO_OPEN + 1):
                with pytest.raises(StoreUnavailable) as refused, made.transaction() as connection:
                    connection.execute(text("INSERT INTO clients (id) VALUES (NULL)"))
                assert isinstance(refused.value.__cause__, IntegrityError)

            assert made.state is State.CLOSED

    def test_an_error_of_the_caller_opens_nothing(self, sql_url):
        """Its own refusal rolls the transaction back, and comes out as it is."""
        with database(sql_url) as made:
            for _ in range(FAILURES_TO_OPEN + 1):
                with pytest.raises(NotFound), made.transaction():
                    raise NotFound

            assert made.state is State.CLOSED
            made.ping()

    def test_a_locked_sqlite_file_is_given_up(self, sqlite_url):
        """One writer at a time: the others wait a second at most."""
        with database(sqlite_url) as made, made.transaction() as connection:
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 1000
            (took_s,) = in_threads(lambda: seconds_to_refuse(lambda: transact(made)))

        assert 0.9 < took_s < HOPELESS_S
