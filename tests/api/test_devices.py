"""A device that logged in before has a small budget of its own; strangers share one for each account."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from authsvc.api.frame.context import DEVICE_HEADER
from tests.api.driver import Api, Person, at_once, code_of, new_email
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from werkzeug.test import TestResponse

WRONG = "wrong horse battery staple"
NEW_PASSWORD = "a staple that no horse has seen"
LIMITS = {"RATE_LIMIT_LOGIN_ACCOUNT": "10/15minutes", "RATE_LIMIT_LOGIN_DEVICE": "5/15minutes"}


@pytest.fixture(scope="module")
def api(make_module_api) -> Api:
    """Share one application whose strangers have 10 tries and whose devices have 5."""
    made: Api = make_module_api(**LIMITS)
    return made


def log_in(api: Api, email: str, password: str = PASSWORD, *, device: str | None = None) -> TestResponse:
    """Log in, and show a device token."""
    headers = {} if device is None else {DEVICE_HEADER: device}
    return api.post("/v1/auth/login", {"email": email, "password": password}, headers=headers)


def device_of(person: Person) -> str:
    """The token of a device on which *person* logged in."""
    return log_in(person.api, person.email).headers[DEVICE_HEADER]


def statuses(answers: Iterable[TestResponse]) -> Counter[int]:
    """How often each was answered."""
    return Counter(answer.status_code for answer in answers)


def shut_strangers_out(person: Person) -> None:
    """Use the strangers' budget up."""
    assert statuses(log_in(person.api, person.email, WRONG) for _ in range(11)) == {401: 10, 429: 1}


def test_a_login_gives_the_device_a_token_and_nothing_else_does(api):
    """A new one each time, in a header; the body is what it was; failures and refreshes have none."""
    person = api.someone()

    first = log_in(api, person.email)
    again = log_in(api, person.email, device=first.headers[DEVICE_HEADER])

    assert re.fullmatch("[A-Za-z0-9_=-]{80,100}", first.headers[DEVICE_HEADER])
    assert DEVICE_HEADER in again.headers
    assert first.json is not None
    assert "device_token" not in first.json
    for other in (
        log_in(api, person.email, WRONG),
        api.refresh(person.refresh_token),
        person.call("GET", "/v1/me"),
    ):
        assert DEVICE_HEADER not in other.headers


def test_the_owner_logs_in_while_strangers_are_refused(api):
    """And goes on doing so: what the owner gets right costs nothing; a stranger with the password waits."""
    person = api.someone()
    device = device_of(person)
    shut_strangers_out(person)

    answers = [log_in(api, person.email, device=device) for _ in range(7)]

    assert statuses(answers) == {200: 7}
    assert log_in(api, person.email).status_code == 429
    assert log_in(api, person.email, device=answers[-1].headers[DEVICE_HEADER]).status_code == 200


def test_a_device_has_exactly_its_own_tries_whatever_the_parallelism(api):
    """48 guesses at once: 5 are judged; a renewed token is the same device, a second device another."""
    person = api.someone()
    device, second = device_of(person), device_of(person)
    renewed = log_in(api, person.email, device=device).headers[DEVICE_HEADER]

    answers = at_once(lambda n: log_in(api, person.email, WRONG, device=(device, renewed)[n % 2]), range(48))

    assert statuses(answers) == {401: 5, 429: 43}
    refused = log_in(api, person.email, device=device)
    assert (refused.status_code, code_of(refused)) == (429, "rate_limited")
    assert refused.headers["RateLimit-Policy"] == '"login-device";q=5;w=900'
    assert log_in(api, person.email, device=second).status_code == 200
    assert log_in(api, person.email).status_code == 200


def test_failures_of_a_device_are_not_the_strangers(api):
    """Neither budget takes from the other."""
    person = api.someone()
    device = device_of(person)
    assert statuses(log_in(api, person.email, WRONG, device=device) for _ in range(5)) == {401: 5}

    shut_strangers_out(person)


@pytest.mark.parametrize("kind", ["none", "forged", "cut", "text", "not ascii", "others", "empty"])
@pytest.mark.parametrize("known", [True, False])
def test_whatever_is_no_token_of_the_account_is_a_stranger_and_nobody_says_so(api, kind, known):
    """Same status, body and headers, counted in the same budget, for an account that there is or is not."""
    person = api.someone()
    email = person.email if known else new_email()
    token = device_of(person)
    shown = {
        "none": None,
        "forged": token[:8] + ("A" if token[8] != "A" else "B") + token[9:],
        "cut": token[:-8],
        "text": "x" * 2000,
        "not ascii": "\u00e9" * 86,
        "others": device_of(api.someone()),
        "empty": "",
    }[kind]

    answers = [log_in(api, email, WRONG, device=shown) for _ in range(11)]

    assert statuses(answers) == {401: 10, 429: 1}
    left = [answer.headers["RateLimit"].split(";")[:2] for answer in answers]
    assert left == [['"login-account"', f"r={number}"] for number in (*range(9, -1, -1), 0)]
    plain = log_in(api, new_email(), WRONG)
    assert [name for name, _ in answers[0].headers] == [name for name, _ in plain.headers]
    assert {name: answers[0].get_json()[name] for name in ("code", "detail")} == {
        name: plain.get_json()[name] for name in ("code", "detail")
    }


def test_a_token_expires_after_180_days(make_api):
    """Unused for so long, a device is a stranger."""
    api = make_api(**LIMITS)
    person = api.someone()
    device = device_of(person)
    shut_strangers_out(person)

    api.clock.tick(180 * 24 * 3600 - 60)
    in_time = log_in(api, person.email, device=device)
    api.clock.tick(120)
    late = log_in(api, person.email, device=device)

    assert (in_time.status_code, late.status_code) == (200, 429)


def test_a_change_of_password_makes_strangers_of_all_devices_but_the_callers(api):
    """
    Someone who had the old password and collected device tokens counts as a stranger; the owner goes on.
    """
    person = api.someone()
    old = device_of(person)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    changed = person.call("POST", "/v1/me/password", json=body)
    shut_strangers_out(person)

    assert changed.status_code == 204
    assert log_in(api, person.email, NEW_PASSWORD, device=old).status_code == 429
    assert log_in(api, person.email, NEW_PASSWORD, device=changed.headers[DEVICE_HEADER]).status_code == 200


@pytest.mark.parametrize(
    ("off", "expected"),
    [("RATE_LIMIT_LOGIN_DEVICE", {401: 10, 429: 2}), ("RATE_LIMIT_LOGIN_ACCOUNT", {401: 12})],
)
def test_where_a_limit_is_off_a_device_is_a_stranger(make_api, off, expected):
    """Never better off than the limits allow, and never worse than without a token."""
    api = make_api(**LIMITS | {off: "off"})
    person = api.someone()
    device = device_of(person)

    assert statuses(log_in(api, person.email, WRONG, device=device) for _ in range(12)) == expected


def test_a_disabled_user_is_refused_on_their_device_as_everywhere(api):
    """The token chooses a counter, nothing else."""
    person, admin = api.someone(), api.an_admin()
    device = device_of(person)
    admin.call("PATCH", f"/v1/users/{person.id}", json={"status": "disabled"})

    answer = log_in(api, person.email, device=device)

    assert (answer.status_code, code_of(answer)) == (401, "invalid_credentials")
    assert DEVICE_HEADER not in answer.headers
