"""POST /v1/me/password."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.api.driver import Person, at_once, code_of
from tests.rig import PASSWORD

NEW = "an entirely different passphrase"


def change(person: Person, current: str, new: str):
    """Ask for *new* in place of *current*."""
    return person.call("POST", "/v1/me/password", json={"current_password": current, "new_password": new})


def test_the_calling_session_lives_and_all_others_end(api):
    """204; the caller's tokens go on, every other session's are dead, the new password alone logs in."""
    person = api.someone()
    others = [person.log_in(), person.log_in()]

    answer = change(person, PASSWORD, NEW)

    assert (answer.status_code, answer.data) == (204, b"")
    assert person.is_accepted()
    assert [other.is_accepted() for other in others] == [False, False]
    assert {code_of(api.refresh(other.refresh_token)) for other in others} == {"session_ended"}
    assert person.refresh().is_accepted()
    assert code_of(api.log_in(person.email)) == "invalid_credentials"
    assert api.log_in(person.email, NEW).status_code == 200


@pytest.mark.parametrize("current", ["wrong horse battery staple", "", "\x00", "\ud800", "x" * 50_000])
def test_a_wrong_current_password_changes_nothing(pg_api, current):
    """403 `wrong_password`."""
    person = pg_api.someone()
    other = person.log_in()

    answer = change(person, current, NEW)

    assert (answer.status_code, code_of(answer)) == (403, "wrong_password")
    assert other.is_accepted()
    assert pg_api.log_in(person.email).status_code == 200


@pytest.mark.parametrize("new", ["", "short", "x" * 1025, "passwordpassword", "with\x00in the middle of it"])
def test_the_policy_holds_for_the_new_one(pg_api, new):
    """422, and the field is named."""
    person = pg_api.someone()

    answer = change(person, PASSWORD, new)

    assert (answer.status_code, list(answer.json["errors"])) == (422, ["new_password"])
    assert pg_api.log_in(person.email).status_code == 200


def test_the_new_one_may_not_be_the_address(pg_api):
    """As at registration."""
    person = pg_api.someone()

    answer = change(person, PASSWORD, person.email.upper())

    assert answer.status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"current_password": PASSWORD},
        {"new_password": NEW},
        {"current_password": PASSWORD, "new_password": None},
        {"current_password": 1, "new_password": NEW},
        {"current_password": PASSWORD, "new_password": NEW, "keep": True},
    ],
)
def test_another_form_is_refused(pg_api, body):
    """422."""
    answer = pg_api.someone().call("POST", "/v1/me/password", json=body)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")


def test_of_many_changes_from_one_old_password_one_wins(pg_api):
    """Compare and swap: exactly one 204, and its password is the one that logs in."""
    person = pg_api.someone()
    wanted = [f"passphrase of contestant {number}" for number in range(16)]

    answers = at_once(lambda new: change(person, PASSWORD, new), wanted)

    assert Counter(answer.status_code for answer in answers) == {204: 1, 403: 15}
    log_ins = [pg_api.log_in(person.email, new).status_code for new in wanted]
    assert [status == 200 for status in log_ins] == [answer.status_code == 204 for answer in answers]
    assert code_of(pg_api.log_in(person.email)) == "invalid_credentials"


def test_logins_that_race_a_change_leave_no_session_behind(make_api):
    """A session opened with the old password is dead once the change is acknowledged, whoever was first."""
    api = make_api(SESSION_MAX_PER_USER="50")
    person = api.someone()

    def act(number: int):
        return change(person, PASSWORD, NEW) if number == 8 else api.log_in(person.email)

    answers = at_once(act, range(16))

    assert Counter(answer.status_code for answer in answers).keys() <= {200, 204, 401}
    opened = [answer.json["access_token"] for answer in answers if answer.status_code == 200]
    assert {api.verify(token) for token in opened} <= {401}
    assert person.is_accepted()
