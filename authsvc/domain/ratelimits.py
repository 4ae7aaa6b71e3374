"""Limits: the rules by name, what happens when they cannot be counted, and the rate limiter's protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from hashlib import sha256
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Protocol

from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.errors import RateLimited, StoreUnavailable
from authsvc.domain.groups import Steps, alone, call
from authsvc.domain.values.identifiers import SessionId
from authsvc.domain.values.limits import Attempt, Limit

_attempts: ContextVar[list[Attempt] | None] = ContextVar("attempts", default=None)


class Rule(StrEnum):
    """Every limit by its public name."""

    LOGIN_IP = "login-ip"
    LOGIN_ACCOUNT = "login-account"
    LOGIN_DEVICE = "login-device"
    PASSWORD_SESSION = "password-session"  # noqa: S105 - the name of a limit
    PASSWORD_ACCOUNT = "password-account"  # noqa: S105 - the name of a limit
    REGISTER_IP = "register-ip"
    REFRESH = "refresh"
    CLIENT_IP = "client-ip"
    MAIL_IP = "mail-ip"
    MAIL_ADDRESS = "mail-address"
    CODE_IP = "code-ip"
    EXPORT = "export"
    TOKEN_CLIENT = "token-client"  # noqa: S105 - the name of a limit
    SECOND_FACTOR = "second-factor"


class OnOutage(Enum):
    """What happens to an attempt that cannot be counted."""

    REFUSE = "refuse"
    ALLOW = "allow"


#: Guessing passwords or filling the database must not be free while the counters are away; a refresh
#: token cannot be guessed, and refusing it would log everybody out.  The same goes for a client's secret.
ON_OUTAGE: Mapping[Rule, OnOutage] = {
    Rule.LOGIN_IP: OnOutage.REFUSE,
    Rule.LOGIN_ACCOUNT: OnOutage.REFUSE,
    Rule.LOGIN_DEVICE: OnOutage.REFUSE,
    Rule.PASSWORD_SESSION: OnOutage.REFUSE,
    Rule.PASSWORD_ACCOUNT: OnOutage.REFUSE,
    Rule.REGISTER_IP: OnOutage.REFUSE,
    Rule.REFRESH: OnOutage.ALLOW,
    Rule.CLIENT_IP: OnOutage.ALLOW,
    Rule.MAIL_IP: OnOutage.REFUSE,
    Rule.MAIL_ADDRESS: OnOutage.REFUSE,
    Rule.CODE_IP: OnOutage.ALLOW,
    Rule.EXPORT: OnOutage.ALLOW,
    Rule.TOKEN_CLIENT: OnOutage.ALLOW,
    # Six digits can be guessed. Recovery codes and passkeys cannot: they override this.
    Rule.SECOND_FACTOR: OnOutage.REFUSE,
}


#: Wrong client secrets from one address.  Not a setting, because it never affects a correct secret.
CLIENT_IP_LIMIT = Limit(name=Rule.CLIENT_IP.value, quota=100, window_s=900)

#: Their subjects begin with the account's.
_OF_ACCOUNTS = {
    *(Rule.LOGIN_ACCOUNT, Rule.LOGIN_DEVICE, Rule.PASSWORD_SESSION, Rule.PASSWORD_ACCOUNT),
    Rule.SECOND_FACTOR,
}


class Numbered(Protocol):
    """A device, identified by its own number."""

    @property
    def nonce(self) -> bytes:
        """The number."""


class RateLimiter(Protocol):
    """Counts attempts atomically, before their work is done."""

    def attempts(self, asked: Sequence[tuple[Limit, str]]) -> Sequence[Attempt | StoreUnavailable]:
        """Count one attempt of each subject; StoreUnavailable, also raised, for what cannot be counted."""

    def refund(self, attempt: Attempt) -> None:
        """Uncount *attempt*; a failure is logged, never raised."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The configured limits; a rule missing in *by_rule* is ``off``."""

    by_rule: Mapping[Rule, Limit]
    limiter: RateLimiter
    audit: AuditLog

    def take(self, rule: Rule, subject: str, *, on_outage: OnOutage | None = None) -> Attempt | None:
        """
        Count one attempt of *subject*; None if nothing was counted (``off``, or allowed in an outage).

        *on_outage* overrides what *rule* does in an outage.

        Raises:
            RateLimited: the limit is exhausted.
            StoreUnavailable: it cannot be counted, and *rule* refuses in an outage.
        """
        return alone(self.taking(rule, subject, on_outage=on_outage))

    def taking(self, rule: Rule, subject: str, *, on_outage: OnOutage | None = None) -> Steps[Attempt | None]:
        """The steps of :meth:`take`."""
        attempt = yield from self._attempt(rule, subject, on_outage or ON_OUTAGE[rule])
        _note(attempt)
        if attempt is not None and not attempt.allowed:
            self.audit.record(_reached(rule, subject))
            raise RateLimited(attempt)
        return attempt

    def has_room(self, rule: Rule, subject: str) -> bool:
        """
        Count one attempt of *subject*, who is not the caller; not shown in the answer's headers.

        False if the limit is exhausted; raises StoreUnavailable as :meth:`take` does.
        """
        attempt = alone(self._attempt(rule, subject, ON_OUTAGE[rule]))
        return attempt is None or attempt.allowed

    def counts(self, rule: Rule) -> bool:
        """False if *rule* is ``off``."""
        return rule in self.by_rule

    def refund(self, attempt: Attempt | None) -> None:
        """Uncount what :meth:`take` counted, if anything; never raises."""
        if attempt is not None:
            self.limiter.refund(attempt)
            _note_refund(attempt)

    def _attempt(self, rule: Rule, subject: str, on_outage: OnOutage) -> Steps[Attempt | None]:
        limit = self.by_rule.get(rule)
        if limit is None:
            return None
        try:
            return (yield from call(self.limiter.attempts, (limit, subject)))
        except StoreUnavailable:
            if on_outage is OnOutage.REFUSE:
                raise
            self.audit.record(Event(Action.LIMIT_UNCOUNTED, detail=rule))
            return None


def record_attempts() -> list[Attempt]:
    """Start recording the attempts that this thread counts, for response headers."""
    attempts: list[Attempt] = []
    _attempts.set(attempts)
    return attempts


def account_subject(account: str) -> str:
    """The subject of an account: SHA-256 of its canonical address (or of what was typed as one), in hex."""
    return sha256(account.encode("utf-8", "surrogatepass")).hexdigest()


def device_subject(account: str, device: Numbered) -> str:
    """The subject of a device: that of its account, and the device's own number."""
    return f"{account}.{device.nonce.hex()}"


def session_subject(account: str, session_id: SessionId) -> str:
    """The subject of a session: that of its account, and the session's id."""
    return f"{account}.{session_id}"


def ip_subject(ip: str) -> str:
    """
    The subject of a client address: IPv4 as it is, IPv6 by its /64 (``2001:db8:1:2::``).

    One household usually has a whole /64. Texts that are not addresses share the subject ``unknown``.
    """
    try:
        address = ip_address(ip)
    except ValueError:
        return "unknown"
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), 64), strict=False).network_address)


def tightest(attempts: Iterable[Attempt]) -> Attempt:
    """The most restrictive of *attempts* (at least one): refused, then fewest left, then longest to wait."""
    return min(attempts, key=lambda attempt: (attempt.allowed, attempt.remaining, -attempt.reset_s))


def policy_header(limit: Limit) -> str:
    """The value of ``RateLimit-Policy``: quota and window in seconds."""
    return f'"{limit.name}";q={limit.quota};w={limit.window_s}'


def state_header(attempt: Attempt) -> str:
    """The value of ``RateLimit``: attempts left and seconds until that changes."""
    return f'"{attempt.limit.name}";r={attempt.remaining};t={attempt.reset_s}'


def _reached(rule: Rule, subject: str) -> Event:
    """The audit event of an exhausted limit, with the subject in its field."""
    if rule in _OF_ACCOUNTS:
        return Event(Action.LIMIT_REACHED, account=subject.partition(".")[0], detail=rule)
    if rule is Rule.REFRESH:
        return Event(Action.LIMIT_REACHED, session_id=subject, detail=rule)
    if rule is Rule.EXPORT:
        return Event(Action.LIMIT_REACHED, user_id=subject, detail=rule)
    if rule is Rule.TOKEN_CLIENT:
        return Event(Action.LIMIT_REACHED, actor_id=subject, detail=rule)
    return Event(Action.LIMIT_REACHED, client_ip=subject, detail=rule)


def _note(attempt: Attempt | None) -> None:
    attempts = _attempts.get()
    if attempt is not None and attempts is not None:
        attempts.append(attempt)


def _note_refund(attempt: Attempt) -> None:
    attempts = _attempts.get()
    if attempts is not None and attempt in attempts:
        attempts[attempts.index(attempt)] = replace(attempt, remaining=attempt.remaining + 1)
