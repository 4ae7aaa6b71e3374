"""POST /v1/auth/refresh."""

from __future__ import annotations

import base64
from collections import Counter

import psycopg
import pytest

from tests.api.driver import at_once, code_of


def test_a_refresh_gives_the_next_pair(api):
    """The same session, two new tokens; the access token before it goes on until it expires."""
    first = api.someone()

    second = first.refresh()

    assert second.session_id == first.session_id
    assert second.refresh_token != first.refresh_token
    assert second.claims()["jti"] != first.claims()["jti"]
    assert first.is_accepted()
    assert second.is_accepted()
    assert second.refresh().is_accepted()


def test_the_parent_yields_the_same_successor_within_the_grace_time(api):
    """Parallel tabs and lost responses: the same refresh token again, and the chain does not fork."""
    first = api.someone()
    second = first.refresh()

    again = first.refresh()

    assert again.refresh_token == second.refresh_token
    assert again.is_accepted()
    assert again.refresh().is_accepted()


def test_the_parent_is_reuse_after_the_grace_time(make_api):
    """The session ends with every token of it, the thief's newer ones, too."""
    api = make_api()
    first = api.someone()
    other_session = first.log_in()
    second = first.refresh()
    api.clock.tick(11)

    answer = api.refresh(first.refresh_token)

    assert (answer.status_code, code_of(answer)) == (401, "refresh_reused")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert not first.is_accepted()
    assert not second.is_accepted()
    assert code_of(api.refresh(second.refresh_token)) == "session_ended"
    assert code_of(api.refresh(first.refresh_token)) == "session_ended"
    assert other_session.is_accepted()


def test_the_grace_time_ends_when_it_says(make_api):
    """Ten seconds are within it, the next microsecond is not."""
    api = make_api()
    api.clock.stop()
    first = api.someone()
    second = first.refresh()
    api.clock.tick(10)
    assert api.refresh(first.refresh_token).json["refresh_token"] == second.refresh_token
    api.clock.tick(0.000_001)

    answer = api.refresh(first.refresh_token)

    assert code_of(answer) == "refresh_reused"


@pytest.mark.parametrize("clock_back_s", [0, 5])
def test_without_grace_the_parent_is_reuse_at_the_very_moment(make_api, clock_back_s):
    """The clock has not moved, or another node's clock is behind: the session ends."""
    api = make_api(REFRESH_GRACE_SECONDS="0")
    api.clock.stop()
    first = api.someone()
    second = first.refresh()
    api.clock.tick(-clock_back_s)

    answer = api.refresh(first.refresh_token)

    assert (answer.status_code, code_of(answer)) == (401, "refresh_reused")
    assert not second.is_accepted()


def test_a_rotation_by_a_clock_that_was_far_ahead_does_not_prolong_the_grace(make_api):
    """An hour ahead for a moment: the parent is no good for an hour and ten seconds."""
    api = make_api()
    api.clock.stop()
    first = api.someone()
    api.clock.tick(3600)
    second = first.refresh()
    api.clock.tick(-3600)

    answer = api.refresh(first.refresh_token)

    assert (answer.status_code, code_of(answer)) == (401, "refresh_reused")
    assert not second.is_accepted()


def test_a_grandparent_is_reuse_at_once(api):
    """Grace is for the immediate parent alone."""
    first = api.someone()
    third = first.refresh().refresh()

    answer = api.refresh(first.refresh_token)

    assert (answer.status_code, code_of(answer)) == (401, "refresh_reused")
    assert not third.is_accepted()


def test_50_refreshes_of_one_token_move_the_counter_by_one(make_api):
    """All of them get the one successor; nobody is logged out."""
    api = make_api()
    api.clock.stop()  # the grace time does not end meanwhile
    person = api.someone()

    answers = at_once(lambda _: api.refresh(person.refresh_token), range(50))

    assert Counter(answer.status_code for answer in answers) == {200: 50}
    assert len({answer.json["refresh_token"] for answer in answers}) == 1
    with psycopg.connect(api.env["DATABASE_URL"]) as connection:
        query = "SELECT counter FROM sessions WHERE id = %s"
        assert connection.execute(query, [person.session_id]).fetchone() == (1,)
    assert api.refresh(answers[0].json["refresh_token"]).status_code == 200


def test_without_grace_one_of_many_refreshes_wins_and_the_rest_end_the_session(make_api):
    """One successor at most, and it is dead as soon as the second copy of its parent shows up."""
    api = make_api(REFRESH_GRACE_SECONDS="0")
    person = api.someone()

    answers = at_once(lambda _: api.refresh(person.refresh_token), range(32))

    winners = [answer for answer in answers if answer.status_code == 200]
    losers = {code_of(answer) for answer in answers if answer.status_code != 200}
    assert len(winners) == 1
    assert "refresh_reused" in losers
    assert losers <= {"refresh_reused", "session_ended"}
    assert api.verify(winners[0].json["access_token"]) == 401
    assert code_of(api.refresh(winners[0].json["refresh_token"])) == "session_ended"


def test_refreshes_that_race_a_logout_leave_nothing_alive(pg_api):
    """Whoever comes first: after the logout every token that was handed out is dead."""
    person = pg_api.someone()

    def act(number: int):
        return pg_api.log_out(access=person.access) if number == 16 else pg_api.refresh(person.refresh_token)

    answers = at_once(act, range(32))

    assert Counter(answer.status_code for answer in answers).keys() <= {200, 204, 401}
    pairs = [answer.json for answer in answers if answer.status_code == 200]
    assert {pg_api.verify(pair["access_token"]) for pair in pairs} <= {401}
    assert {code_of(pg_api.refresh(pair["refresh_token"])) for pair in pairs} <= {"session_ended"}


def decoded(token: str) -> bytearray:
    """The bytes of a refresh token."""
    return bytearray(base64.urlsafe_b64decode(token + "=="))


def encoded(raw: bytes | bytearray) -> str:
    """The reverse."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_a_forged_token_harms_no_session(api):
    """Every byte counts, there is one spelling, and 401 is all that happens."""
    person = api.someone()
    real = person.refresh_token
    flipped = []
    for position in range(len(decoded(real))):
        raw = decoded(real)
        raw[position] ^= 1
        flipped.append(encoded(raw))
    spellings = [real + "=", real + "==", real + "A", real[:-1], real[1:], f" {real}", f"{real}\n", real * 2]
    others = ["", "x", ".", "ä" * 70, "A" * 70, encoded(bytes(52)), encoded(b"\xff" * 52), person.access]

    for forged in (*flipped, *spellings, *others):
        answer = api.refresh(forged)

        assert (answer.status_code, code_of(answer)) == (401, "refresh_invalid"), forged
    assert person.is_accepted()
    assert person.refresh().is_accepted()


@pytest.mark.parametrize("value", [None, 1, True, [], {}, "a\x00", "\ud800"])
def test_what_is_no_text_that_can_be_stored_is_a_mistake_in_form(pg_api, value):
    """422, and the field is named."""
    answer = pg_api.post("/v1/auth/refresh", {"refresh_token": value})

    assert (answer.status_code, list(answer.json["errors"])) == (422, ["refresh_token"])


def test_idle_life_moves_with_each_refresh_and_absolute_life_never_does(make_api):
    """Used daily a session lives on until its absolute end, and not a moment longer."""
    api = make_api(SESSION_IDLE_TTL="7200", SESSION_MAX_TTL="10800")
    api.clock.stop()
    person = api.someone()
    assert person.pair["refresh_expires_in"] == 7200
    api.clock.tick(7100)
    person = person.refresh()
    assert person.pair["refresh_expires_in"] == 3700
    api.clock.tick(3699)
    person = person.refresh()
    assert (person.pair["refresh_expires_in"], person.pair["expires_in"]) == (1, 1)
    api.clock.tick(1)

    answer = api.refresh(person.refresh_token)

    assert (answer.status_code, code_of(answer)) == (401, "session_ended")
    api.clock.tick(5)  # the leeway of the access token, which expired with its session
    assert not person.is_accepted()


def test_an_idle_session_ends_and_a_check_does_not_keep_it(make_api):
    """Idle time moves at login and refresh alone."""
    api = make_api(SESSION_IDLE_TTL="3600", REDIS_AUTH_TOKEN_TTL="3600")
    api.clock.stop()
    person = api.someone()
    api.clock.tick(3599)
    assert person.is_accepted()
    api.clock.tick(1)

    answer = api.refresh(person.refresh_token)

    assert (answer.status_code, code_of(answer)) == (401, "session_ended")


def test_a_refresh_brings_the_roles_of_now(api):
    """A token keeps its roles, the next one has the user's."""
    person = api.someone()
    assert person.claims()["roles"] == ["user"]
    api.services.users.change_roles_or_status(person.id, roles=("admin",), status=None, actor=None)
    assert not person.is_accepted()

    promoted = person.refresh()

    assert promoted.claims()["roles"] == ["user", "admin"]
    assert promoted.claims()["epoch"] == person.claims()["epoch"] + 1
    assert promoted.is_accepted()
