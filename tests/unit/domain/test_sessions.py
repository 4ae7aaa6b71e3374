"""Refresh tokens, and what a session's rules make of them."""

from __future__ import annotations

import base64
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.audit import Entry, Event
from authsvc.domain.errors import NotFound, RefreshInvalid
from authsvc.domain.revocations import Committed, Proof, Revocations
from authsvc.domain.sessions import (
    Ending,
    Presented,
    RefreshTokens,
    SessionDirectory,
    SessionPolicy,
    SessionStore,
    Standing,
    parse_refresh_token,
    recognise,
)
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.domain.values.shards import Sharded
from tests.unit.domain.samples import ALICE_ID, NOW, SALT, SESSION_ID, later, session, user

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENS = RefreshTokens(b"0123456789abcdef0123456789abcdef")
SESSION_IDS = st.uuids().map(lambda value: SessionId(str(value)))
COUNTERS = st.integers(min_value=0, max_value=2**32 - 1)
SALTS = st.binary(min_size=16, max_size=16)
POLICY = SessionPolicy(idle_ttl_s=600, max_ttl_s=3600, max_per_user=10, grace_s=10)
#: Whatever can stand in a token, and a little of what cannot.
CHARACTERS = string.ascii_letters + string.digits + "-_+/=. \n\x00é\ud800"


def is_good(text: str, salt: bytes = SALT) -> bool:
    """True for a genuine token; any exception but RefreshInvalid fails the test."""
    try:
        return TOKENS.is_genuine(parse_refresh_token(text), salt)
    except RefreshInvalid:
        return False


@given(SESSION_IDS, COUNTERS, SALTS)
def test_a_token_names_its_session_and_counter(session_id, counter, salt):
    """What is minted is read back, is genuine, and is the same text every time."""
    text = TOKENS.mint(session_id, counter, salt)

    read = parse_refresh_token(text)

    assert (read.session_id, read.counter) == (session_id, counter)
    assert TOKENS.is_genuine(read, salt)
    assert TOKENS.mint(session_id, counter, salt) == text
    assert set(text) <= set(string.ascii_letters + string.digits + "-_")


@pytest.mark.parametrize("position", range(70))
def test_every_changed_character_makes_another_token(position):
    """No character is decoration: each single change is refused, or the token is not genuine."""
    text = TOKENS.mint(SESSION_ID, 7, SALT)
    assert len(text) == 70

    changed = [text[:position] + other + text[position + 1 :] for other in CHARACTERS]

    assert [one for one in changed if one != text and is_good(one)] == []


@given(SESSION_IDS, COUNTERS, st.integers(min_value=0, max_value=70), st.sampled_from(CHARACTERS))
def test_a_token_with_one_character_more_or_less_is_not_genuine(session_id, counter, position, character):
    """Neither in front, nor within, nor behind, nor padding."""
    text = TOKENS.mint(session_id, counter, SALT)

    longer = text[:position] + character + text[position:]
    shorter = text[:position] + text[position + 1 :]

    assert not is_good(longer)
    assert position == len(text) or not is_good(shorter)


@given(st.text(max_size=200) | st.text(alphabet=CHARACTERS, min_size=68, max_size=72))
def test_any_text_is_read_or_refused(text):
    """Nothing else leaves the parser, whatever somebody sends; and nothing forged is genuine."""
    assert not is_good(text)


@given(st.binary(min_size=52, max_size=52))
def test_a_made_up_token_of_the_right_form_is_not_genuine(raw):
    """The form alone is worth nothing: the tag must be the server's."""
    text = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    read = parse_refresh_token(text)

    assert not TOKENS.is_genuine(read, SALT)


@given(SESSION_IDS, COUNTERS, SALTS, SALTS)
def test_a_token_is_worth_nothing_under_another_salt(session_id, counter, salt, other):
    """A session's tokens are its own."""
    text = TOKENS.mint(session_id, counter, salt)

    assert is_good(text, other) is (salt == other)


@given(SESSION_IDS, COUNTERS, SALTS)
def test_a_leaked_database_forges_nothing(session_id, counter, salt):
    """Salt, session and counter without the secret make no token."""
    forged = RefreshTokens(b"another secret of the same length").mint(session_id, counter, salt)

    assert not is_good(forged, salt)


def test_the_secret_is_not_shown():
    """It must not reach a log by way of a repr."""
    assert "0123456789abcdef" not in repr(TOKENS)


@pytest.mark.parametrize(
    ("counter", "rotated_s_ago", "expected"),
    [
        pytest.param(5, 0, Presented.CURRENT, id="current"),
        pytest.param(5, 10_000, Presented.CURRENT, id="current, however old"),
        pytest.param(5, -10, Presented.CURRENT, id="current, rotated by a fast clock"),
        pytest.param(4, 0, Presented.REPEATED, id="parent at once"),
        pytest.param(4, 10, Presented.REPEATED, id="parent at the end of the grace"),
        pytest.param(4, 10.001, Presented.REUSED, id="parent after the grace"),
        pytest.param(4, -5, Presented.REPEATED, id="parent, rotated by a fast clock"),
        pytest.param(4, -5.001, Presented.REUSED, id="parent, rotated by a clock that was wrong"),
        pytest.param(3, 0, Presented.REUSED, id="grandparent within the grace"),
        pytest.param(3, -5, Presented.REUSED, id="grandparent, rotated by a fast clock"),
        pytest.param(0, 0, Presented.REUSED, id="the very first"),
        pytest.param(6, 0, Presented.REUSED, id="from the future: the database was restored"),
    ],
)
def test_a_genuine_token_is_current_repeated_or_reused(counter, rotated_s_ago, expected):
    """The immediate parent alone is forgiven, and only for the grace time."""
    rotated = session(counter=5, rotated_at=later(-rotated_s_ago))

    assert recognise(counter, rotated, now=NOW, grace_s=10) is expected


@pytest.mark.parametrize("rotated_s_ago", [-3600, -5, -0.001, 0, 0.001, 10])
def test_without_grace_the_parent_is_a_reuse_at_any_time(rotated_s_ago):
    """A grace of 0 seconds is a strict rotation: at the very moment too, and whatever another clock says."""
    rotated = session(counter=5, rotated_at=later(-rotated_s_ago))

    assert recognise(4, rotated, now=NOW, grace_s=0) is Presented.REUSED


def test_the_first_token_of_a_session_has_no_parent():
    """Counter 0 is in use: there is nothing that -1 could be forgiven as."""
    fresh = session(counter=0)

    assert recognise(0, fresh, now=NOW, grace_s=10) is Presented.CURRENT
    assert recognise(1, fresh, now=NOW, grace_s=10) is Presented.REUSED


@pytest.mark.parametrize(
    ("used_at_s", "idle_end_s"),
    [(0, 600), (2999, 3599), (3000, 3600), (3001, 3600), (3599, 3600), (4000, 3600)],
)
def test_use_extends_the_idle_end_but_never_the_absolute_one(used_at_s, idle_end_s):
    """Rotation cannot keep a session alive for ever."""
    assert POLICY.idle_end(later(used_at_s), later(3600)) == later(idle_end_s)


@pytest.mark.parametrize(
    ("changes", "at_s", "alive"),
    [
        ({}, 0, True),
        ({}, 59.9, True),
        ({}, 60, False),
        ({"idle_expires_at": later(120)}, 99.9, True),
        ({"idle_expires_at": later(120)}, 100, False),
        ({"revoked_at": NOW, "reason": "logout"}, 0, False),
        ({"revoked_at": later(30), "reason": "logout"}, 0, False),
    ],
)
def test_a_session_is_alive_until_the_first_of_its_ends(changes, at_s, alive):
    """Ended at all, idle for too long, or at its absolute end; ended counts at once, whatever the clock."""
    timed = session(**({"idle_expires_at": later(60), "expires_at": later(100)} | changes))

    assert timed.is_alive(later(at_s)) is alive


def test_a_disabled_user_has_no_good_standing():
    """However alive the session is."""
    assert Standing(session=session(), user=user()).is_good(NOW)
    assert not Standing(session=session(), user=user(status="disabled")).is_good(NOW)
    assert not Standing(session=session(revoked_at=NOW), user=user()).is_good(NOW)


@dataclass
class OneSession:
    """A store that knows one session, and notes what was ended."""

    standing_: Standing | None
    ended: list[SessionId]

    def standing(self, _session_id: SessionId) -> Standing | None:
        """The one."""
        return self.standing_

    def end_free(self, endings: Sequence[Ending]) -> list[Committed[None]]:
        """Note them."""
        self.ended.extend(ending.session_id for ending in endings)
        return [Committed(None) for _ in endings]


class Unread:
    """An audit log that nobody reads."""

    def record(self, event: Event) -> None:
        """Drop it."""

    def draft(self, event: Event) -> Entry:
        """One without a request."""
        return Entry(id="event", at=NOW, action=event.action, session_id=event.session_id)

    def stored(self, entry: Entry) -> None:
        """Drop it."""


class NoIndex:
    """An index that is never reached: nothing was committed."""

    def write(self, entries: object) -> None:
        """Fail."""
        raise AssertionError(entries)


def directory(standing: Standing | None) -> tuple[SessionDirectory, list[SessionId]]:
    """The use case over one session, and what it ended."""
    ended: list[SessionId] = []
    store = cast("SessionStore", OneSession(standing, ended))
    revocations = Revocations(NoIndex(), Sharded((Proof(300),)))
    return SessionDirectory(store=store, revocations=revocations, audit=Unread(), clock=lambda: NOW), ended


def test_the_owner_ends_their_session():
    """And no other is touched."""
    sessions, ended = directory(Standing(session=session(), user=user()))

    sessions.end(SESSION_ID, owner=ALICE_ID)

    assert ended == [SESSION_ID]


@pytest.mark.parametrize(
    ("standing", "owner"),
    [
        pytest.param(None, ALICE_ID, id="unknown"),
        pytest.param(Standing(session=session(), user=user()), UserId("somebody"), id="somebody else's"),
        pytest.param(Standing(session=session(revoked_at=NOW), user=user()), ALICE_ID, id="ended"),
        pytest.param(Standing(session=session(expires_at=NOW), user=user()), ALICE_ID, id="expired"),
    ],
)
def test_what_is_not_a_living_session_of_the_owner_is_not_found(standing, owner):
    """The same answer for all, so that nobody learns which sessions others have."""
    sessions, ended = directory(standing)

    with pytest.raises(NotFound):
        sessions.end(SESSION_ID, owner=owner)

    assert ended == []
