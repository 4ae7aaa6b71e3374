"""POST /v1/auth/register."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice

import pytest

from tests.api.driver import at_once, code_of, new_email
from tests.rig import PASSWORD


def test_registering_answers_with_the_user_and_where_they_are(api):
    """201, the whole user, and the address that admins read them at."""
    email = new_email()

    answer = api.register(email, name="Ada", phone="+44 20", device_id="d-1")

    user = answer.json
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/v1/users/{user['id']}"
    assert str(uuid.UUID(user.pop("id"), version=4))
    for name in ("created_at", "updated_at"):
        at = datetime.fromisoformat(user.pop(name))
        assert at.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert user == {
        "email": email,
        "name": "Ada",
        "phone": "+44 20",
        "device_id": "d-1",
        "roles": ["user"],
        "status": "active",
        "preferences": {},
        "last_login": None,
        "email_verified": False,
    }


def test_nobody_registers_as_an_admin(api):
    """Roles, status and identifiers are not the caller's to choose."""
    for field in ({"roles": ["admin"]}, {"status": "active"}, {"id": str(uuid.uuid4())}, {"epoch": 7}):
        answer = api.register(new_email(), **field)

        assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
        assert list(answer.json["errors"]) == list(field)


def test_no_answer_holds_password_or_hash(api):
    """What was sent as a password is never seen again."""
    answer = api.register(new_email())

    assert PASSWORD not in answer.text
    assert "password" not in answer.text
    assert "$2" not in answer.text


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("  Mixed.Case+tag@EXAMPLE.com ", "mixed.case+tag@example.com"),
        ("ada@BÜCHER.example", "ada@xn--bcher-kva.example"),
        ("grace@bu\u0308cher.example", "grace@xn--bcher-kva.example"),
    ],
)
def test_an_address_is_kept_in_its_canonical_form(pg_api, typed, canonical):
    """Trimmed, lower case, the domain as A-labels."""
    answer = pg_api.register(typed)

    assert answer.json["email"] == canonical


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ada",
        "@example.com",
        "ada@",
        "a@b@example.com",
        "ada@localhost",
        '"ada"@example.com',
        "ada@[127.0.0.1]",
        "Ada <ada@example.com>",
        "ädä@example.com",
        "\u212aelvin@example.com",
        "ada..b@example.com",
        "ada@-example.com",
        "ada@exam\nple.com",
        "a\x00b@example.com",
        "a\ud800@example.com",
        "x" * 65 + "@example.com",
        "ada@" + "x" * 250 + ".com",
        "ada@" + ".".join(["example"] * 200),
    ],
)
def test_what_is_no_address_is_refused(pg_api, address):
    """422 names the field, and no more."""
    answer = pg_api.register(address)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["email"]


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short",
        "fourteen chars",
        "e\u0301" * 14,
        "aaaaaaaaaaaaaaaaaaaa",
        "passwordpassword",
        "with\x00in the middle of it",
        "with\ud800 half a surrogate pair",
        "p" + "\U0001f600" * 256,
    ],
)
def test_a_password_that_breaks_the_policy_is_refused(pg_api, password):
    """Too short in code points of its NFC form, too long in bytes, too common, or not to be typed."""
    answer = pg_api.register(new_email(), password)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["password"]


@pytest.mark.parametrize(
    "password",
    [
        "fifteen chars..",
        "e\u0301" * 7 + " xyz wvu",
        "\U0001f600 four words of no fame",
        "ph" + "x7-" * 340,
        " leading and trailing spaces ",
    ],
)
def test_any_other_password_is_taken_and_opens_the_account(pg_api, password):
    """No composition rules, every byte counts, nothing is trimmed."""
    email = new_email()

    assert pg_api.register(email, password).status_code == 201
    assert pg_api.log_in(email, password).status_code == 200
    assert pg_api.log_in(email, password + " ").status_code == 401
    assert pg_api.log_in(email, password[:-1]).status_code == 401


def test_the_address_is_no_password(pg_api):
    """In any spelling."""
    for spelling in (str, str.upper):
        answer = pg_api.register(
            "someone.with.a.long.name@example.com", spelling("someone.with.a.long.name@example.com")
        )

        assert answer.status_code == 422


@pytest.mark.parametrize("field", ["name", "phone", "device_id"])
@pytest.mark.parametrize("value", ["a\x00b", "\ud800", "x" * 201, 5, True, ["x"], {}])
def test_a_wrong_field_of_the_profile_is_refused(pg_api, field, value):
    """NUL, half a surrogate pair, too long, no string: 422, and the field is named."""
    answer = pg_api.register(new_email(), **{field: value})

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert list(answer.json["errors"]) == [field]


def test_a_profile_may_hold_any_other_text(api):
    """Emoji, right-to-left marks, markup and null come back as they went in."""
    fields = {
        "name": "😀 \u202e日本語 <script>'\"; DROP TABLE users--",
        "phone": None,
        "device_id": "x" * 200,
    }

    answer = api.register(new_email(), **fields)

    assert answer.status_code == 201
    assert {name: answer.json[name] for name in fields} == fields


def test_a_taken_address_is_refused_in_every_spelling(api):
    """409; the account that was there first is untouched."""
    person = api.someone()
    name, domain = person.email.split("@")

    for spelling in (person.email, person.email.upper(), f" {name.title()}@{domain} "):
        answer = api.register(spelling, "another long passphrase", name="Mallory")

        assert (answer.status_code, code_of(answer)) == (409, "email_taken")
    assert person.call("GET", "/v1/me").json["name"] is None
    assert api.log_in(person.email).status_code == 200


def test_of_64_registrations_of_one_address_one_wins(pg_api):
    """The unique index decides, whatever the spelling: one 201, 63 times 409, one account."""
    email = new_email()
    spellings = islice(cycle([email, email.upper(), f" {email}", email.title()]), 64)

    answers = at_once(pg_api.register, spellings)

    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 63}
    winner = next(answer for answer in answers if answer.status_code == 201)
    assert (
        pg_api.call("GET", winner.headers["Location"], token=pg_api.an_admin().access).json["email"] == email
    )


def test_an_address_of_a_deleted_account_is_free_and_inherits_nothing(api):
    """A new id, no preferences, no sessions, and the old tokens stay dead."""
    old = api.someone(name="Old")
    old.call("PUT", "/v1/me/preferences", json={"theme": "dark"})
    api.prove_redis()
    assert old.call("DELETE", "/v1/me", json={"password": old.password}).status_code == 204

    answer = api.register(old.email, "an entirely different one")

    assert answer.status_code == 201
    assert answer.json["id"] != old.id
    assert (answer.json["name"], answer.json["preferences"]) == (None, {})
    assert not old.is_accepted()
    assert code_of(api.refresh(old.refresh_token)) == "refresh_invalid"
    assert api.log_in(old.email).status_code == 401
    fresh = api.log_in(old.email, "an entirely different one").json["access_token"]
    sessions = api.call("GET", "/v1/me/sessions", token=fresh).json["items"]
    assert [session["current"] for session in sessions] == [True]
