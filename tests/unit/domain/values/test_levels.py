"""Levels: what was shown, how strong it is, and what may be asked of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.values.levels import Acr, Level, Method, Requirement, level_of

NOW = datetime(2026, 11, 30, 12, 0, 0, 500_000, tzinfo=UTC)
NOW_S = int(NOW.timestamp())

methods = st.lists(st.sampled_from(Method), min_size=1, max_size=4)
levels = methods.map(lambda shown: level_of(*shown, at=NOW))


@pytest.mark.parametrize(
    ("shown", "acr", "amr"),
    [
        ((Method.PASSWORD,), "aal1", ("pwd",)),
        ((Method.PASSWORD, Method.CODE), "aal2", ("pwd", "otp", "mfa")),
        ((Method.PASSWORD, Method.PASSKEY), "aal2", ("pwd", "pop", "mfa")),
        ((Method.PASSWORD, Method.VERIFIED_PASSKEY), "phr", ("pwd", "pop", "user", "mfa")),
        ((Method.VERIFIED_PASSKEY,), "phr", ("pop", "user", "mfa")),
    ],
)
def test_what_was_shown_decides_the_level(shown, acr, amr):
    """Class and methods as RFC 8176 names them, in one order; the time in whole seconds."""
    assert level_of(*shown, at=NOW) == Level(Acr(acr), amr, NOW_S)


def test_classes_are_ordered():
    """From a password to what resists phishing."""
    assert sorted(Acr, key=lambda acr: acr.rank) == [Acr.AAL1, Acr.AAL2, Acr.PHR]


@given(before=levels, shown=methods)
def test_a_step_up_lowers_nothing(before, shown):
    """The class stays or rises, no method is lost, and the time is that of the step-up."""
    later = NOW + timedelta(hours=1)

    after = before.after(*shown, at=later)

    assert after.acr.rank == max(before.acr.rank, level_of(*shown, at=NOW).acr.rank)
    assert set(before.amr) <= set(after.amr)
    assert after.auth_time == NOW_S + 3600
    assert ("mfa" in after.amr) == (after.acr is not Acr.AAL1)


@pytest.mark.parametrize(
    ("acr", "wanted", "is_met"),
    [
        *((acr, None, True) for acr in Acr),
        *((acr, wanted, acr.rank >= wanted.rank) for acr in Acr for wanted in Acr),
    ],
)
def test_a_stronger_class_is_enough(acr, wanted, is_met):
    """A weaker one is not."""
    assert Requirement(acr=wanted).is_met_by(Level(acr, (), NOW_S), NOW_S) is is_met


@pytest.mark.parametrize(
    ("max_age_s", "age_s", "is_met"),
    [(300, 300, True), (300, 301, False), (0, 0, True), (0, 1, False), (0, -5, True), (300, 300.999, True)],
)
def test_the_age_is_counted_in_whole_seconds(max_age_s, age_s, is_met):
    """As the time is noted; where another node's clock is ahead, the age is below 0."""
    level = Level(Acr.AAL1, ("pwd",), NOW_S)

    assert Requirement(max_age_s=max_age_s).is_met_by(level, NOW_S + age_s) is is_met


@pytest.mark.parametrize(
    ("requirement", "is_met"),
    [
        (Requirement(), True),
        (Requirement(acr=Acr.AAL1), False),
        (Requirement(max_age_s=10**9), False),
    ],
)
def test_without_a_level_only_nothing_can_be_asked(requirement, is_met):
    """A token of an earlier version says nothing of how its user logged in."""
    assert requirement.is_met_by(None, NOW_S) is is_met


@given(level=levels, acr=st.none() | st.sampled_from(Acr), max_age_s=st.none() | st.integers(0, 1000))
def test_both_parts_must_hold(level, acr, max_age_s):
    """Asking for two things is asking for each."""
    now_s = NOW_S + 500

    both = Requirement(acr=acr, max_age_s=max_age_s).is_met_by(level, now_s)

    assert both == (
        Requirement(acr=acr).is_met_by(level, now_s)
        and Requirement(max_age_s=max_age_s).is_met_by(level, now_s)
    )
