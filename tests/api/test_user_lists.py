"""What is cached of users: pages of the list, users, the ids of their addresses."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import bcrypt
import pytest

from authsvc.domain.values.emails import Email
from tests.api.driver import Api, Person, json_of, new_email
from tests.api.watching import Shelf, sql_statements
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from werkzeug.test import TestResponse

PAGE = "/v1/users?limit=200"
LIST_TTL_S, TTL_S = 300, 3600
OTHER_PASSWORD = "a staple that no horse has seen"


@pytest.fixture
def api(pg_api: Api) -> Api:
    """One application for all, over PostgreSQL; it believes Redis for the rest of the test."""
    pg_api.prove_redis()
    return pg_api


@pytest.fixture
def shelf(api: Api) -> Iterator[Shelf]:
    """Look at the keys of the application."""
    with closing(Shelf(api)) as made:
        yield made


def items(admin: Person, path: str = PAGE) -> dict[str, dict[str, Any]]:
    """The users of one page, by id."""
    answer = admin.call("GET", path)
    assert answer.status_code == 200, answer.text
    return {user["id"]: user for user in json_of(answer)["items"]}


def is_about(ttl_s: float, wanted_s: float) -> bool:
    """Within a tenth, less the seconds that the test took."""
    return wanted_s * 0.9 - 60 <= ttl_s <= wanted_s * 1.1


def reads_nothing(ask: Callable[[], TestResponse]) -> bool:
    """True if *ask* is answered without a query."""
    with sql_statements() as statements:
        assert ask().status_code == 200
    return not statements


class TestPages:
    """GET /v1/users."""

    def test_a_page_is_cached_for_the_life_of_lists(self, admin, shelf):
        """Under one key for each query; the second reader asks SQL nothing."""
        assert not reads_nothing(lambda: admin.call("GET", PAGE))
        before = shelf.names("users:list:*")

        assert reads_nothing(lambda: admin.call("GET", PAGE))
        assert not reads_nothing(lambda: admin.call("GET", "/v1/users?limit=199&role=admin"))
        (added,) = shelf.names("users:list:*") - before
        assert is_about(shelf.ttl_s(added), LIST_TTL_S)

    def test_equal_queries_share_a_page_and_others_do_not(self, admin, shelf):
        """The order of words and a limit that is the usual one make no difference; all else does."""
        one = ["/v1/users?role=admin&status=active", "/v1/users?status=active&role=admin&limit=50"]
        other = ["/v1/users?status=active", "/v1/users?role=admin", f"/v1/users?cursor={admin.id}"]
        shelf.drop("users:list:*")

        answers = [admin.call("GET", path) for path in one]

        assert answers[0].json == answers[1].json
        assert len(shelf.names("users:list:*")) == 1
        assert [admin.call("GET", path).status_code for path in other] == [200] * 3
        assert len(shelf.names("users:list:*")) == 1 + len(other)

    def test_filters_and_cursor_hold_in_cached_pages(self, api, admin):
        """Page by page, read twice: the same, and what SQL would say."""
        people = [api.someone() for _ in range(3)]
        admin.call("PATCH", f"/v1/users/{people[0].id}", json={"status": "disabled"})

        def walk(query: str) -> list[str]:
            found: list[str] = []
            cursor = ""
            while cursor is not None:
                page = json_of(admin.call("GET", f"/v1/users?limit=2{query}{cursor and f'&cursor={cursor}'}"))
                found += [user["id"] for user in page["items"]]
                cursor = page["next_cursor"]
            return found

        for query in ("", "&role=admin", "&status=disabled", "&status=active&role=user"):
            first = walk(query)
            with sql_statements() as statements:
                assert walk(query) == first
            assert statements == []
            assert len(set(first)) == len(first)
        assert people[0].id in walk("&status=disabled")
        assert people[0].id not in walk("&status=active")
        assert set(walk("&role=admin")) >= {admin.id}
        assert not set(walk("&role=admin")) & {person.id for person in people}


def register(api: Api, admin: Person, person: Person) -> None:
    assert api.register(new_email()).status_code == 201


def change_profile(api: Api, admin: Person, person: Person) -> None:
    assert person.call("PATCH", "/v1/me", json={"name": "Another"}).status_code == 200


def change_preferences(api: Api, admin: Person, person: Person) -> None:
    assert person.call("PUT", "/v1/me/preferences", json={"theme": "dark"}).status_code == 200


def patch_preferences(api: Api, admin: Person, person: Person) -> None:
    assert person.call("PATCH", "/v1/me/preferences", json={"size": 2}).status_code == 200


def change_password(api: Api, admin: Person, person: Person) -> None:
    body = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    assert person.call("POST", "/v1/me/password", json=body).status_code == 204


def change_roles(api: Api, admin: Person, person: Person) -> None:
    answer = admin.call("PATCH", f"/v1/users/{person.id}", json={"roles": ["admin"]})
    assert answer.status_code == 200


def change_roles_by_address(api: Api, admin: Person, person: Person) -> None:
    api.services.users.set_roles(Email(person.email), ("admin",))


def change_status(api: Api, admin: Person, person: Person) -> None:
    answer = admin.call("PATCH", f"/v1/users/{person.id}", json={"status": "disabled"})
    assert answer.status_code == 200


def delete(api: Api, admin: Person, person: Person) -> None:
    assert admin.call("DELETE", f"/v1/users/{person.id}").status_code == 204


def delete_himself(api: Api, admin: Person, person: Person) -> None:
    assert person.call("DELETE", "/v1/me", json={"password": PASSWORD}).status_code == 204


def log_in(api: Api, admin: Person, person: Person) -> None:
    person.log_in()


def note_logins(api: Api, admin: Person, person: Person) -> None:
    answer = admin.call("PATCH", "/v1/batch/users/last-login", json={"ids": [person.id]})
    assert answer.status_code == 200


def create_many(api: Api, admin: Person, person: Person) -> None:
    body = {"users": [{"email": new_email(), "password": PASSWORD}]}
    assert json_of(admin.call("POST", "/v1/batch/users/create", json=body))["created"] == 1


CHANGES = [
    register, change_profile, change_preferences, patch_preferences, change_password, change_roles,
    change_roles_by_address, change_status, delete, delete_himself, log_in, note_logins, create_many,
]  # fmt: skip


class TestFreshness:
    """What was cached is not shown after a change, not once."""

    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
    def test_every_change_shows_at_once(self, api, admin, shelf, change):
        """In the list, in each filtered one, in the look-up and in the user themselves; all were cached."""
        person = api.someone(name="Ada")
        queries = [f"{PAGE}{more}" for more in ("", "&role=admin", "&role=user", "&status=disabled")]
        one, many = f"/v1/users/{person.id}", f"/v1/batch/users/lookup?ids={person.id},{admin.id}"
        before = [admin.call("GET", path).json for path in (*queries, one, many)]
        assert [admin.call("GET", path).json for path in (*queries, one, many)] == before
        api.clock.tick(1)

        change(api, admin, person)
        after = [admin.call("GET", path).json for path in (*queries, one, many)]
        # What SQL says when no copy can be believed.
        shelf.drop("auth:revocations:seq")
        truth = [admin.call("GET", path).json for path in (*queries, one, many)]
        for answer in (*after, *truth):
            answer.pop("request_id", None)

        assert after == truth
        assert after[0] != before[0]

    def test_an_imported_user_is_listed_at_once(self, api, admin, tmp_path, monkeypatch, command):
        """``authsvc users import`` shares only the stores with the service; its next answer has the user."""
        email = new_email()
        line = {"email": email, "password_hash": bcrypt.hashpw(b"whatever", bcrypt.gensalt(4)).decode()}
        file = tmp_path / "users.jsonl"
        file.write_text(json.dumps(line))
        known = items(admin)

        for name, value in api.env.items():
            monkeypatch.setenv(name, value)

        assert command(["users", "import", str(file)]) == 0

        added = [user["email"] for user_id, user in items(admin).items() if user_id not in known]
        assert added == [email]


class TestUsers:
    """GET /v1/users/{id}, GET /v1/me and the look-up share what is cached of a user."""

    def test_a_user_is_cached_for_the_life_of_users(self, api, admin, shelf):
        """With their address, which leads to their id; the next reader asks SQL nothing."""
        person = api.someone()
        shelf.drop(f"user:{person.id}")
        assert not reads_nothing(lambda: admin.call("GET", f"/v1/users/{person.id}"))

        assert reads_nothing(lambda: admin.call("GET", f"/v1/users/{person.id}"))
        assert reads_nothing(lambda: person.call("GET", "/v1/me"))
        assert reads_nothing(lambda: admin.call("GET", f"/v1/batch/users/lookup?ids={person.id}"))
        assert is_about(shelf.ttl_s(f"user:{person.id}"), TTL_S)
        assert shelf.get(f"user:email:{person.email}") == person.id
        assert is_about(shelf.ttl_s(f"user:email:{person.email}"), TTL_S)

    def test_who_registers_or_logs_in_is_cached(self, api, admin, shelf):
        """With the address: the first reader asks SQL nothing, now and when the log was replayed."""
        person = Person(api=api, id=json_of(api.register(email := new_email()))["id"], email=email)
        api.prove_redis()
        assert reads_nothing(lambda: admin.call("GET", f"/v1/users/{person.id}"))
        person = person.log_in()

        for _ in range(2):
            assert reads_nothing(lambda: person.call("GET", "/v1/me"))
            api.prove_redis()
        assert json_of(person.call("GET", "/v1/me"))["last_login"] is not None
        assert is_about(shelf.ttl_s(f"user:{person.id}"), TTL_S)
        assert shelf.get(f"user:email:{email}") == person.id
        assert is_about(shelf.ttl_s(f"user:email:{email}"), TTL_S)

    def test_lives_differ(self, api, admin, shelf):
        """By up to a tenth: what was stored together does not end together."""
        made = admin.call(
            "POST",
            "/v1/batch/users/create",
            json={"users": [{"email": new_email(), "password": PASSWORD} for _ in range(20)]},
        )
        ids = [result["user"]["id"] for result in json_of(made)["results"]]

        admin.call("GET", f"/v1/batch/users/lookup?ids={','.join(ids)}")

        lives_s = [shelf.ttl_s(f"user:{one}") for one in ids]
        assert all(is_about(life_s, TTL_S) for life_s in lives_s)
        assert max(lives_s) - min(lives_s) > 60

    def test_the_lives_are_those_of_the_settings(self, make_api):
        """Users and lists each have their own."""
        api = make_api(REDIS_CACHE_TTL="500", CACHE_LIST_TTL="200")
        admin = api.an_admin()
        with closing(Shelf(api)) as shelf:
            items(admin)
            admin.call("GET", "/v1/me")

            (page,) = shelf.names("users:list:*")
            assert 130 <= shelf.ttl_s(page) <= 220
            assert 400 <= shelf.ttl_s(f"user:{admin.id}") <= 550
            assert 400 <= shelf.ttl_s(f"user:email:{admin.email}") <= 550

    def test_nothing_is_left_of_who_is_deleted(self, api, admin, shelf):
        """
        Neither user nor address; a new registration of the address is another user and inherits nothing
        (I38).
        """
        person = api.someone(name="Ada")
        admin.call("GET", f"/v1/users/{person.id}")

        admin.call("DELETE", f"/v1/users/{person.id}")

        assert shelf.names(f"user:{person.id}") | shelf.names(f"user:email:{person.email}") == set()
        assert admin.call("GET", f"/v1/users/{person.id}").status_code == 404
        heir = json_of(api.register(person.email))
        assert heir["id"] != person.id
        assert json_of(admin.call("GET", f"/v1/users/{heir['id']}"))["name"] is None

    @pytest.mark.parametrize("note", ["somebody_else", "\ufffd", "not an id", ""])
    def test_a_wrong_note_of_an_address_leads_nobody_astray(self, api, admin, shelf, note):
        """Whoever it names: the user changed by address is the one who has that address."""
        person, other = api.someone(), api.someone()
        admin.call("GET", f"/v1/users/{person.id}")
        admin.call("GET", f"/v1/users/{other.id}")
        shelf.put(f"user:email:{person.email}", other.id if note == "somebody_else" else note)

        changed = api.services.users.set_roles(Email(person.email), ("admin",)).value

        assert changed.id == person.id
        assert json_of(admin.call("GET", f"/v1/users/{other.id}"))["roles"] == ["user"]


def test_no_password_and_no_token_lies_in_redis(api, admin, shelf):
    """Nowhere in it, after everything that touches either (I15)."""
    person = api.someone(name="Ada", phone="+1", device_id="laptop")
    person.log_in()
    person.refresh()
    change_password(api, admin, person)
    create_many(api, admin, person)
    person = Person(api=api, id=person.id, email=person.email, password=OTHER_PASSWORD).log_in()
    assert api.log_in(person.email, "wrong " + PASSWORD).status_code == 401
    items(admin)
    person.call("GET", "/v1/me")

    everything = "\n".join(f"{name} {value}" for name, value in shelf.everything().items())

    assert f"user:{person.id}" in everything
    assert "users:list:" in everything
    for secret in (PASSWORD, OTHER_PASSWORD, "password", "$2a$", "$2b$", "$2y$", "bcrypt", "hash"):
        assert secret not in everything
    for token in (person.access, person.refresh_token, admin.access, admin.refresh_token):
        assert token not in everything
        assert token.rpartition(".")[2] not in everything
