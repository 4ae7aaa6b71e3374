"""SQL, a Redis to break, and the service processes between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from typing import Any

from redis import Redis

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Revocation, Sight
from authsvc.domain.values.identifiers import SessionId, UserId, new_id
from authsvc.store.revocations import Range, SqlRevocationLog
from tests.contract.copies.redis_side import CHECKS, KEYS, Process, process
from tests.contract.store.stores import COPIES_LIVE, Stores
from tests.processes import wait_until
from tests.servers import RedisServer


def nothing() -> None:
    """Happen."""


class InterruptedLog(SqlRevocationLog):
    """A log that lets something happen between two steps of a comparison, or cannot be reached."""

    is_down = False
    after_head: Callable[[], None] = staticmethod(nothing)
    after_page: Callable[[], None] = staticmethod(nothing)

    def head(self) -> int:
        """The head, unless it cannot be asked for."""
        if self.is_down:
            raise StoreUnavailable("sql")
        return super().head()

    def look(self, *, settled: int | None = None, at: Collection[int] = ()) -> Sight:
        """The log as it was before the interruption."""
        if self.is_down:
            raise StoreUnavailable("sql")
        sight = super().look(settled=settled, at=at)
        happen, self.after_head = self.after_head, nothing
        happen()
        return sight

    def pages(self, ranges: Sequence[Range]) -> Iterator[list[Revocation]]:
        """The pages; the interruption comes when the next one is asked for."""
        for page in super().pages(ranges):
            yield page
            happen, self.after_page = self.after_page, nothing
            happen()


class World:
    """SQL, Redis, and the processes between them."""

    def __init__(self, stores: Stores, redis: RedisServer) -> None:
        self.stores = stores
        self.server = redis
        self.redis = Redis.from_url(redis.url)
        self.processes: list[Process] = []
        self.logs: list[InterruptedLog] = []

    def start(self, *, url: str | None = None) -> tuple[Process, InterruptedLog]:
        """A new process, which has compared nothing yet, and its view of the log."""
        log = InterruptedLog(self.stores.database, copies_live=COPIES_LIVE, clock=self.stores.clock)
        made = process(url or self.server.url, log, self.stores.clock)
        self.processes.append(made)
        return made, log

    def revoke(self, *, by: Process | None = None) -> bytes:
        """End a session in SQL, and through *by* in Redis; the key of its tombstone."""
        session = SessionId(new_id())
        draft = self.stores.log.draft_end(UserId(new_id()), session, "test")
        with self.stores.database.transaction() as connection:
            entries = self.stores.log.append(connection, [draft])
        if by is not None:
            by.index.write(entries)
        return KEYS.session(session).encode()

    def fill_log(self, count: int) -> set[bytes]:
        """Many entries at once; the keys of their tombstones."""
        drafts = [
            self.stores.log.draft_end(UserId(new_id()), SessionId(new_id()), "test") for _ in range(count)
        ]
        with self.stores.database.transaction() as connection:
            self.stores.log.append(connection, drafts)
        return {KEYS.session(draft.session_id or "").encode() for draft in drafts}

    def forget_after(self, seq: int) -> None:
        """Restore the database to when *seq* was its last entry, numbers and all."""
        with self.stores.database.transaction() as connection:
            connection.exec_driver_sql(f"DELETE FROM revocations WHERE seq > {seq}")
            if self.stores.database.is_postgresql:
                connection.exec_driver_sql(f"SELECT setval('revocations_seq_seq', {seq})")
            else:
                connection.exec_driver_sql(f"UPDATE sqlite_sequence SET seq = {seq}")

    def marker(self) -> Any:
        """What stands in the marker's place."""
        return self.redis.get(KEYS.marker)

    def tombstones(self) -> set[bytes]:
        """Every session that Redis knows to be ended."""
        keys: Any = self.redis.keys("authsvc:v1:auth:session:*")
        return {key for key in keys if self.redis.get(key) == b"ended"}

    def connections(self, *, of: Process) -> set[str]:
        """The ids of the connections of *of*'s checks, all open, once the server has seen others go."""
        mine = {str(of.connection_id()), str(self.redis.client_id())}
        found: set[str] = set()

        def are_all() -> bool:
            clients: Any = self.redis.client_list()
            found.clear()
            found.update({client["id"] for client in clients} - mine)
            return len(found) == CHECKS

        wait_until(are_all, what="the connections of the checks alone")
        return found

    def kill_connections(self, *, of: Process) -> None:
        """Break every connection of *of*'s checks, and leave the reconciler's alone."""
        for connection in self.connections(of=of):
            self.redis.client_kill_filter(_id=connection)

    def let_marker_end(self) -> None:
        """As time would."""
        self.redis.pexpire(KEYS.marker, 1)
        wait_until(lambda: self.marker() is None, what="the end of the marker")

    def close(self) -> None:
        """Let all connections go."""
        for made in self.processes:
            made.close()
        self.redis.close()


def open_world(stores: Stores, server: RedisServer) -> Iterator[World]:
    """A world over an empty server in its default configuration."""
    with closing(World(stores, server)) as world:
        world.redis.config_set("maxmemory", "0")
        world.redis.config_set("maxmemory-policy", "noeviction")
        world.redis.flushall()
        yield world
