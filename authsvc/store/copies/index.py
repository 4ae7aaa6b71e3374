"""The copy of issued and revoked tokens in Redis: keys of tokens, sessions, epochs and the blacklist."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from authsvc.cache.errors import CacheError
from authsvc.cache.keys import KeySpace
from authsvc.cache.redis.client import CacheClient, Command, Script
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import (
    BOUND_RECORD,
    COPY_MARGIN_S,
    IndexAnswer,
    Proof,
    Revocation,
    TokenKeys,
)
from authsvc.domain.sessions import Standing
from authsvc.domain.tokens.access import AccessToken, MachineToken, Token, TokenProfile, is_about
from authsvc.domain.tokens.machines import MachineStanding
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock, Monotonic
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import UserId
from authsvc.domain.values.shards import Sharded, shard_of

ENDED = "ended"


@dataclass(frozen=True, slots=True)
class IndexKeys:
    """The key names of one shard; identifiers are UUIDs, which need no encoding."""

    space: KeySpace
    #: The shard's hash tag; "" if there is only one shard.
    tag: str = ""
    _start: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_start", self.space.start(self.tag))

    def token(self, token_id: str) -> str:
        """The record of an issued token."""
        return f"{self._start}:auth:token:{token_id}"

    def session(self, session_id: str) -> str:
        """``alive`` or ``ended``."""
        return f"{self._start}:auth:session:{session_id}"

    def epoch(self, user_id: str) -> str:
        """The user's current epoch."""
        return f"{self._start}:auth:epoch:{user_id}"

    def blacklist(self, token_id: str) -> str:
        """Why and when a token was revoked."""
        return f"{self._start}:auth:blacklist:{token_id}"

    def of(self, token: TokenKeys) -> tuple[str, str, str, str]:
        """The keys that a check of *token* reads, in the order of :class:`IndexAnswer`."""
        return (
            self.token(token.token_id),
            self.session(token.session_id),
            self.epoch(token.user_id),
            self.blacklist(token.token_id),
        )

    @property
    def installation(self) -> str:
        """The id of the installation that the data belongs to; it never expires."""
        return f"{self._start}:auth:installation"

    @property
    def marker(self) -> str:
        """The number of the last replayed log entry."""
        return f"{self._start}:auth:revocations:seq"


#: Returns the commands that drop the cached copies of a user, each with the shard of its key: copies older
#: than a version of the row, or all (None).
DropCopies = Callable[[str, Email, int | None], Sequence[tuple[int, Command]]]


class UserCopies(Protocol):
    """The cached copies of users."""

    def key(self, user_id: str) -> str:
        """The key of the copy of *user_id*."""

    def read(self, user_id: str, raw: bytes | None) -> User | None:
        """The user in the value of that key, read with a proven marker; None if it is not usable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisIndex:
    """Reads one token in one round trip, and writes revocations and issued tokens."""

    client: CacheClient
    key_names: Sharded[IndexKeys]
    profile: TokenProfile
    proofs: Sharded[Proof]
    drop_copies: DropCopies
    #: Called when a connection was used that no comparison has covered yet.
    on_new_connection: Callable[[], None]
    #: Called with the seconds from the time of an entry until it was in Redis.
    on_written: Callable[[float], None]
    clock: Clock
    monotonic: Monotonic
    #: None: users are not cached.
    user_copies: UserCopies | None = None
    epoch_script: Script = field(
        default_factory=lambda: Script.load("authsvc.store.copies", "epoch"), repr=False
    )
    alive_script: Script = field(
        default_factory=lambda: Script.load("authsvc.store.copies", "alive"), repr=False
    )
    record_script: Script = field(
        default_factory=lambda: Script.load("authsvc.store.copies", "record"), repr=False
    )

    def look_up(self, token: TokenKeys) -> IndexAnswer:
        """All data for a check, read over one connection of known generation."""
        return self._look_up(token)[0]

    def look_up_with_user(self, token: TokenKeys) -> tuple[IndexAnswer, User | None]:
        """The same and the copy of the user, in one round trip; None if there is no proven copy."""
        if self.user_copies is None:
            return self.look_up(token), None
        answer, raw = self._look_up(token, self.user_copies.key(token.user_id))
        return answer, self.user_copies.read(token.user_id, raw) if answer.is_proven else None

    def _look_up(self, token: TokenKeys, *further: str) -> tuple[IndexAnswer, bytes | None]:
        """The answer, and the value of the *further* key, if given."""
        names, proof = self.key_names.about(token.user_id), self.proofs.about(token.user_id)
        with _translated():
            values, generation = self.client.mget((*names.of(token), names.marker, *further))
        record, session, epoch, blacklist, marker, *beside = values
        is_proven = proof.holds(marker, generation, self.monotonic())
        if not is_proven and not proof.trusts(generation):
            self.on_new_connection()
        return IndexAnswer(record, session, epoch, blacklist, is_proven), next(iter(beside), None)

    def proven_shards(self) -> int:
        """
        The number of shards in which Redis is proven to have every revocation now.

        One round trip to each server; raises StoreUnavailable if none answers.
        """
        servers: dict[str, tuple[CacheClient, list[tuple[str, Proof]]]] = {}
        for names, proof in zip(self.key_names.each, self.proofs.each, strict=True):
            with _translated():
                server = self.client.at(names.marker)
            servers.setdefault(server.link.name, (server, []))[1].append((names.marker, proof))
        counts = [self._count_proven(server, asked) for server, asked in servers.values()]
        answered = [count for count in counts if not isinstance(count, CacheError)]
        if not answered:
            raise StoreUnavailable(f"redis: {counts[0]}")
        return sum(answered)

    def _count_proven(self, server: CacheClient, asked: Sequence[tuple[str, Proof]]) -> int | CacheError:
        try:
            markers, generation = server.pipeline_each([("GET", key) for key, _ in asked])
        except CacheError as error:
            return error
        return sum(
            isinstance(marker, bytes) and proof.holds(marker, generation, self.monotonic())
            for marker, (_, proof) in zip(markers, asked, strict=True)
        )

    def remember(self, issued: Sequence[tuple[AccessToken, Email]]) -> Sequence[None]:
        """
        Write the record of each token, its session as alive, its user's epoch; never over a tombstone.

        One round trip to each server.
        """
        self._send([command for token, email in issued for command in self._first(token, {"email": email})])
        return [None] * len(issued)

    def remember_machine(self, token: MachineToken) -> None:
        """The same for a machine: its secret takes the place of the session, its client that of the user."""
        self._send(self._first(token, {}))

    def _first(self, token: Token, more: Mapping[str, object]) -> list[Command]:
        """The commands that write what is known of a new token."""
        life_s = self._life_s(token)
        record = json.dumps({"digest": token.digest, **_record(token, life_s), **more})
        key = self.key_names.about(token.user_id).token(token.token_id)
        return [("SET", key, record, "EX", life_s), *self._alive(token)]

    def refill(self, token: AccessToken, standing: Standing | None) -> None:
        """
        Write the state of *token* from SQL to Redis.

        SQL does not store the text of a token. So the record gets no digest: the presented text may differ
        from the issued one. An existing digest is kept.
        """
        if standing is None:
            self._send([self._tombstone(token.user_id, token.session_id, self._longest_ms())])
            return
        user, session = standing.user, standing.session
        commands = [self._epoch_command(user.id, user.epoch)]
        if session.revoked_at is not None:
            commands.append(self._tombstone(token.user_id, session.id, self._longest_ms()))
        elif is_about(token, user) and standing.is_good(self.clock()):
            commands = [self._put_back(token, {"email": user.email}), *self._alive(token)]
        self._send(commands)

    def refill_machine(self, token: MachineToken, standing: MachineStanding | None) -> None:
        """The same for a machine; without a standing, its client or secret is deleted."""
        if standing is None:
            self._send([self._tombstone(token.user_id, token.session_id, self._longest_ms())])
        elif standing.is_good_for(token):
            self._send([self._put_back(token, {}), *self._alive(token)])
        else:
            self._send([self._epoch_command(token.user_id, standing.client.epoch)])

    def write(self, entries: Sequence[Revocation]) -> None:
        """Write *entries* to Redis, in one round trip to each server; idempotent."""
        now = self.clock()
        self._send([command for entry in entries for _, command in self._consequences(entry, now)])
        self.wrote(entries, range(len(self.proofs.each)))

    def parts(self, entries: Sequence[Revocation]) -> dict[int, list[Command]]:
        """The commands that write *entries*, by shard."""
        now = self.clock()
        found: dict[int, list[Command]] = {}
        for entry in entries:
            for shard, command in self._consequences(entry, now):
                found.setdefault(shard, []).append(command)
        return found

    def wrote(self, entries: Sequence[Revocation], shards: Container[int]) -> None:
        """Report how long the entries of *shards* took until they were in Redis."""
        for entry in entries:
            if shard_of(entry.user_id, len(self.proofs.each)) in shards:
                self.on_written(max(0.0, (self.clock() - entry.at).total_seconds()))

    def _send(self, commands: Sequence[Command]) -> None:
        if commands:
            with _translated():
                self.client.pipeline(commands)

    def _consequences(self, entry: Revocation, now: datetime) -> Iterator[tuple[int, Command]]:
        """The commands that make Redis agree with *entry*, each with the shard that its key is in."""
        shard = shard_of(entry.user_id, len(self.key_names.each))
        for command in self._endings(entry, self.key_names.each[shard], now):
            yield shard, command
        if entry.email is not None:
            # Roles and status must never be stale, even if the copy has a higher version than a restored SQL.
            spared = entry.row_version if entry.epoch is None else None
            yield from self.drop_copies(entry.user_id, entry.email, spared)

    def _endings(self, entry: Revocation, names: IndexKeys, now: datetime) -> Iterator[Command]:
        """The commands that revoke tokens."""
        life_ms = max(1000, int((entry.expires_at - now).total_seconds() * 1000))
        if entry.session_id is not None:
            yield self._tombstone(entry.user_id, entry.session_id, life_ms)
        if entry.token_id is not None:
            why = json.dumps({"reason": entry.reason, "revoked_at": entry.at.isoformat()})
            yield ("SET", names.blacklist(entry.token_id), why, "PX", life_ms)
            yield ("DEL", names.token(entry.token_id))
        if entry.epoch is not None:
            yield self.epoch_script.command([names.epoch(entry.user_id)], [entry.epoch, life_ms])

    def _put_back(self, token: Token, more: Mapping[str, object]) -> Command:
        """The command that writes the record of a token that is valid in SQL."""
        life_s = self._life_s(token)
        record = json.dumps({**_record(token, life_s), **more})
        return self.record_script.command(
            [self.key_names.about(token.user_id).token(token.token_id)],
            [record, life_s, BOUND_RECORD.decode()],
        )

    def _alive(self, token: Token) -> list[Command]:
        """The commands that write session and epoch of a valid token."""
        margin_ms, names = self._copy_ms(token), self.key_names.about(token.user_id)
        return [
            self.alive_script.command([names.session(token.session_id)], [margin_ms]),
            self.epoch_script.command([names.epoch(token.user_id)], [token.epoch, margin_ms]),
        ]

    def _tombstone(self, user_id: str, session_id: str, life_ms: int) -> Command:
        return ("SET", self.key_names.about(user_id).session(session_id), ENDED, "PX", life_ms)

    def _epoch_command(self, user_id: UserId, epoch: int) -> Command:
        key = self.key_names.about(user_id).epoch(user_id)
        return self.epoch_script.command([key], [epoch, self._longest_ms()])

    def _life_s(self, token: Token) -> int:
        """The remaining life of *token* (seconds); at least one, because Redis accepts no less."""
        return max(1, token.expires_at - int(self.clock().timestamp()))

    def _copy_ms(self, token: Token) -> int:
        """How long keys about *token* are needed (milliseconds)."""
        left_s = max(0, token.expires_at - int(self.clock().timestamp()))
        return (left_s + self.profile.leeway_s + COPY_MARGIN_S) * 1000

    def _longest_ms(self) -> int:
        """How long keys about a token issued now are needed (milliseconds)."""
        return (self.profile.longest_s + self.profile.leeway_s + COPY_MARGIN_S) * 1000


def _record(token: Token, life_s: int) -> dict[str, object]:
    """The record of an issued token in Redis."""
    return {
        "user_id": token.user_id,
        "roles": token.keys.roles,
        "session_id": token.session_id,
        "epoch": token.epoch,
        "expires_in": life_s,
        "created_at": token.issued_at,
    }


@contextmanager
def _translated() -> Iterator[None]:
    """
    Translate errors of Redis into StoreUnavailable.

    This includes errors that are not an outage (a key of another type): SQL is authoritative, and the
    reconciler retries revocations that could not be written, and logs each failure.
    """
    try:
        yield
    except CacheError as error:
        raise StoreUnavailable(f"redis: {error}") from error
