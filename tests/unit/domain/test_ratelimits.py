"""Rules, subjects, headers, and what happens when an attempt cannot be counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.audit import Action, Event
from authsvc.domain.errors import RateLimited, StoreUnavailable
from authsvc.domain.ratelimits import (
    ON_OUTAGE,
    Limits,
    OnOutage,
    Rule,
    account_subject,
    device_subject,
    ip_subject,
    policy_header,
    state_header,
    tightest,
)
from authsvc.domain.tokens.devices import Device
from authsvc.domain.values.limits import Attempt, Limit

if TYPE_CHECKING:
    from collections.abc import Sequence

LOGIN_IP = Limit(name="login-ip", quota=100, window_s=900)


@dataclass
class RecordedEvents:
    """An audit log to look into."""

    events: list[Event] = field(default_factory=list)

    def record(self, event: Event) -> None:
        """Keep *event*."""
        self.events.append(event)


@dataclass
class QuotaForEver:
    """A rate limiter without a clock: its quota is never replenished but by refunds."""

    counted: list[str] = field(default_factory=list)

    def attempts(self, asked: Sequence[tuple[Limit, str]]) -> list[Attempt | StoreUnavailable]:
        """Count each, if there is room."""
        return [self._attempt(limit, subject) for limit, subject in asked]

    def _attempt(self, limit: Limit, subject: str) -> Attempt:
        allowed = len(self.counted) < limit.quota
        if allowed:
            self.counted.append(subject)
        left = limit.quota - len(self.counted)
        return Attempt(limit=limit, subject=subject, allowed=allowed, remaining=left, reset_s=1, receipt="r")

    def refund(self, attempt: Attempt) -> None:
        """Make room again."""
        self.counted.remove(attempt.subject)


class Unreachable:
    """A rate limiter whose store is down."""

    def attempts(self, _asked: Sequence[tuple[Limit, str]]) -> list[Attempt | StoreUnavailable]:
        """Raise StoreUnavailable."""
        raise StoreUnavailable("redis")

    def refund(self, attempt: Attempt) -> None:
        """Fail the test: nothing was counted."""
        pytest.fail(f"refund of {attempt}")


def every_rule(quota: int) -> dict[Rule, Limit]:
    """*quota* attempts a minute for each rule."""
    return {rule: Limit(name=rule, quota=quota, window_s=60) for rule in Rule}


@pytest.fixture
def audit() -> RecordedEvents:
    """Collect the events."""
    return RecordedEvents()


def test_attempts_within_the_quota_are_counted(audit) -> None:
    """The attempt of a counted attempt comes back and can be given back."""
    limiter = QuotaForEver()
    limits = Limits(every_rule(quota=2), limiter, audit)

    attempt = limits.take(Rule.LOGIN_IP, "192.0.2.1")
    assert limiter.counted == ["192.0.2.1"]
    limits.refund(attempt)

    assert attempt is not None
    assert attempt.remaining == 1
    assert limiter.counted == []
    assert audit.events == []


def test_an_exhausted_limit_refuses_with_its_verdict(audit) -> None:
    """Whoever answers knows which limit and for how long; the event names rule and address."""
    limits = Limits(every_rule(quota=1), QuotaForEver(), audit)
    limits.take(Rule.LOGIN_IP, "192.0.2.1")

    with pytest.raises(RateLimited) as refusal:
        limits.take(Rule.LOGIN_IP, "192.0.2.1")

    assert refusal.value.attempt.limit.name == "login-ip"
    assert audit.events == [Event(Action.LIMIT_REACHED, client_ip="192.0.2.1", detail="login-ip")]


@pytest.mark.parametrize("rule", Rule)
def test_a_limit_that_is_off_asks_nobody(rule, audit) -> None:
    """Not even in an outage; and there is nothing to give back."""
    limits = Limits({}, Unreachable(), audit)

    attempt = limits.take(rule, "subject")
    limits.refund(attempt)

    assert attempt is None
    assert audit.events == []


@pytest.mark.parametrize(
    "rule", sorted(set(Rule) - {Rule.REFRESH, Rule.CLIENT_IP, Rule.CODE_IP, Rule.EXPORT, Rule.TOKEN_CLIENT})
)
def test_what_guesses_or_creates_is_refused_uncounted(rule, audit) -> None:
    """Login and registration answer 503 while attempts cannot be counted."""
    limits = Limits(every_rule(quota=5), Unreachable(), audit)

    with pytest.raises(StoreUnavailable):
        limits.take(rule, "subject")


def test_a_refresh_goes_on_uncounted(audit) -> None:
    """It is allowed and written down, and there is nothing to give back."""
    limits = Limits(every_rule(quota=5), Unreachable(), audit)

    attempt = limits.take(Rule.REFRESH, "session")
    limits.refund(attempt)

    assert attempt is None
    assert audit.events == [Event(Action.LIMIT_UNCOUNTED, detail="refresh")]


def test_every_rule_has_an_answer_to_an_outage() -> None:
    """None is left to accident; what cannot be guessed is allowed: a refresh token, a client's secret."""
    allowed = {rule for rule, answer in ON_OUTAGE.items() if answer is OnOutage.ALLOW}

    assert set(ON_OUTAGE) == set(Rule)
    assert allowed == {Rule.REFRESH, Rule.CLIENT_IP, Rule.CODE_IP, Rule.EXPORT, Rule.TOKEN_CLIENT}


def test_a_device_is_counted_apart_and_written_down_with_its_account(audit) -> None:
    """The event names the account as all others do, so that one digest stands for it."""
    device = Device.of("7d8b1d0e-0a53-4be4-93f9-0b0a8bfc1c11", 1)
    subject = device_subject("account", device)
    limits = Limits(every_rule(quota=0), QuotaForEver(), audit)

    with pytest.raises(RateLimited):
        limits.take(Rule.LOGIN_DEVICE, subject)

    assert subject == f"account.{device.nonce.hex()}"
    assert audit.events == [Event(Action.LIMIT_REACHED, account="account", detail="login-device")]


def test_a_session_is_counted_apart_and_written_down_with_its_account(audit) -> None:
    """As a device is."""
    limits = Limits(every_rule(quota=0), QuotaForEver(), audit)

    for rule, subject in ((Rule.PASSWORD_SESSION, "account.session"), (Rule.PASSWORD_ACCOUNT, "account")):
        with pytest.raises(RateLimited):
            limits.take(rule, subject)

    assert audit.events == [
        Event(Action.LIMIT_REACHED, account="account", detail=detail)
        for detail in ("password-session", "password-account")
    ]


@pytest.mark.parametrize(
    ("ip", "subject"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:DB8:1:2::", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
        ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::"),
        ("", "unknown"),
        ("192.0.2.1:443", "unknown"),
        ("010.0.0.1", "unknown"),
        ("\ud800", "unknown"),
    ],
)
def test_a_client_is_counted_by_address_or_network(ip: str, subject: str) -> None:
    """IPv4 by address, however it is written; IPv6 by its /64; what is no address as one client."""
    assert ip_subject(ip) == subject


@given(st.ip_addresses(v=6, network="2000::/3"), st.integers(min_value=0, max_value=2**64 - 1))
def test_every_address_of_a_64_is_one_client(address: IPv6Address, host: int) -> None:
    """No choice of the last 64 bits changes the subject of a network."""
    neighbour = IPv6Address(int(address) >> 64 << 64 | host)

    assert ip_subject(str(neighbour)) == ip_subject(str(address))


def test_an_account_is_counted_without_its_address() -> None:
    """SHA-256 of the address, in hex; whatever was typed as one has a subject."""
    assert account_subject("user@example.com") == (
        "b4c9a289323b21a01c3e940f150eb9b8c542587f1abfd8f0e1cc1ffc5e475514"
    )
    assert len(account_subject("\ud800 no address \x00")) == 64


def test_headers_name_limit_quota_and_time() -> None:
    """As the contract writes them."""
    attempt = Attempt(limit=LOGIN_IP, subject="192.0.2.1", allowed=True, remaining=99, reset_s=900)

    assert policy_header(LOGIN_IP) == '"login-ip";q=100;w=900'
    assert state_header(attempt) == '"login-ip";r=99;t=900'


def test_the_tightest_rule_is_the_one_met_first() -> None:
    """A refusal, then the fewest left, then the longest to wait."""

    def attempt(*, allowed: bool, remaining: int, reset_s: int) -> Attempt:
        return Attempt(limit=LOGIN_IP, subject="s", allowed=allowed, remaining=remaining, reset_s=reset_s)

    many = attempt(allowed=True, remaining=9, reset_s=900)
    last = attempt(allowed=True, remaining=0, reset_s=10)
    last_for_long = attempt(allowed=True, remaining=0, reset_s=20)
    refused = attempt(allowed=False, remaining=0, reset_s=5)

    assert tightest([many, last]) is last
    assert tightest([last, last_for_long, many]) is last_for_long
    assert tightest([many, last_for_long, refused]) is refused
