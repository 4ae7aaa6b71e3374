"""Challenges: an authenticated text that says by itself whose it is, what for and until when."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.accounts.challenges import (
    CHALLENGE_LIFE_S,
    Aim,
    Challenge,
    ChallengeTexts,
    new_challenge,
)
from authsvc.domain.errors import CodeInvalid
from authsvc.domain.values.identifiers import UserId

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
TEXTS = ChallengeTexts(b"k" * 32)
NUMBERS = st.integers(0, 2**63 - 1)
CHALLENGES = st.builds(
    Challenge,
    id=st.uuids().map(str),
    aim=st.sampled_from(Aim),
    user_id=st.none() | st.uuids(version=4).map(lambda ident: UserId(str(ident))),
    password_version=NUMBERS,
    round=NUMBERS,
    expires_at=st.just(NOW + timedelta(seconds=CHALLENGE_LIFE_S)),
    device_id=st.none() | st.text(min_size=1, max_size=200).filter(lambda name: name.isprintable()),
)


@given(CHALLENGES)
def test_a_challenge_is_read_back_as_it_was_made(challenge):
    """Every field of it, as text and as bytes."""
    assert TEXTS.read(TEXTS.text(challenge), challenge.aim, now=NOW) == challenge
    assert TEXTS.open(TEXTS.seal(challenge), challenge.aim, now=NOW) == challenge


@given(CHALLENGES, st.data())
def test_a_challenge_that_was_altered_is_none(challenge, data):
    """Whichever bit it is, and whatever is cut off or added."""
    sealed = TEXTS.seal(challenge)
    place = data.draw(st.integers(0, len(sealed) * 8 - 1))
    altered = bytearray(sealed)
    altered[place // 8] ^= 1 << place % 8
    cut = data.draw(st.integers(1, len(sealed)))

    for wrong in (bytes(altered), sealed[:-cut], sealed[cut:], sealed + b"\0"):
        with pytest.raises(CodeInvalid):
            TEXTS.open(wrong, challenge.aim, now=NOW)


@given(CHALLENGES)
def test_a_challenge_is_for_one_purpose_and_one_key(challenge):
    """What was made to begin one thing ends no other."""
    text = TEXTS.text(challenge)
    for aim in set(Aim) - {challenge.aim}:
        with pytest.raises(CodeInvalid):
            TEXTS.read(text, aim, now=NOW)
    with pytest.raises(CodeInvalid):
        ChallengeTexts(b"K" * 32).read(text, challenge.aim, now=NOW)


def test_a_challenge_ends_after_five_minutes():
    """At that second, however exact the clock is that made it."""
    made = new_challenge(Aim.LOGIN, now=NOW.replace(microsecond=999_999))
    text = TEXTS.text(made)

    assert TEXTS.read(text, Aim.LOGIN, now=NOW + timedelta(seconds=299.9)) == made
    with pytest.raises(CodeInvalid):
        TEXTS.read(text, Aim.LOGIN, now=NOW + timedelta(seconds=300))


@pytest.mark.parametrize("suffix", ["=", "==", "\n", " ", "A"])
def test_a_text_has_one_spelling(suffix):
    """What is nearly base64url is refused before it is looked at."""
    text = TEXTS.text(new_challenge(Aim.LOGIN, now=NOW))

    with pytest.raises(CodeInvalid):
        TEXTS.read(text + suffix, Aim.LOGIN, now=NOW)
    with pytest.raises(CodeInvalid):
        TEXTS.read(text.replace("A", "á", 1), Aim.LOGIN, now=NOW)


def test_each_challenge_has_an_id_of_its_own():
    """It is what is used up."""
    one, other = (new_challenge(Aim.LOGIN, now=NOW) for _ in range(2))

    assert one.id != other.id
    assert replace(one, id=other.id) == other
