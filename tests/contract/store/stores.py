"""The stores over a real database, with a clock that stands still until it is told."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from authsvc.cache.breaker import CircuitBreaker
from authsvc.domain.credentials import Credentials
from authsvc.domain.sessions import Session
from authsvc.domain.users import User
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, UserId, new_id
from authsvc.store.accounts.credentials import SqlCredentialStore
from authsvc.store.accounts.users import SqlUserStore
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.sessions import SqlSessionStore
from authsvc.store.sql import Database, SqlTimings
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    pass

#: An access token's life, leeway and margin.
COPIES_LIVE = timedelta(seconds=3600 + 5 + 60)
HASH = "pbkdf2-test$first"


class WallClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        """The time."""
        return self.now

    def tick(self, seconds: float) -> datetime:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)
        return self.now


def open_database(url: str, *, pool_size: int = 20, timings: SqlTimings = UNHURRIED.sql) -> Database:
    """A database that waits for as long as it takes, with a breaker that stays out of the way of races."""
    breaker = CircuitBreaker(failure_threshold=1000, clock=time.monotonic)
    return Database(url, breaker=breaker, clock=time.monotonic, pool_size=pool_size, timings=timings)


@dataclass(frozen=True, slots=True)
class Stores:
    """Every store over one database."""

    database: Database
    log: SqlRevocationLog
    users: SqlUserStore
    sessions: SqlSessionStore
    credentials: SqlCredentialStore
    clock: WallClock

    @classmethod
    def over(cls, database: Database, clock: WallClock | None = None) -> Stores:
        """All of them over *database*."""
        clock = clock or WallClock()
        log = SqlRevocationLog(database, copies_live=COPIES_LIVE, clock=clock)
        return cls(
            database=database,
            log=log,
            users=SqlUserStore(database, log, clock),
            sessions=SqlSessionStore(database, log, clock),
            credentials=SqlCredentialStore(database, log, clock),
            clock=clock,
        )

    def register(self, login: str = "alice", /, **changes: Any) -> User:
        """Add a user with an address made of *login*."""
        now = self.clock()
        fresh = User(id=UserId(new_id()), email=Email(f"{login}@example.com"), created_at=now, updated_at=now)
        return self.users.add(replace(fresh, **changes), HASH).value

    def session_of(self, user: User, **changes: Any) -> Session:
        """A session of *user*, not stored."""
        now = self.clock()
        fresh = Session(
            id=SessionId(new_id()),
            user_id=user.id,
            device_id=None,
            ip="192.0.2.1",
            user_agent="tests",
            created_at=now,
            last_used_at=now,
            idle_expires_at=now + timedelta(days=7),
            expires_at=now + timedelta(days=30),
            counter=0,
            rotated_at=now,
            salt=b"salt" * 4,
        )
        return replace(fresh, **changes)

    def credentials_of(self, user: User) -> Credentials:
        """What the user's password is verified by."""
        return self.credentials.by_user(user.id)

    def log_in(self, user: User, *, max_sessions: int = 10, **changes: Any) -> Session:
        """Open a session of *user*."""
        session = self.session_of(user, **changes)
        opened = self.credentials.open_session(
            self.credentials_of(user), session, rehash=None, max_sessions=max_sessions
        )
        assert opened is not None
        return session

    def alive(self, user: User) -> set[SessionId]:
        """The user's living sessions."""
        return {session.id for session in self.sessions.of_user(user.id, now=self.clock())}

    def entries(self, *, after: int = 0) -> list[tuple[str, str | None, int | None]]:
        """Reason, session and epoch of every entry of the log behind *after*, in order."""
        pages = self.log.pages([(after + 1, self.log.head())])
        return [(entry.reason, entry.session_id, entry.epoch) for page in pages for entry in page]
