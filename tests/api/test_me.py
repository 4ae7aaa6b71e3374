"""GET, PATCH and DELETE /v1/me."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime

import pytest

from tests.api.driver import code_of
from tests.api.watching import Shelf, sql_statements


def test_the_profile_is_the_callers_own(api):
    """What registration answered, with the login noted."""
    person = api.someone(name="Ada", phone="1", device_id="d")

    profile = person.call("GET", "/v1/me").json

    assert (profile["id"], profile["email"]) == (person.id, person.email)
    assert (profile["name"], profile["phone"], profile["device_id"]) == ("Ada", "1", "d")
    assert (profile["roles"], profile["status"], profile["preferences"]) == (["user"], "active", {})
    assert datetime.fromisoformat(profile["last_login"]) >= datetime.fromisoformat(profile["created_at"])
    assert set(profile) == {
        "id", "email", "name", "phone", "device_id", "roles", "status", "preferences",
        "created_at", "updated_at", "last_login", "email_verified",
    }  # fmt: skip


def test_a_cached_profile_is_one_round_trip_to_redis_and_no_query(api):
    """The token's answer and the user's copy come together."""
    person = api.someone()
    first = person.call("GET", "/v1/me").json

    with closing(Shelf(api)) as shelf, shelf.commands() as heard, sql_statements() as sent:
        second = person.call("GET", "/v1/me").json

    about = [command for command in heard if person.id in command]
    assert second == first
    assert [command.split()[0] for command in about] == ["MGET"]
    assert f":user:{person.id}" in about[0]
    assert sent == []


def test_without_the_cache_the_profile_is_from_sql(make_api):
    """A copy that lies in Redis from before is not read."""
    cached = make_api()
    person = cached.someone()
    person.call("GET", "/v1/me")
    with closing(Shelf(cached)) as shelf:
        assert shelf.names(f"user:{person.id}")
    bare = make_api(
        CACHE_ENABLED="false",
        DATABASE_URL=cached.env["DATABASE_URL"],
        CACHE_KEY_PREFIX=cached.env["CACHE_KEY_PREFIX"],
    )

    with sql_statements() as sent:
        answer = bare.call("GET", "/v1/me", token=person.access)

    assert answer.json["id"] == person.id
    assert any("FROM users" in statement for statement in sent)


def test_a_head_request_gives_the_headers_alone(pg_api):
    """RFC 9110 §9.3.2."""
    answer = pg_api.someone().call("HEAD", "/v1/me")

    assert (answer.status_code, answer.data) == (200, b"")


def test_a_patch_changes_what_it_names(api):
    """Other fields stay; null clears one; the next read shows it, cached or not."""
    person = api.someone(name="Ada", phone="1", device_id="d")
    before = person.call("GET", "/v1/me").json

    answer = person.call("PATCH", "/v1/me", json={"name": "Grace", "phone": None})

    assert answer.status_code == 200
    after = person.call("GET", "/v1/me").json
    assert after == answer.json
    assert (after["name"], after["phone"], after["device_id"]) == ("Grace", None, "d")
    assert after["updated_at"] > before["updated_at"]
    assert after["created_at"] == before["created_at"]
    assert person.is_accepted()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "x@example.com"},
        {"roles": ["admin"]},
        {"status": "active"},
        {"preferences": {}},
        {"password": "x"},
        {"name": "ok", "id": "x"},
        {"name": 5},
        {"name": "a\x00"},
        {"phone": "\ud83d"},
        {"device_id": "x" * 201},
        [],
        None,
    ],
)
def test_anything_else_is_refused_whole(pg_api, body):
    """422, and nothing is changed."""
    person = pg_api.someone(name="Ada")

    answer = person.call("PATCH", "/v1/me", json=body)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert answer.json["errors"]
    assert person.call("GET", "/v1/me").json["name"] == "Ada"


def test_nobody_sees_or_changes_anybody_else(api):
    """Two users, one after the other over the same connections: each gets their own."""
    people = [api.someone(name=f"number {number}") for number in range(5)]

    for round_ in range(2):
        for number, person in enumerate(people):
            profile = person.call("GET", "/v1/me").json
            assert (profile["id"], profile["name"]) == (person.id, f"number {number}"), round_


def test_closing_the_account_ends_everything_at_once(api):
    """204; all tokens of all sessions are refused, and a login with the address fails."""
    person = api.someone()
    other = person.log_in()

    answer = person.call("DELETE", "/v1/me", json={"password": person.password})

    assert (answer.status_code, answer.data) == (204, b"")
    assert not person.is_accepted()
    assert not other.is_accepted()
    assert code_of(api.refresh(other.refresh_token)) == "refresh_invalid"
    assert code_of(api.log_in(person.email)) == "invalid_credentials"
    assert api.call("GET", f"/v1/users/{person.id}", token=api.an_admin().access).status_code == 404


def test_closing_the_account_asks_for_the_password(api):
    """403 for a wrong one, 422 for none; the account stays."""
    person = api.someone()

    for password in ("wrong horse battery staple", "", "\x00", "\ud800"):
        answer = person.call("DELETE", "/v1/me", json={"password": password})
        assert (answer.status_code, code_of(answer)) == (403, "wrong_password")
    for body in ({}, {"password": None}, {"password": person.password, "really": True}):
        assert person.call("DELETE", "/v1/me", json=body).status_code == 422
    assert person.call("DELETE", "/v1/me").status_code == 400
    assert person.is_accepted()


def test_the_last_admin_cannot_close_their_account(make_api):
    """409 until there is another active one."""
    api = make_api()
    admin = api.an_admin()
    body = {"password": admin.password}

    answer = admin.call("DELETE", "/v1/me", json=body)

    assert (answer.status_code, code_of(answer)) == (409, "last_admin")
    assert admin.is_accepted()
    api.an_admin()
    assert admin.call("DELETE", "/v1/me", json=body).status_code == 204
