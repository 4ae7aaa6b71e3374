"""What was acknowledged, by whom to whom: the book that every fault is held to."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fault.asking import Answer

#: docs/failure-modes.md: a 202 holds in every worker within 2 s; the rest is for a busy machine.
ACCEPTED_FOR_S = 10.0
#: Whoever was not answered when they refreshed has REFRESH_GRACE_SECONDS (60, in these tests) to ask again.
REFRESH_AGAIN_S = 30.0
#: No 503 takes longer, whatever the fault: the deadline of a request is 5 s, the rest is for a busy machine.
REFUSAL_S = 12.0
#: What must never be: acknowledged and lost, done twice, revoked and accepted, somebody else's, a 500.
WRONGS = ("lost", "doubled", "accepted", "foreign", "crashed")
#: How many revoked tokens are tried again after each fault, the newest of each account.
REMEMBERED = 12


@dataclass(slots=True)
class Tally:
    """How often something was acknowledged, and how often it was asked for and not answered."""

    acknowledged: int = 0
    unanswered: int = 0

    def add(self, *, doubts: int = 0) -> None:
        """It was acknowledged, after as many *doubts*."""
        self.acknowledged += 1
        self.unanswered += doubts

    def allows(self, count: int) -> bool:
        """True if *count* is neither too few nor too many."""
        return self.acknowledged <= count <= self.acknowledged + self.unanswered


@dataclass(slots=True)
class Held:
    """A living session and its tokens."""

    session_id: str
    access: list[str]
    refresh: str
    rotations: int = 0
    #: Since when a refresh has not been answered (monotonic seconds).
    unsure_since_s: float | None = None
    is_leaving: bool = False

    def is_too_unsure(self) -> bool:
        """True if a refresh now might come after the grace time."""
        return self.unsure_since_s is not None and time.monotonic() - self.unsure_since_s > REFRESH_AGAIN_S


@dataclass(frozen=True, slots=True)
class Revoked:
    """A token of a session whose end was acknowledged at *at_s*; with 202 it takes a moment."""

    access: str
    session_id: str
    at_s: float
    is_complete: bool

    def must_be_refused(self) -> bool:
        """True if no worker may accept it any more."""
        return self.is_complete or time.monotonic() - self.at_s > ACCEPTED_FOR_S


@dataclass(slots=True)
class Account:
    """A person of the load; one thread at a time acts for them."""

    email: str
    id: str
    #: More than one while a change of password has not been answered.
    passwords: list[str]
    #: What their preferences may say: the last acknowledged number (0: nothing), and those without an answer.
    numbers: set[int] = field(default_factory=lambda: {0})
    number: int = 0
    #: When the last of them was acknowledged (monotonic seconds).
    numbered_at_s: float = 0.0
    sessions: list[Held] = field(default_factory=list)
    revoked: list[Revoked] = field(default_factory=list)
    #: Sessions that may live and that nobody holds: of logins without an answer.
    strays: int = 0
    #: Whom they have signed up: address to id, None while that was not answered.
    newcomers: dict[str, str | None] = field(default_factory=dict)
    #: Entries of the revocation log by reason, and ``mistyped``: attempts on an address that nobody has.
    done: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))

    @property
    def mistyped(self) -> str:
        """The address that they type when they are mistaken."""
        return f"not-{self.email}"

    def ended(self, held: Held, *, is_complete: bool) -> None:
        """The end of *held* was acknowledged."""
        self.sessions.remove(held)
        now_s = time.monotonic()
        self.revoked += [Revoked(access, held.session_id, now_s, is_complete) for access in held.access[-2:]]
        del self.revoked[:-REMEMBERED]

    def lose_sight_of(self, held: Held) -> None:
        """*held* may live or not; it is not used any more."""
        self.sessions.remove(held)
        self.strays += 1


@dataclass(slots=True)
class Findings:
    """What one thread, or the check after the fault, saw that must not be; lists of words."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    #: An older number, read within the 2 s that a change may take where Redis could not be written.
    stale: list[str] = field(default_factory=list)
    #: A good token or password was refused.
    refused: list[str] = field(default_factory=list)
    #: An answer that nobody expects, or a 503 without Retry-After or that took too long.
    odd: list[str] = field(default_factory=list)
    #: Connections that broke without an answer.
    broken: list[str] = field(default_factory=list)
    #: Seconds that each 503 took.
    refusals_s: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def judge(self, what: str, answer: Answer, *expected: int) -> bool:
        """Note *answer*; True if it is one of *expected*, False for an honest refusal and for a finding."""
        self.answers[f"{what} {answer.status}"] += 1
        if answer.status in expected:
            return True
        if answer.status == 0:
            self.broken.append(f"{what} after {answer.seconds:.1f} s")
        elif answer.status == 503:
            self._refusal(what, answer)
        elif answer.status >= 500:
            self.crashed.append(f"{what} {answer.status} {answer.body}")
        elif answer.status == 401:
            self.refused.append(f"{what} {answer.body}")
        else:
            self.odd.append(f"{what} {answer.status} {answer.body}")
        return False

    def _refusal(self, what: str, answer: Answer) -> None:
        self.refusals_s.append(answer.seconds)
        if not (answer.retry_after or "").isdigit():
            self.odd.append(f"{what} 503 without Retry-After")
        if answer.seconds > REFUSAL_S:
            self.odd.append(f"{what} 503 after {answer.seconds:.1f} s")

    def add(self, other: Findings) -> None:
        """Take over what *other* found."""
        for name in (*WRONGS, "refused", "odd", "stale", "broken"):
            getattr(self, name).extend(getattr(other, name))
        self.refusals_s += other.refusals_s
        self.answers.update(other.answers)

    def faults(self, *, may_break: bool = False, may_lag: bool = False) -> dict[str, list[str]]:
        """
        Everything that is wrong.

        *may_break*: processes are killed under their connections; *may_lag*: Redis takes no invalidations.
        """
        names = [*WRONGS, "refused", "odd"]
        names += [] if may_break else ["broken"]
        names += [] if may_lag else ["stale"]
        return {name: getattr(self, name)[:5] for name in names if getattr(self, name)}


#: The people of one world.
Ledger = list[Account]
