"""The forms of values, for any text."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.settings import (
    Address,
    LimitSetting,
    Settings,
    SettingsError,
)
from authsvc.settings.kinds import InvalidValue, limit, whole
from authsvc.settings.locations import addresses, networks, origins
from tests.unit.settings.env import (
    DEVELOPMENT,
)

UNIT_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
HOSTS = st.one_of(st.from_regex(r"[a-z][a-z0-9.-]{0,20}[a-z0-9]", fullmatch=True), st.ip_addresses().map(str))


def accepted(kind, text):
    """Return the value, or None when *text* is refused; any other exception fails the test."""
    try:
        return kind.parse(text)
    except InvalidValue:
        return None


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_whole_numbers_are_read_within_their_range_alone(number):
    """Bounds are inclusive, and no number is too long to be refused."""
    expected = number if 4 <= number <= 10**12 else None

    assert accepted(whole(4, 10**12), str(number)) == expected


@given(st.text(alphabet="0123456789 +-_.eEx\n\t٣४Ⅷ²,", max_size=6))
def test_whole_numbers_have_one_spelling(text):
    """What int() forgives (signs, spaces, underscores, foreign digits, zeros in front) is refused."""
    value = accepted(whole(0, 10**6), text)

    assert value is None or str(value) == text


@given(
    quota=st.integers(1, 1_000_000),
    count=st.integers(1, 30),
    unit=st.sampled_from(sorted(UNIT_S)),
    plural=st.booleans(),
)
def test_limits_are_a_quota_and_a_window(quota, count, unit, plural):
    """Both forms and both numbers of the unit are read."""
    ending = f"{unit}{'s' if plural else ''}"

    assert limit().parse(f"{quota}/{count}{ending}") == LimitSetting(
        quota=quota, window_s=count * UNIT_S[unit]
    )
    assert limit().parse(f"{quota}/{ending}") == LimitSetting(quota=quota, window_s=UNIT_S[unit])


@given(st.text(alphabet="0123456789/minutehordays ofx-", max_size=16))
def test_texts_that_are_no_limit_are_refused_and_nothing_else_happens(text):
    """A limit that is read is positive and bounded."""
    value = accepted(limit(), text)

    assert value is None or (1 <= value.quota <= 1_000_000 and 1 <= value.window_s <= 30 * 86_400)


@given(st.lists(st.tuples(HOSTS, st.integers(1, 65_535)), min_size=1, max_size=5))
def test_address_lists_are_read_in_order(pairs):
    """IPv6 addresses stand in brackets and come out without them."""
    text = ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in pairs)

    assert addresses().parse(text) == tuple(Address(host=host, port=port) for host, port in pairs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("https://app.example.com", ("https://app.example.com",)),
        (
            "https://app.example.com:8443, http://localhost:3000",
            ("https://app.example.com:8443", "http://localhost:3000"),
        ),
        ("http://[::1]:3000", ("http://[::1]:3000",)),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
        ("http://192.0.2.1,https://under_score.example", ("http://192.0.2.1", "https://under_score.example")),
    ],
)
def test_origins_are_read_in_order(text, expected):
    """As browsers write them, and returned so."""
    assert origins().parse(text) == expected


@given(st.lists(st.ip_addresses(), max_size=5))
def test_networks_are_read_in_order(ips):
    """A bare address is a network of one."""
    assert networks().parse(",".join(map(str, ips))) == tuple(map(ip_network, ips))


@given(
    name=st.sampled_from(
        [
            "PORT",
            "TRUSTED_PROXIES",
            "DATABASE_URL",
            "REDIS_URL",
            "REDIS_HOST",
            "REDIS_SENTINELS",
            "JWT_ISSUER",
        ]
    ),
    text=st.one_of(st.text(), st.text(alphabet="redis:/[]@%#?.0123456789postgql,", max_size=30)),
)
def test_no_text_makes_reading_fail_in_another_way(name, text):
    """Whatever stands in a variable, the answer is settings or a list of problems."""
    env = {**DEVELOPMENT, name: text}

    names = problem_names(env)

    assert not names or name in names


def problem_names(env: dict[str, str]) -> set[str]:
    """Return the names that *env* is refused for; any other exception fails the test."""
    try:
        Settings.from_env(env)
    except SettingsError as refusal:
        return {problem.name for problem in refusal.problems}
    return set()
