"""GET /v1/users, and GET, PATCH and DELETE of one of them."""

from __future__ import annotations

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.api.driver import Api, MakeApi, Person, at_once, code_of
from tests.api.second_factors import UNLIMITED, guarded
from tests.processes import wait_until


def standing(admin: Person, user: Person, **change: object):
    """Set roles, status or both of *user*."""
    return admin.call("PATCH", f"/v1/users/{user.id}", json=change)


def test_one_user_can_be_read(api, admin):
    """The same as users see themselves."""
    person = api.someone(name="Ada")

    answer = admin.call("GET", f"/v1/users/{person.id}")

    assert answer.status_code == 200
    assert answer.json == person.call("GET", "/v1/me").json


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_nobody_there_and_nobody_possible_are_both_404(pg_api, method):
    """A malformed id (with braces or a prefix) is 404, too."""
    admin = pg_api.an_admin()
    ids = [
        str(uuid.uuid4()),
        "x",
        "1",
        "%00",
        "%ff",
        f"{{{admin.id}}}",
        f"urn:uuid:{admin.id}",
    ]
    body = {"json": {"status": "active"}} if method == "PATCH" else {}

    answers = [admin.call(method, f"/v1/users/{user_id}", **body) for user_id in ids]

    assert {(answer.status_code, code_of(answer)) for answer in answers} == {(404, "not_found")}
    assert admin.call("DELETE", f"/v1/users/{uuid.uuid4()}/sessions").status_code == 404
    assert admin.call("DELETE", "/v1/users/x/sessions").status_code == 404


@pytest.mark.parametrize("sqlite", [False, True], ids=["postgresql", "sqlite"])
def test_the_list_goes_through_everybody_once(make_api, sqlite):
    """Page by page by the cursor, filtered by role and status; the last page has none."""
    api = make_api(sqlite=sqlite)
    admin = api.an_admin()
    people = [api.someone() for _ in range(6)]
    standing(admin, people[0], status="disabled")
    standing(admin, people[1], roles=["admin"])

    def everybody(query: str) -> list[str]:
        found: list[str] = []
        cursor = ""
        while cursor is not None:
            page = admin.call("GET", f"/v1/users?limit=2{query}{cursor and f'&cursor={cursor}'}")
            assert page.status_code == 200
            assert set(page.json) == {"items", "next_cursor"}
            assert len(page.json["items"]) <= 2
            found += [user["id"] for user in page.json["items"]]
            cursor = page.json["next_cursor"]
        return found

    assert Counter(everybody("")) == Counter([admin.id, *(person.id for person in people)])
    assert set(everybody("&role=admin")) == {admin.id, people[1].id}
    assert len(everybody("&role=user")) == 7
    assert everybody("&status=disabled") == [people[0].id]
    assert len(everybody("&status=active")) == 6
    assert everybody("&role=admin&status=disabled") == []
    whole = admin.call("GET", "/v1/users").json
    assert (len(whole["items"]), whole["next_cursor"]) == (7, None)


@pytest.mark.parametrize(
    "query",
    [
        "role=root", "role=", "role=Admin", "status=gone", "limit=0", "limit=201", "limit=-1", "limit=%2B5",
        "limit=1_0", "limit=%D9%A3", "limit=+5", "limit=5.0", "limit=", "limit=1e2", "limit=9999999999",
        "cursor=x", "cursor=", "cursor=%00", "page=2", "ROLE=admin", "role=%00", "status=active%0A",
    ],
)  # fmt: skip
def test_a_query_that_is_not_understood_is_refused(pg_api, query):
    """422: a typing error is no filter."""
    answer = pg_api.an_admin().call("GET", f"/v1/users?{query}")

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")


@pytest.mark.parametrize("limit", ["1", "200"])
def test_the_ends_of_the_limit_are_within_it(pg_api, limit):
    """At least one, at most 200."""
    assert pg_api.an_admin().call("GET", f"/v1/users?limit={limit}").status_code == 200


def test_a_change_of_roles_holds_on_the_next_request(api, admin):
    """Every earlier access token is 401, on every route; a refresh brings the new roles."""
    person = api.someone()

    answer = standing(admin, person, roles=["admin"])

    assert (answer.status_code, answer.json["roles"]) == (200, ["user", "admin"])
    assert not person.is_accepted()
    promoted = person.refresh()
    assert promoted.call("GET", "/v1/users").status_code == 200
    standing(admin, person, roles=["user"])
    assert promoted.call("GET", "/v1/users").status_code == 401
    demoted = promoted.refresh()
    assert demoted.claims()["roles"] == ["user"]
    assert demoted.call("GET", "/v1/users").status_code == 403


def test_disabling_ends_sessions_and_enabling_revives_none(api, admin):
    """Every token is dead, no login; enabled again, the user logs in anew."""
    person = api.someone()
    other = person.log_in()

    answer = standing(admin, person, status="disabled")

    assert (answer.status_code, answer.json["status"]) == (200, "disabled")
    assert [one.is_accepted() for one in (person, other)] == [False, False]
    assert code_of(api.refresh(other.refresh_token)) == "session_ended"
    assert code_of(api.log_in(person.email)) == "invalid_credentials"
    assert standing(admin, person, status="active").json["status"] == "active"
    assert [one.is_accepted() for one in (person, other)] == [False, False]
    assert code_of(api.refresh(person.refresh_token)) == "session_ended"
    assert person.log_in().is_accepted()


def test_a_change_that_changes_nothing_cuts_nobody_off(api, admin):
    """The same roles and status again: 200, and the tokens go on."""
    person = api.someone()

    answer = standing(admin, person, roles=["user"], status="active")

    assert answer.status_code == 200
    assert person.is_accepted()


@pytest.mark.parametrize(
    ("roles", "outcome"),
    [
        (["user"], ["user"]),
        (["admin"], ["user", "admin"]),
        (["admin", "user"], ["user", "admin"]),
        (["admin", "admin"], ["user", "admin"]),
        ([], None),
        (["root"], None),
        (["admin", "root"], None),
        (["ADMIN"], None),
        ([None], None),
        ([1], None),
        ("admin", None),
        (None, None),
        ({"admin": True}, None),
    ],
)
def test_roles_are_a_set_of_known_words(pg_api, roles, outcome):
    """``["admin"]`` means both; an empty list and unknown words are 422."""
    answer = standing(pg_api.an_admin(), pg_api.someone(), roles=roles)

    if outcome is None:
        assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
        assert all(name.startswith("roles") for name in answer.json["errors"])
    else:
        assert (answer.status_code, answer.json["roles"]) == (200, outcome)


@pytest.mark.parametrize(
    "change",
    [{}, {"status": "gone"}, {"status": None}, {"name": "x"}, {"email": "x@example.com"}, {"epoch": 0}],
)
def test_an_admin_changes_roles_and_status_alone(pg_api, change):
    """422 for everything else, and for nothing at all."""
    answer = standing(pg_api.an_admin(), pg_api.someone(), **change)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")


def test_deleting_a_user_leaves_nothing_of_them(api, admin):
    """204; the tokens are dead, the user is in no list, and a second time the user is not there."""
    person = api.someone()
    assert person.is_accepted()

    answer = admin.call("DELETE", f"/v1/users/{person.id}")

    assert (answer.status_code, answer.data) == (204, b"")
    assert not person.is_accepted()
    assert code_of(api.refresh(person.refresh_token)) == "refresh_invalid"
    assert admin.call("GET", f"/v1/users/{person.id}").status_code == 404
    assert admin.call("DELETE", f"/v1/users/{person.id}").status_code == 404
    assert person.id not in [user["id"] for user in admin.call("GET", "/v1/users?limit=200").json["items"]]


def test_ending_all_sessions_of_a_user_ends_theirs_alone(api, admin):
    """204; every token of the user is dead, they may log in again at once."""
    person = api.someone()
    other = person.log_in()

    answer = admin.call("DELETE", f"/v1/users/{person.id}/sessions")

    assert (answer.status_code, answer.data) == (204, b"")
    assert [one.is_accepted() for one in (person, other, admin)] == [False, False, True]
    assert code_of(api.refresh(person.refresh_token)) == "session_ended"
    assert person.log_in().is_accepted()


@pytest.fixture(params=[False, True], ids=["postgresql", "sqlite"])
def empty_api(make_api: MakeApi, request) -> Api:
    """Give the test an application without any admin."""
    return make_api(sqlite=request.param)


def test_the_last_active_admin_stays(empty_api):
    """That admin can be neither demoted, disabled nor deleted; a disabled colleague does not count."""
    admin, colleague = empty_api.an_admin(), empty_api.an_admin()
    assert standing(admin, colleague, status="disabled").status_code == 200

    answers = [
        standing(admin, admin, roles=["user"]),
        standing(admin, admin, status="disabled"),
        admin.call("DELETE", f"/v1/users/{admin.id}"),
    ]

    assert {(answer.status_code, code_of(answer)) for answer in answers} == {(409, "last_admin")}
    assert admin.is_accepted()
    assert standing(admin, colleague, status="active").status_code == 200
    assert standing(admin, admin, roles=["user"]).status_code == 200
    assert not admin.is_accepted()


def test_of_admins_who_all_step_down_at_once_one_stays(make_api):
    """None counts on the others: sixteen admins, fifteen times 200 and once 409."""
    api = make_api()
    admins = [api.an_admin() for _ in range(16)]

    answers = at_once(lambda admin: standing(admin, admin, roles=["user"]), admins)

    assert Counter(answer.status_code for answer in answers) == {200: 15, 409: 1}
    (left,) = [admin for admin, answer in zip(admins, answers, strict=True) if answer.status_code == 409]
    assert left.call("GET", "/v1/users").status_code == 200


@pytest.mark.parametrize("what", ["disable", "delete"])
def test_logins_and_refreshes_that_race_the_end_of_a_user_leave_nothing_alive(make_api, what):
    """Whoever comes first: once the admin has the answer, no token that was handed out is good."""
    api = make_api(SESSION_MAX_PER_USER="50")
    admin, person = api.an_admin(), api.someone()

    def act(number: int):
        if number == 10:
            is_delete = what == "delete"
            return (
                admin.call("DELETE", f"/v1/users/{person.id}")
                if is_delete
                else standing(admin, person, status="disabled")
            )
        return api.log_in(person.email) if number % 2 else api.refresh(person.refresh_token)

    answers = at_once(act, range(32))

    assert answers[10].status_code in {200, 204}
    pairs = [answer.json for answer in answers if answer.status_code == 200 and "access_token" in answer.json]
    assert {api.verify(pair["access_token"]) for pair in pairs} <= {401}
    assert {api.refresh(pair["refresh_token"]).status_code for pair in pairs} <= {401}


@pytest.fixture(scope="module")
def guarded_api(make_module_api: MakeApi) -> Api:
    """Share an application with every route for admins that changes a user."""
    return make_module_api(**UNLIMITED)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PATCH", "", {"roles": ["admin"]}, 200),
        ("PATCH", "", {"status": "disabled"}, 200),
        ("DELETE", "", None, 204),
        ("DELETE", "/sessions", None, 204),
        ("DELETE", "/factors", None, 204),
    ],
)
def test_what_an_admin_began_before_their_session_ended_is_finished(guarded_api, method, path, body, status):
    """A request is checked once, when it begins: the same on every route for admins; the next one is 401."""
    admin, person = guarded_api.an_admin(), guarded(guarded_api).person
    options = {} if body is None else {"json": body}

    def act() -> int:
        answer = admin.call(method, f"/v1/users/{person.id}{path}", **options)
        return int(answer.status_code)

    url = guarded_api.env["DATABASE_URL"]
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(url, autocommit=True) as watcher,
        psycopg.connect(url) as holder,
    ):
        holder.execute("SELECT 1 FROM users WHERE id = %s FOR UPDATE", (person.id,))
        holder.execute("SELECT 1 FROM sessions WHERE user_id = %s FOR UPDATE", (person.id,))

        def is_waiting() -> bool:
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
            return watcher.execute(waiting, (holder.info.dbname,)).fetchone() is not None

        begun = pool.submit(act)
        wait_until(is_waiting, what="the request at the lock")
        assert admin.call("POST", "/v1/auth/logout").status_code == 204
        holder.rollback()

        assert begun.result() == status

    assert act() == 401
