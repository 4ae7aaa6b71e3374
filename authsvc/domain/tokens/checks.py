"""The token check: is this access token good, now?  The hot path; it knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from authsvc.domain.errors import Forbidden, StepUpRequired, StoreUnavailable, TokenInvalid
from authsvc.domain.revocations import IndexAnswer, TokenKeys, Verdict, judge
from authsvc.domain.sessions import Standing
from authsvc.domain.tokens.access import AccessToken, MachineToken, Token, TokenReader, is_about
from authsvc.domain.tokens.machines import MachineStanding
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import SessionId
from authsvc.domain.values.levels import Requirement

if TYPE_CHECKING:
    import socket


class Source(StrEnum):
    """The store that decided a check."""

    REDIS = "redis"
    SQL = "sql"
    NONE = "none"


class TokenIndex(Protocol):
    """The copy in Redis, read in one round trip and refilled; raises StoreUnavailable."""

    def look_up(self, token: TokenKeys) -> IndexAnswer:
        """Record, session, epoch, blacklist and marker at once."""

    def look_up_with_user(self, token: TokenKeys) -> tuple[IndexAnswer, User | None]:
        """The same and a proven copy of the token's user, if there is one."""

    def refill(self, token: AccessToken, standing: Standing | None) -> None:
        """Write the state from SQL to Redis; never over a tombstone or a higher epoch."""

    def refill_machine(self, token: MachineToken, standing: MachineStanding | None) -> None:
        """The same of a machine's token."""


class Standings(Protocol):
    """What SQL holds of a session and its user; raises StoreUnavailable."""

    def standing(self, session_id: SessionId, /) -> Standing | None:
        """The session with its user; None where either is gone."""


class MachineStandings(Protocol):
    """What SQL holds of a client and its secrets; raises StoreUnavailable."""

    def standing(self, token: MachineToken, /) -> MachineStanding | None:
        """The client of *token*; None where it or the secret is gone."""


class CheckObserver(Protocol):
    """Counts *times* checks with their result and who decided them."""

    def __call__(self, result: str, source: Source, /, *, times: int = 1) -> None: ...


class PolledReads(Protocol):
    """Reads as an event loop watches them: one at a time is under way."""

    @property
    def sockets(self) -> Mapping[socket.socket, bool]:
        """To be watched for answers, True: for writing, too; others, or none, after any call."""

    @property
    def due_s(self) -> float:
        """When, on the monotonic clock, what was asked must have been answered."""

    def abandon(self) -> None:
        """Wait for no answer any longer."""


class PolledKeys(NamedTuple):
    """What is read about a token, as it is sent, and the shard where that is."""

    shard: int
    keys: bytes
    #: The key of the copy of its user; empty where that is not asked for.
    user_key: bytes = b""


class PolledAnswers(NamedTuple):
    """One answer for each token that was asked about, in that order; the copies of users by its place."""

    tokens: list[IndexAnswer]
    #: As they are stored, from under the same proof as the answer of the token.
    users: dict[int, bytes | None]


class PolledIndex(Protocol):
    """The copy in Redis, read without waiting: many tokens with one read; raises StoreUnavailable."""

    @property
    def reads(self) -> PolledReads:
        """What :meth:`ask` begins, and :meth:`answers` ends."""

    def is_open(self) -> bool:
        """True if it makes sense to ask."""

    @property
    def has_users(self) -> bool:
        """True where there are copies of users."""

    def keys_of(self, token: TokenKeys, *, with_user: bool = False) -> PolledKeys:
        """What :meth:`ask` is given for *token*; *with_user* also for the copy of its user."""

    def ask(self, keys: Sequence[PolledKeys]) -> None:
        """Begin to read."""

    def answers(self) -> PolledAnswers | None:
        """What was asked for; None while the answer is not there."""

    def read_user(self, user_id: str, raw: bytes | None) -> User | None:
        """The user in the copy *raw*; None where there is no good one, or one too large for the loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChecks:
    """Answers for access tokens: from Redis with proof, else from SQL, else not at all."""

    reader: TokenReader
    index: TokenIndex
    sessions: Standings
    machines: MachineStandings
    observe: CheckObserver
    clock: Clock

    def check(self, text: str) -> AccessToken:
        """
        The claims of *text* if it is the token of a person, and good on this very request.

        Raises:
            TokenInvalid: forged, expired, revoked, its session over or its user changed.
            Forbidden: the good token of a machine.
            StoreUnavailable: neither store can prove an answer.
        """
        return require_person(self.check_any(text))

    def check_any(self, text: str) -> Token:
        """The same for people and machines; a machine's token is bad once its secret or client is gone."""
        token = self._read(text)
        return self._decide(token, self._ask_index(token))

    def check_with_user(self, text: str) -> tuple[AccessToken, User | None]:
        """Like :meth:`check`, with the token's user if the answer of Redis had a copy; None: ask for it."""
        token = self._read(text)
        try:
            answer, user = self.index.look_up_with_user(token.keys)
        except StoreUnavailable:
            return require_person(self._decide(token, Verdict.UNKNOWN)), None
        return require_person(self._decide(token, judge(token.keys, answer))), user

    def _read(self, text: str) -> Token:
        try:
            return self.reader.read(text, now=self.clock())
        except TokenInvalid:
            self.observe("invalid", Source.NONE)
            raise

    def _decide(self, token: Token, verdict: Verdict) -> Token:
        """*token*, if it is good: by the *verdict* of Redis, or where that has none by SQL."""
        if verdict is Verdict.UNKNOWN:
            return self._ask_sql(token)
        self.observe(verdict.value, Source.REDIS)
        if verdict is Verdict.REVOKED:
            raise TokenInvalid("revoked")
        return token

    def is_good(self, token: TokenKeys, answer: IndexAnswer) -> bool:
        """
        True if *answer* proves that *token*, whose signature held, is good; it depends on nothing else.

        Any other is not refused by this: :meth:`check` decides about it, and counts it.
        """
        return judge(token, answer) is Verdict.ACTIVE

    def count_good(self, times: int) -> None:
        """Count so many tokens that :meth:`is_good` found good, and whose requests were answered."""
        if times:
            self.observe(Verdict.ACTIVE.value, Source.REDIS, times=times)

    def _ask_index(self, token: Token) -> Verdict:
        """What Redis proves of *token*; an outage proves nothing."""
        try:
            answer = self.index.look_up(token.keys)
        except StoreUnavailable:
            return Verdict.UNKNOWN
        return judge(token.keys, answer)

    def _ask_sql(self, token: Token) -> Token:
        """What SQL says of *token*; Redis is updated, if it is reachable."""
        try:
            is_good, tell_redis = self._by_sql(token)
        except StoreUnavailable:
            self.observe("unavailable", Source.NONE)
            raise
        self.observe("active" if is_good else "revoked", Source.SQL)
        # The answer does not depend on it: the next check asks SQL again.  The client's hooks count the
        # failure.
        with suppress(StoreUnavailable):
            tell_redis()
        if not is_good:
            raise TokenInvalid("revoked")
        return token

    def _by_sql(self, token: Token) -> tuple[bool, Callable[[], None]]:
        """Whether *token* is good, and what tells Redis."""
        if isinstance(token, MachineToken):
            machine = self.machines.standing(token)
            is_good = machine is not None and machine.is_good_for(token)
            return is_good, partial(self.index.refill_machine, token, machine)
        standing = self.sessions.standing(token.session_id)
        is_good = standing is not None and is_about(token, standing.user) and standing.is_good(self.clock())
        return is_good, partial(self.index.refill, token, standing)


def require_person(token: Token) -> AccessToken:
    """*token*; raises Forbidden for that of a machine."""
    if isinstance(token, MachineToken):
        raise Forbidden
    return token


def require_roles(token: AccessToken, wanted: frozenset[str]) -> None:
    """Raise Forbidden unless *token*, whose roles are current, holds every one of *wanted*."""
    if not wanted.issubset(token.roles):
        raise Forbidden


def require_level(token: AccessToken, wanted: Requirement, now: datetime) -> None:
    """Raise StepUpRequired unless *token* says that its user has shown at *now* what is *wanted*."""
    if not wanted.is_met_by(token.level, now.timestamp()):
        raise StepUpRequired(wanted)
