"""GET and DELETE /v1/me/sessions."""

from __future__ import annotations

import uuid
from datetime import datetime

import pytest

from tests.api.driver import Person, code_of

PATH = "/v1/me/sessions"


def listed(person: Person) -> list[dict[str, object]]:
    """The person's sessions, as they see them."""
    answer = person.call("GET", PATH)
    assert answer.status_code == 200
    body: dict[str, list[dict[str, object]]] = answer.json or {}
    assert set(body) == {"items"}
    return body["items"]


def test_own_sessions_are_listed_and_the_current_one_is_marked(api):
    """Exactly the fields of the contract, the last used first, nobody else's."""
    api.someone()
    first = api.someone()
    second = first.log_in(device_id="phone")

    items = listed(first)

    assert [item["id"] for item in items] == [second.session_id, first.session_id]
    assert [item["current"] for item in items] == [False, True]
    assert [item["device_id"] for item in items] == ["phone", None]
    for item in items:
        assert set(item) == {
            "id", "current", "device_id", "ip", "user_agent", "created_at", "last_used_at", "expires_at",
        }  # fmt: skip
        assert item["ip"] == "127.0.0.1"
        created, used, ends = (
            datetime.fromisoformat(str(item[name])) for name in ("created_at", "last_used_at", "expires_at")
        )
        assert created <= used < ends


def test_a_check_is_no_use_and_a_refresh_is(make_api):
    """``last_used_at`` moves at login and refresh alone, ``expires_at`` with it."""
    api = make_api()
    api.clock.stop()
    person = api.someone()
    before = listed(person)[0]
    api.clock.tick(60)
    assert person.is_accepted()
    assert listed(person)[0] == before

    person = person.refresh()

    after = listed(person)[0]
    assert after["created_at"] == before["created_at"]
    for name in ("last_used_at", "expires_at"):
        moved = datetime.fromisoformat(str(after[name])) - datetime.fromisoformat(str(before[name]))
        assert moved.total_seconds() == 60


def test_one_session_can_be_ended(api):
    """204; its tokens are dead at once, the list is shorter, doing it again is 404."""
    person = api.someone()
    other = person.log_in()

    answer = person.call("DELETE", f"{PATH}/{other.session_id}")

    assert (answer.status_code, answer.data) == (204, b"")
    assert not other.is_accepted()
    assert code_of(api.refresh(other.refresh_token)) == "session_ended"
    assert person.is_accepted()
    assert [item["id"] for item in listed(person)] == [person.session_id]
    assert person.call("DELETE", f"{PATH}/{other.session_id}").status_code == 404


def test_the_current_session_can_be_ended(api):
    """As if logged out."""
    person = api.someone()

    assert person.call("DELETE", f"{PATH}/{person.session_id}").status_code == 204
    assert not person.is_accepted()


def test_what_belongs_to_somebody_else_does_not_exist(api):
    """404, the same as for an id that nobody has, and nothing ends."""
    person, stranger = api.someone(), api.someone()
    mangled = [
        stranger.session_id,
        str(uuid.uuid4()),
        stranger.session_id.upper(),
        f"{{{person.session_id}}}",
        person.session_id.replace("-", ""),
        "current",
        "x",
        "%00",
        "٣" * 32,
    ]

    answers = [person.call("DELETE", f"{PATH}/{session_id}") for session_id in mangled]

    assert {(answer.status_code, code_of(answer)) for answer in answers} == {(404, "not_found")}
    assert len({answer.json["detail"] for answer in answers}) == 1
    assert person.is_accepted()
    assert stranger.is_accepted()


def test_all_sessions_can_be_ended(api):
    """204; every token of the user is dead, this one, too; another user's are not."""
    person, stranger = api.someone(), api.someone()
    others = [person.log_in(), person.refresh()]

    answer = person.call("DELETE", PATH)

    assert (answer.status_code, answer.data) == (204, b"")
    assert [one.is_accepted() for one in (person, *others, stranger)] == [False, False, False, True]
    assert code_of(api.refresh(others[0].refresh_token)) == "session_ended"
    fresh = person.log_in()
    assert fresh.is_accepted()
    assert fresh.claims()["epoch"] > person.claims()["epoch"]
    assert [item["id"] for item in listed(fresh)] == [fresh.session_id]


def test_all_but_the_current_one_can_be_ended(api):
    """``?except=current``: this session's tokens go on, earlier ones of it, too."""
    person = api.someone()
    later = person.refresh()
    other = person.log_in()

    answer = later.call("DELETE", f"{PATH}?except=current")

    assert answer.status_code == 204
    assert [one.is_accepted() for one in (person, later, other)] == [True, True, False]
    assert later.refresh().is_accepted()


@pytest.mark.parametrize(
    "query",
    ["?except=", "?except", "?except=all", "?Except=current", "?except=current&except=current", "?x=1"],
)
def test_a_query_that_is_not_understood_ends_nothing(pg_api, query):
    """A typing error could end too much: 422."""
    person = pg_api.someone()

    answer = person.call("DELETE", PATH + query)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert person.is_accepted()


def test_an_expired_session_is_not_listed(make_api):
    """Nor can it be ended."""
    api = make_api(SESSION_IDLE_TTL="3600")
    old = api.someone()
    api.clock.tick(3601)
    person = old.log_in()

    assert [item["id"] for item in listed(person)] == [person.session_id]
    assert person.call("DELETE", f"{PATH}/{old.session_id}").status_code == 404
