"""An index to test, and what SQL and the log would say of its tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from authsvc.cache import CacheClient
from authsvc.domain.revocations import Proof, Revocation, Verdict, judge
from authsvc.domain.sessions import Session, Standing
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.users import User
from authsvc.domain.values.emails import Email
from authsvc.store.copies.index import RedisIndex
from tests.contract.copies.redis_side import KEYS, Hooks
from tests.contract.store.stores import WallClock

ALICE = Email("alice@example.com")
LONGEST_MS = 3_665_000


@dataclass
class Side:
    """An index, the client behind it, and what it said to others."""

    index: RedisIndex
    client: CacheClient
    proof: Proof
    hooks: Hooks
    clock: WallClock
    operations: list[str]

    def prove(self, *, known: int = 0, marker: bytes | None = None) -> None:
        """Let the marker stand and the process have compared it."""
        if marker is not None:
            self.client.call("SET", KEYS.marker, marker)
        newest = self.client.connections.generation
        self.proof.compared(seq=known, over=1, newest=newest, now_s=self.index.monotonic())

    def value(self, key: str) -> Any:
        """The value of *key*."""
        return self.client.call("GET", key)

    def ttl_ms(self, key: str) -> int:
        """Its life in milliseconds."""
        left: int = self.client.call("PTTL", key)  # type: ignore[assignment]  # what PTTL replies
        return left

    def verdict(self, token: AccessToken) -> Verdict:
        """What a check would make of it."""
        return judge(token.keys, self.index.look_up(token.keys))


def end_of(token: AccessToken, clock: WallClock, **changes: Any) -> Revocation:
    """The entry that ends the token's session."""
    ended = Revocation(
        seq=1,
        at=clock(),
        reason="logout",
        expires_at=clock() + timedelta(milliseconds=LONGEST_MS),
        user_id=token.user_id,
        session_id=token.session_id,
    )
    return replace(ended, **changes)


def cut_off(token: AccessToken, clock: WallClock, epoch: int, **changes: Any) -> Revocation:
    """The entry that raises the epoch of the token's user."""
    return end_of(token, clock, **({"session_id": None, "epoch": epoch} | changes))


def standing_of(token: AccessToken, clock: WallClock, **changes: Any) -> Standing:
    """What SQL would say of the token: all is well, but for *changes* of user or session."""
    now = clock()
    user = User(
        id=token.user_id, email=ALICE, created_at=now, updated_at=now, epoch=token.epoch, roles=token.roles
    )
    session = Session(
        id=token.session_id, user_id=token.user_id, device_id=None, ip="192.0.2.1", user_agent=None,
        created_at=now, last_used_at=now, idle_expires_at=now + timedelta(days=7),
        expires_at=now + timedelta(days=30), counter=0, rotated_at=now, salt=b"",
    )  # fmt: skip
    of_session = {name: value for name, value in changes.items() if hasattr(session, name)}
    of_user = {name: value for name, value in changes.items() if name not in of_session}
    return Standing(session=replace(session, **of_session), user=replace(user, **of_user))
