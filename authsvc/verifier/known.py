"""The revocations that a verifier knows. Each is dropped once all tokens that it concerns have expired."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from authsvc.verifier.claims import Claims, MachineClaims


class Until(NamedTuple):
    """
    When an entry may be dropped: only when both clocks have passed it.

    Tokens expire by the wall clock, which may jump; the monotonic clock does not.
    """

    wall_s: float
    monotonic_s: float

    def is_over(self, now: Until) -> bool:
        """True once *now* is later on both clocks."""
        return now.wall_s >= self.wall_s and now.monotonic_s >= self.monotonic_s


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """One item of the feed; *kind* says what ``subject`` identifies."""

    kind: str
    subject: str
    epoch: int
    until: Until


@dataclass(frozen=True, slots=True)
class Known:
    """
    Ended sessions, revoked tokens, users with a raised epoch.

    One thread adds and drops entries, any thread reads: each step is a single operation on a dict.
    """

    sessions: dict[str, Until] = field(default_factory=dict)
    tokens: dict[str, Until] = field(default_factory=dict)
    #: Tokens of the user with a lower epoch are revoked.
    epochs: dict[str, tuple[int, Until]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sessions) + len(self.tokens) + len(self.epochs)

    def is_dead(self, claims: Claims | MachineClaims) -> bool:
        """True if a token with *claims* is revoked, its session has ended, or its user's epoch is higher."""
        # For a machine, the feed has its client in place of a user, and its secret in place of a session.
        owner = claims.client_id if isinstance(claims, MachineClaims) else claims.user_id
        epoch, _ = self.epochs.get(owner, (0, None))
        return claims.session_id in self.sessions or claims.token_id in self.tokens or claims.epoch < epoch

    def add(self, news: News) -> None:
        """Add *news*; order and repetition do not change the result."""
        if news.kind == "user":
            epoch, until = self.epochs.get(news.subject, (news.epoch, news.until))
            self.epochs[news.subject] = (max(epoch, news.epoch), max(until, news.until))
        else:
            place = self.sessions if news.kind == "session" else self.tokens
            place[news.subject] = max(place.get(news.subject, news.until), news.until)

    def forget(self, now: Until) -> None:
        """Drop expired entries."""
        for place in (self.sessions, self.tokens):
            for subject in [subject for subject, until in place.items() if until.is_over(now)]:
                del place[subject]
        for user_id in [user_id for user_id, (_, until) in self.epochs.items() if until.is_over(now)]:
            del self.epochs[user_id]

    def without_epochs(self) -> Known:
        """
        The entries that stay valid after a restore of the log: ids of sessions and tokens are never reused.
        The restore may have lost a raised epoch; keeping it would refuse users who logged in since.
        """
        return Known(dict(self.sessions), dict(self.tokens))
