"""Roles of the operator's own (``ROLES``): given, shown, asked for, and taken out again."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from authsvc.settings import Settings
from authsvc.wiring.preflight import stored_warnings
from tests.api.driver import Api, MakeApi, Person, at_once, code_of, json_of
from tests.api.test_tokens import Forge, key_file
from tests.api.watching import Shelf
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from werkzeug.test import TestResponse


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def newsroom(make_module_api: MakeApi, request) -> Api:
    """A service with two roles of its own, over each database."""
    return make_module_api(sqlite=request.param == "sqlite", ROLES="editor,bill_ing")


@pytest.fixture
def admin(newsroom: Api) -> Person:
    """Log an admin in."""
    return newsroom.an_admin()


def give(admin: Person, user: Person, *roles: str) -> TestResponse:
    """Set the roles of *user*."""
    return admin.call("PATCH", f"/v1/users/{user.id}", json={"roles": list(roles)})


def roles_in(person: Person) -> list[str]:
    """The roles in their access token."""
    roles: list[str] = person.claims()["roles"]
    return roles


def test_a_role_holds_from_the_next_refresh_on(newsroom, admin):
    """Every earlier token dies with the change; the roles have one order, in answers and in tokens."""
    person = newsroom.someone()

    answer = give(admin, person, "editor", "admin", "bill_ing")

    assert json_of(answer)["roles"] == ["user", "admin", "bill_ing", "editor"]
    assert not person.is_accepted()
    again = person.refresh()
    assert roles_in(again) == ["user", "admin", "bill_ing", "editor"]
    assert again.call("GET", "/v1/me").json["roles"] == ["user", "admin", "bill_ing", "editor"]
    shown = admin.call("GET", f"/v1/batch/users/lookup?ids={person.id}").json["items"]
    assert [user["roles"] for user in shown] == [["user", "admin", "bill_ing", "editor"]]


def test_a_gateway_asks_for_a_role(newsroom, admin):
    """All that are asked for; one that the user has not, or that there is not, is 403."""
    person = newsroom.someone()
    give(admin, person, "editor")
    person = person.refresh()

    def asked(query: str) -> tuple[int, str | None]:
        answer = person.call("GET", f"/v1/auth/verify?{query}")
        return answer.status_code, answer.headers.get("X-Auth-Roles")

    assert asked("role=editor") == (200, "user,editor")
    assert asked("role=editor&role=user") == (200, "user,editor")
    assert [asked(f"role={role}") for role in ("bill_ing", "admin", "root", "Editor")] == [(403, None)] * 4


def test_a_role_is_taken_away_on_the_next_request(newsroom, admin):
    """The token that names it is refused at once, and the next one lacks it."""
    person = newsroom.someone()
    give(admin, person, "editor", "bill_ing")
    person = person.refresh()

    give(admin, person, "bill_ing")

    assert newsroom.verify(person.access) == 401
    assert roles_in(person.refresh()) == ["user", "bill_ing"]


@pytest.mark.parametrize(
    ("roles", "place"),
    [
        (["editor", "root"], "roles.1"),
        (["Editor"], "roles.0"),
        (["editor\n"], "roles.0"),
        (["a" * 33], "roles.0"),
        ([7], "roles.0"),
        ([], "roles"),
    ],
)
def test_a_role_that_there_is_not_is_422(newsroom, admin, roles, place):
    """Named by its place; nothing changes."""
    person = newsroom.someone()

    answer = admin.call("PATCH", f"/v1/users/{person.id}", json={"roles": roles})

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert list(json_of(answer)["errors"]) == [place]
    assert person.is_accepted()


def test_users_are_listed_by_a_role(newsroom, admin):
    """Exactly that one: ``_`` is no wildcard; a role that there is not is 422, not an empty list."""
    editor, both, plain = (newsroom.someone() for _ in range(3))
    give(admin, editor, "editor")
    give(admin, both, "editor", "bill_ing")

    def listed(**query: Any) -> set[str]:
        answer = admin.call("GET", "/v1/users", query_string={"limit": "200", **query})
        return {user["id"] for user in json_of(answer)["items"]} & {editor.id, both.id, plain.id}

    assert listed(role="editor") == {editor.id, both.id}
    assert listed(role="bill_ing") == {both.id}
    assert listed(role="user") == {editor.id, both.id, plain.id}
    assert listed(role="editor", status="disabled") == set()
    refused = [admin.call("GET", f"/v1/users?role={role}") for role in ("billxing", "Editor", "")]
    assert {(answer.status_code, tuple(json_of(answer)["errors"])) for answer in refused} == {
        (422, ("role",))
    }


def test_a_token_with_a_role_that_its_user_has_not_is_refused(newsroom):
    """Also one that our own key signed: the row says what the user is."""
    person = newsroom.someone()
    forge = Forge(person, key_file(newsroom).read_bytes())

    assert newsroom.verify(forge.token(roles=["user", "editor"])) == 401


def test_roles_given_at_once_leave_one_of_them(newsroom, admin):
    """16 changes of one user: the last one holds as a whole, and each raised the user's epoch."""
    person = newsroom.someone()
    wanted = [("editor",), ("bill_ing",), ("editor", "bill_ing"), ("user",)] * 4

    answers = at_once(lambda roles: give(admin, person, *roles), wanted)

    assert {answer.status_code for answer in answers} == {200}
    row = admin.call("GET", f"/v1/users/{person.id}").json["roles"]
    assert row in [["user", "editor"], ["user", "bill_ing"], ["user", "bill_ing", "editor"], ["user"]]
    assert roles_in(person.refresh()) == row


def test_the_last_admin_stays_whatever_else_they_are(make_api):
    """A role of the operator's own does not make up for it; 16 demotions of two admins leave one."""
    api = make_api(ROLES="editor")
    pair = [api.an_admin(), api.an_admin()]
    for one in pair:
        give(pair[0].log_in(), one, "admin", "editor")
    pair = [one.log_in() for one in pair]

    answers = at_once(lambda one: give(one, one, "editor"), pair * 8)

    assert {answer.status_code for answer in answers} <= {200, 401, 409}
    left = [one for one in pair if "admin" in api.services.users.get(one.id).roles]
    assert len(left) == 1


@pytest.fixture
def restarted(make_api):
    """A service with an editor, and the means to start another over the same stores with other roles."""
    api = make_api(ROLES="editor,billing")
    admin, person = api.an_admin(), api.someone()
    give(admin, person, "editor", "billing")
    made: list[Api] = []

    def again(roles: str) -> tuple[Api, Person, Person]:
        made.append(Api({**api.env, "ROLES": roles}))
        boss, somebody = (
            Person(api=made[-1], id=one.id, email=one.email).log_in() for one in (admin, person)
        )
        return made[-1], boss, somebody

    yield again
    for one in made:
        one.close()


def test_a_role_that_left_the_setting_is_in_no_new_token_and_no_answer(restarted):
    """Who has it is named at the start; the row keeps it, so that it is there again when it comes back."""
    without, admin, person = restarted("billing")
    assert roles_in(person) == ["user", "billing"]
    assert roles_in(person.refresh()) == ["user", "billing"]
    assert person.call("GET", "/v1/me").json["roles"] == ["user", "billing"]
    assert admin.call("GET", "/v1/users?role=editor").status_code == 422
    assert without.verify(person.access) == 200
    assert stored_warnings(Settings.from_env(without.env), UNHURRIED) == [
        "ROLES does not name editor, which users have (1): it is in no new token and no answer"
    ]

    _, _, person = restarted("billing,editor")

    assert roles_in(person) == ["user", "billing", "editor"]


def test_a_token_from_before_is_good_until_it_ends(restarted):
    """By Redis and by SQL: removing a name from the setting revokes nothing."""
    _, _, person = restarted("billing,editor")
    without, _, _ = restarted("billing")

    answers = [without.verify(person.access)]
    with closing(Shelf(without)) as shelf:
        assert shelf.drop(f"auth:token:{person.claims()['jti']}") == 1
    answers.append(without.verify(person.access))

    assert answers == [200, 200]


def test_setting_the_roles_drops_what_is_dormant(restarted):
    """An admin sets all of them: what the admin does not see does not come back to life."""
    _, admin, person = restarted("billing")
    give(admin, person, "billing")

    _, _, person = restarted("billing,editor")

    assert roles_in(person) == ["user", "billing"]


def test_a_change_of_something_else_keeps_what_is_dormant(restarted):
    """A new name is no reason to lose a role."""
    _, _, person = restarted("billing")
    person.call("PATCH", "/v1/me", json={"name": "Ada"})

    _, _, person = restarted("billing,editor")

    assert roles_in(person) == ["user", "billing", "editor"]


def test_the_description_says_what_a_role_looks_like(newsroom):
    """A pattern: generated clients do not refuse the roles of an installation."""
    described = newsroom.call("GET", "/openapi.json").json
    pattern = "^[a-z][a-z0-9_-]{0,31}$"

    assert (
        described["components"]["schemas"]["UserView"]["properties"]["roles"]["items"]["pattern"] == pattern
    )
    (role,) = [
        parameter
        for parameter in described["paths"]["/v1/users"]["get"]["parameters"]
        if parameter["name"] == "role"
    ]
    assert role["schema"]["pattern"] == pattern
