"""
What is revoked, who decides it, and when Redis may be believed.

SQL holds the truth: an append-only log.  Its numbers are handed out in one order and committed in another;
a :class:`Horizon` says up to which of them nothing is still to come.  Redis holds a fast copy, and a
*marker*: the number up to which every entry was replayed into it.  A check believes Redis only while the
marker is proven (:class:`Proof`); whatever is missing, unproven or failing is asked of SQL.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.groups import Steps, alone, call
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId
from authsvc.domain.values.shards import PAGES, Sharded

T = TypeVar("T")

#: How much longer than a token its tombstones live in Redis (seconds): leeway is added to it.
COPY_MARGIN_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """
    One entry of the log.

    ``session_id`` ends that session, ``token_id`` names the token that was shown for it, ``epoch`` cuts
    off the user's earlier tokens, ``email`` says that copies of the user are out of date: those from
    before ``row_version``, or all of them where that is None.
    """

    #: Position in the log; 0 for an entry that is repeated and not new.
    seq: int
    at: datetime
    reason: str
    #: From here on no token can be alive that this entry is about.
    expires_at: datetime
    user_id: UserId
    session_id: SessionId | None = None
    token_id: TokenId | None = None
    epoch: int | None = None
    email: Email | None = None
    row_version: int | None = None

    @property
    def trace(self) -> str:
        """A few letters that another entry of the same number would not have: ids and times are its own."""
        parts = (self.at.isoformat(), self.reason, self.user_id, self.session_id, self.token_id, self.epoch)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in one log: an entry's number, and the trace that tells it from an entry of another log."""

    seq: int = 0
    trace: str = ""

    def text(self) -> str:
        """What Redis keeps."""
        return f"{self.seq}:{self.trace}"

    @classmethod
    def parse(cls, raw: bytes | None) -> Position:
        """The position that :meth:`text` wrote; the beginning for anything else."""
        found = _POSITION.fullmatch(raw or b"")
        return cls(int(found[1]), found[2].decode()) if found else cls()

    @classmethod
    def of(cls, entry: Revocation | None) -> Position:
        """The place of *entry*; None: the beginning."""
        return cls() if entry is None else cls(entry.seq, entry.trace)


@dataclass(frozen=True, slots=True)
class Sight:
    """
    One look at the log: the highest visible entry, and the *writers* that may still commit lower numbers.

    *found* are the entries that were asked for by number, as far as there are any; *is_behind* is True where
    the next number would not be above the head.
    """

    head: Position = Position()
    writers: frozenset[str] = frozenset()
    found: tuple[Position, ...] = ()
    is_behind: bool = False

    def contradicts(self, position: Position) -> bool:
        """True if another entry has the number of *position*."""
        return bool(position.trace) and any(
            entry.seq == position.seq and entry.trace != position.trace for entry in self.found
        )


class Horizon:
    """
    Up to which entry nothing is still to come, from looks at the log, without anybody being waited for.

    A writer is under way before it takes a number, and until its entries are visible or gone.  So as soon
    as all have ended that were under way behind a look, nothing can appear any more below the head of that
    look.  Whoever began later has higher numbers.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        #: The last entry below which nothing is to come; None while that is not known.
        self.settled: Position | None = None
        #: When the look was begun that settled it (monotonic seconds).
        self.settled_at_s = -math.inf
        self._newest = 0
        self._awaited: tuple[Position, frozenset[str], float] | None = None

    def look(self, sight: Sight, began_s: float) -> None:
        """Take note of *sight*, begun at *began_s*; its writers were asked for after its head."""
        if sight.head.seq < self._newest:
            self._forget()  # SQL was restored: what was known is about another log
        self._newest = sight.head.seq
        if self._awaited is not None:
            head, writers, at_s = self._awaited
            if left := writers & sight.writers:
                self._awaited = (head, left, at_s)
                return
            self._settle(head, at_s)
        if sight.writers:
            self._awaited = (sight.head, sight.writers, began_s)
        else:
            self._settle(sight.head, began_s)
            self._awaited = None

    def hear(self, position: Position) -> None:
        """Others know that nothing is still to come below *position*."""
        if self.settled is None or position.seq > self.settled.seq:
            self.settled = position

    def _settle(self, head: Position, at_s: float) -> None:
        if self.settled is None or head.seq >= self.settled.seq:
            self.settled, self.settled_at_s = head, at_s


@dataclass(frozen=True, slots=True)
class Committed(Generic[T]):
    """What SQL now holds, and the log entries that went with it."""

    value: T
    entries: tuple[Revocation, ...] = ()
    #: The row of the audit trail that the caller gave was stored, too.
    is_noted: bool = False


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """A committed change; ``is_complete`` is False while Redis has yet to hear of it (202)."""

    value: T
    is_complete: bool


_POSITION = re.compile(rb"(0|[1-9][0-9]{0,15}):([0-9a-f]{16}|)")
#: No epoch and no number of the log lies beyond: from here on Redis' scripts would round.
HIGHEST = 1 << 53
_MOST_DIGITS = len(str(HIGHEST))
#: No generation is trusted.
_NOTHING = (0, -1, 0.0)


class Verdict(Enum):
    """What the fast copy says of a token with a good signature."""

    ACTIVE = "active"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKeys:
    """What a check needs to know of a token to look it up, and to compare it with what was issued."""

    token_id: TokenId
    session_id: SessionId
    user_id: UserId
    roles: tuple[str, ...]
    epoch: int
    #: SHA-256 of the signed text (the JWS signing input, RFC 7515 §2), base64url.
    digest: str


class IndexAnswer(NamedTuple):
    """One answer of Redis about one token; each field as read, None where nothing was."""

    record: bytes | None
    session: bytes | None
    epoch: bytes | None
    blacklist: bytes | None
    is_proven: bool


def whole_number(raw: bytes | None) -> int | None:
    """The number that Redis holds as *raw*; None for nothing and for what no counter can have reached."""
    if raw is None or not raw.isdigit() or len(raw) > _MOST_DIGITS or int(raw) > HIGHEST:
        return None
    return int(raw)


def judge(token: TokenKeys, answer: IndexAnswer) -> Verdict:
    """A yes needs presence and proof, a no needs proof; all else is for SQL to say."""
    if not answer.is_proven:
        return Verdict.UNKNOWN
    is_issued = _is_issued(token, answer.record)
    epoch = whole_number(answer.epoch)
    is_cut_off = epoch is not None and epoch > token.epoch
    if answer.blacklist is not None or answer.session == b"ended" or is_cut_off or is_issued is False:
        return Verdict.REVOKED
    if is_issued is None or answer.session != b"alive" or epoch != token.epoch:
        return Verdict.UNKNOWN
    return Verdict.ACTIVE


#: How a record begins that is bound to the text of its token; what follows is the digest and a quote.
BOUND_RECORD = b'{"digest": "'


def _is_issued(token: TokenKeys, record: bytes | None) -> bool | None:
    """
    True if *record* was made for *token*, False if for another token of the same id, None if nobody can say.

    A record made by the issuer is bound to the signed text.  One that SQL's answer put back, or that the
    first release wrote, has no digest: it is bound to the session, user, roles and epoch, since SQL knows
    those and not the text.
    """
    if record is None:
        return None
    if record.startswith(BOUND_RECORD):
        return record.startswith(b'%b%b"' % (BOUND_RECORD, token.digest.encode()))
    try:
        # Ours, and read on every check after Redis was refilled: the strict reader takes 30 µs.
        found = json.loads(record)
    except (ValueError, RecursionError):
        return None
    claims = {
        "session_id": token.session_id,
        "user_id": token.user_id,
        "roles": list(token.roles),
        "epoch": token.epoch,
    }
    if not isinstance(found, dict) or not claims.keys() <= found.keys():
        return None
    return all(found[name] == value for name, value in claims.items())


class Proof:
    """
    Whether the marker proves, to this process, that Redis holds every revocation.

    The marker must be present and not behind what the process knows; the connection that read it must
    have been there before the process last compared Redis with SQL, and must not be older than the
    connection that the comparison itself went over (a restore or a failover breaks connections); the
    comparison must be younger than *max_staleness_s* (seconds).  Connections are told apart by their
    generation, a number that rises with each one made to the same server.

    A server may become a replica and a primary again without closing a connection.  Where that can happen,
    somebody must have seen within *max_unwatched_s* (seconds) that it has not.
    """

    def __init__(self, max_staleness_s: float, max_unwatched_s: float = math.inf) -> None:
        self._max_staleness_s = max_staleness_s
        self._max_unwatched_s = max_unwatched_s
        #: When the server of the last comparison was last seen to be the same (monotonic seconds).
        self._watched_at_s = -math.inf
        self._lock = threading.Lock()
        #: A marker below this entry proves nothing to this process.
        self.known = 0
        #: The highest entry that this process has committed, or has seen in SQL.
        self.seen = 0
        #: Oldest and newest trusted generation, and when the comparison was; one value, read at once.
        self._trusted = _NOTHING

    def holds(self, marker: bytes | None, generation: int, now_s: float) -> bool:
        """True if *marker*, read over connection *generation* at *now_s* (monotonic seconds), proves."""
        oldest, newest, compared_at_s = self._trusted
        reached = whole_number(marker)
        return (
            reached is not None
            and oldest <= generation <= newest
            and reached >= self.known
            and now_s - compared_at_s <= self._max_staleness_s
            and now_s - self._watched_at_s <= self._max_unwatched_s
        )

    def still_connected(self, generation: int) -> bool:
        """True if the last comparison went over connection *generation*."""
        oldest, newest, _ = self._trusted
        return oldest == generation <= newest

    def trusts(self, generation: int) -> bool:
        """True if connection *generation* existed at the last comparison, and is as young as its own."""
        oldest, newest, _ = self._trusted
        return oldest <= generation <= newest

    @property
    def compared_at_s(self) -> float:
        """When the last comparison was; another figure after each."""
        return self._trusted[2]

    def compared(self, *, seq: int, over: int, newest: int, now_s: float) -> None:
        """Redis held every entry up to *seq*, seen over connection *over*; *newest* existed before."""
        with self._lock:
            self.known = max(self.known, seq)
            self.seen = max(self.seen, seq)
            self._watched_at_s = now_s
            self._trusted = (over, newest, now_s)

    def watched(self, now_s: float) -> None:
        """At *now_s* the server of the last comparison was still the same, over the same connection."""
        self._watched_at_s = now_s

    def learned(self, seq: int) -> None:
        """Entry *seq* is in SQL and perhaps not in Redis: a marker behind it proves nothing."""
        with self._lock:
            self.known = max(self.known, seq)
            self.seen = max(self.seen, seq)

    def saw(self, seq: int) -> None:
        """Entry *seq* is in SQL: a log that ends before it was restored."""
        with self._lock:
            self.seen = max(self.seen, seq)

    def distrust(self) -> None:
        """Believe nothing until the next comparison."""
        with self._lock:
            self._trusted = _NOTHING


class RevocationIndex(Protocol):
    """The fast copy; raises StoreUnavailable when it cannot be written."""

    def write(self, entries: Sequence[Revocation]) -> None:
        """Carry *entries* over: tombstones, epochs, blacklist, dropped copies.  Repeating is harmless."""


@dataclass(frozen=True, slots=True)
class Revocations:
    """Carries what SQL committed over to Redis, and says whether it arrived."""

    index: RevocationIndex
    proofs: Sharded[Proof]

    def publish(self, committed: Committed[T]) -> Outcome[T]:
        """
        Write the entries of *committed* to Redis.

        When Redis cannot be written the outcome is incomplete: the reconciler of any process finishes
        the job, and this process distrusts Redis until that has happened.
        """
        return alone(self.publishing(committed))

    def publishing(self, committed: Committed[T]) -> Steps[Outcome[T]]:
        """The steps of :meth:`publish`."""
        if not committed.entries:
            return Outcome(committed.value, is_complete=True)
        for entry in committed.entries:
            self.proofs.about(entry.user_id).saw(entry.seq)
        try:
            yield from call(self._write, committed.entries)
        except StoreUnavailable:
            for entry in committed.entries:
                self._distrust(entry)
            return Outcome(committed.value, is_complete=False)
        return Outcome(committed.value, is_complete=True)

    def _write(self, many: Sequence[Sequence[Revocation]]) -> Sequence[None]:
        self.index.write([entry for entries in many for entry in entries])
        return [None] * len(many)

    def _distrust(self, entry: Revocation) -> None:
        """Redis may lack *entry*: the markers of the shards that it is about must reach it first."""
        self.proofs.about(entry.user_id).learned(entry.seq)
        if entry.email is not None:
            self.proofs.each[PAGES].learned(entry.seq)
