"""One user by address; a password and an address that an operator sets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from authsvc.api.frame.context import DEVICE_HEADER
from authsvc.domain.errors import EmailTaken
from authsvc.domain.values.emails import Email
from tests.api.driver import Api, MakeApi, Person, at_once, code_of, json_of, new_email
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

NEW_PASSWORD = "a staple that no horse has seen"
WRONG = "wrong horse battery staple"


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def api(make_module_api: MakeApi, request) -> Api:
    """Share one application that counts strangers and devices apart, over each database."""
    limits = {"RATE_LIMIT_LOGIN_ACCOUNT": "10/15minutes", "RATE_LIMIT_LOGIN_DEVICE": "5/15minutes"}
    return make_module_api(sqlite=request.param == "sqlite", **limits)


def found(admin: Person, **query: str) -> list[str]:
    """The ids in the list that answers *query*."""
    answer = admin.call("GET", "/v1/users", query_string=query)
    assert answer.status_code == 200, answer.text
    assert json_of(answer)["next_cursor"] is None
    return [user["id"] for user in json_of(answer)["items"]]


def log_in(api: Api, email: str, password: str, device: str | None = None) -> TestResponse:
    """Log in, and show a device token."""
    headers = {} if device is None else {DEVICE_HEADER: device}
    return api.post("/v1/auth/login", {"email": email, "password": password}, headers=headers)


def test_one_user_is_found_by_their_exact_address(api):
    """In any spelling of it; others whose address begins or ends so are not."""
    admin, person = api.an_admin(), api.someone()
    api.register("x" + person.email)

    assert found(admin, email=person.email) == [person.id]
    assert found(admin, email=f" {person.email.upper()} ") == [person.id]
    assert found(admin, email=new_email()) == []


def test_an_address_and_other_filters_hold_together(api):
    """All filters must match; a user before the cursor is on no page."""
    admin, person = api.an_admin(), api.someone()

    assert found(admin, email=person.email, role="user", status="active", limit="1") == [person.id]
    assert found(admin, email=person.email, role="admin") == []
    assert found(admin, email=person.email, status="disabled") == []
    assert found(admin, email=person.email, cursor=person.id) == []


@pytest.mark.parametrize(
    "email", ["", "no address", "a@b", "a@example.com,b@example.com", "x" * 2000, "\x00@x.org"]
)
def test_what_is_no_address_is_422(api, email):
    """A slip is not an empty list; what was sent is not repeated."""
    answer = api.an_admin().call("GET", "/v1/users", query_string={"email": email})

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert list(json_of(answer)["errors"]) == ["email"]


def test_an_address_of_somebody_deleted_or_changed_finds_nobody(api):
    """Whatever id is cached for the address, the row decides."""
    admin, gone = api.an_admin(), api.someone()
    assert found(admin, email=gone.email) == [gone.id]

    admin.call("DELETE", f"/v1/users/{gone.id}")

    assert found(admin, email=gone.email) == []


def test_an_operator_sees_one_user(api, operate):
    """As admins do, with the number of living sessions, and nothing of the password."""
    person = api.someone(name="Ada")
    person.log_in()

    shown = operate("users", "show", person.email.upper())

    expected = person.call("GET", "/v1/me").json
    assert shown == {**expected, "sessions": 2}
    assert "bcrypt" not in str(shown)


def test_a_password_that_an_operator_sets_ends_everything(api, replica, operate):
    """On the next request, in every process: sessions, tokens, the old password, known devices."""
    person = api.someone()
    device = log_in(api, person.email, PASSWORD).headers[DEVICE_HEADER]
    other = person.log_in()
    assert replica.verify(other.access) == 200

    made = operate("users", "set-password", person.email, "--password-stdin", stdin=f"{NEW_PASSWORD}\n")

    assert made == {"id": person.id, "email": person.email, "roles": ["user"]}
    assert [api.verify(person.access), replica.verify(other.access)] == [401, 401]
    assert code_of(api.refresh(other.refresh_token)) == "session_ended"
    assert code_of(log_in(api, person.email, PASSWORD)) == "invalid_credentials"
    again = log_in(api, person.email, NEW_PASSWORD, device)
    assert again.status_code == 200
    assert jti_epoch(api, again) == (1, person.id)
    assert not is_known(api, person.email, device)
    assert is_known(api, person.email, again.headers[DEVICE_HEADER])


def jti_epoch(api: Api, answer: TestResponse) -> tuple[int, str]:
    """The epoch and the user of the access token in *answer*."""
    claims = Person(api=api, id="", email="", pair=json_of(answer)).claims()
    return claims["epoch"], claims["sub"]


def is_known(api: Api, email: str, device: str) -> bool:
    """Whether failures with the token *device* count for that device: its quota is the smaller one."""
    policy = log_in(api, email, WRONG, device).headers["RateLimit-Policy"]
    return "login-device" in policy


def test_an_address_that_an_operator_sets_ends_the_sessions_and_keeps_devices(api, replica, operate):
    """On the next request, in every process; the old address is free at once, and finds nobody."""
    admin, person, new = api.an_admin(), api.someone(), new_email()
    device = log_in(api, person.email, PASSWORD).headers[DEVICE_HEADER]
    assert replica.verify(person.access) == 200
    assert found(admin, email=person.email) == [person.id]

    made = operate("users", "set-email", person.email, new.upper())

    assert made == {"id": person.id, "email": new, "roles": ["user"]}
    assert [api.verify(person.access), replica.verify(person.access)] == [401, 401]
    assert code_of(api.refresh(person.refresh_token)) == "session_ended"
    assert (found(admin, email=person.email), found(admin, email=new)) == ([], [person.id])
    assert admin.call("GET", f"/v1/users/{person.id}").json["email"] == new
    assert code_of(log_in(api, person.email, PASSWORD)) == "invalid_credentials"
    assert log_in(api, new, PASSWORD).status_code == 200
    assert is_known(api, new, device)
    assert api.register(person.email).status_code == 201


def test_two_users_who_get_one_address_at_once_leave_one_of_them(api):
    """The unique index decides, whoever races; a registration of it, too."""
    people, new = [api.someone() for _ in range(8)], new_email()

    def take(person: Person | None) -> int:
        if person is None:
            registered: int = api.register(new).status_code
            return registered
        try:
            api.services.users.set_email(Email(person.email), Email(new))
        except EmailTaken:
            return 409
        return 201

    results = at_once(take, [*people, *[None] * 8])

    assert sorted(results) == [201, *[409] * 15]


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("show", "nobody@example.com"), "", "no user has the address nobody@example.com"),
        (
            ("set-email", "nobody@example.com", "b@example.com"),
            "",
            "no user has the address nobody@example.com",
        ),
        (("set-password", "nobody@example.com", "--password-stdin"), NEW_PASSWORD, "no user has the address"),
        (("set-password", "{email}", "--password-stdin"), "hunter2", "password "),
        (("set-password", "{email}", "--password-stdin"), "", "password "),
        (("set-email", "{email}", "no address"), "", "NEW must be an e-mail address"),
        (("show", "no address"), "", "EMAIL must be an e-mail address"),
        (("set-email", "{email}", "{other}"), "", "email_taken"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(api, operate, arguments, stdin, said):
    """Nothing changes, and no password is repeated."""
    person, other = api.someone(), api.someone()
    named = [each.format(email=person.email, other=other.email) for each in arguments]

    error = operate("users", *named, stdin=stdin)

    assert isinstance(error, str)
    assert said in error
    assert error.count("\n") == 1
    assert "hunter2" not in error
    assert person.is_accepted()


def test_what_an_operator_did_is_in_the_trail(api, operate):
    """With the user's id and no address; the user sees that it was somebody else."""
    person, new = api.someone(), new_email()
    operate("users", "set-email", person.email, new)
    operate("users", "set-password", new, "--password-stdin", stdin=NEW_PASSWORD)

    admin = api.an_admin()
    query = {"user_id": person.id, "limit": "200"}
    items = json_of(admin.call("GET", "/v1/audit", query_string=query))["items"]
    done = [(item["action"], item["actor_id"]) for item in items if item["action"].endswith(".changed")]

    assert done == [("password.changed", None), ("email.changed", None)]
    assert "@" not in json.dumps(items)
    owner = Person(api=api, id=person.id, email=new, password=NEW_PASSWORD).log_in()
    own = json_of(owner.call("GET", "/v1/me/events"))["items"]
    assert [(one["action"], one["by_another"]) for one in own][:3] == [
        ("login.succeeded", False),
        ("password.changed", True),
        ("email.changed", True),
    ]
