"""Who may read which security events: admins all of them, users what happened to their accounts."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.api.audit.auditing import AGENT, IP, WRONG, Stage, Theatre
from tests.api.driver import code_of, json_of, new_email
from tests.api.mailing import MAIL
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def theatre(make_module_api, request) -> Iterator[Theatre]:
    """Share one application over each kind of database."""
    with closing(Theatre(make_module_api(sqlite=request.param == "sqlite", **MAIL))) as made:
        yield made


@pytest.fixture
def stage(theatre: Theatre) -> Stage:
    """Take a new user, and look past all that is there already."""
    return theatre.stage()


def test_an_admin_finds_events_by_what_they_are_about(stage):
    """By action, user, actor, address and time; the newest first."""
    begun = stage.api.clock()
    stage.log_in(WRONG)
    stage.log_in()
    stage.admin.call("DELETE", f"/v1/users/{stage.user.id}/sessions")
    about = f"user_id={stage.user.id}"

    def found(query: str) -> list[str]:
        answer = stage.admin.call("GET", f"/v1/audit?{query}")
        assert answer.status_code == 200, answer.text
        return [item["action"] for item in json_of(answer)["items"]]

    made = ["sessions.ended", "login.succeeded", "login.failed", "login.succeeded", "user.registered"]
    since = begun.isoformat().replace("+00:00", "Z")
    assert found(about) == made
    assert found(f"{about}&action=login.succeeded") == ["login.succeeded"] * 2
    assert found(f"{about}&actor_id={stage.admin.id}") == ["sessions.ended"]
    assert found(f"{about}&ip={IP}") == ["login.succeeded", "login.failed"]
    assert found(f"{about}&since={since}") == made[:3]
    assert found(f"{about}&until={since}") == made[3:]


def test_an_item_has_every_field(stage):
    """The form that programs rely on."""
    stage.log_in(WRONG)
    answer = stage.admin.call("GET", f"/v1/audit?user_id={stage.user.id}&limit=1")

    body = json_of(answer)

    assert body["items"][0].keys() == {
        *("id", "at", "action", "user_id", "actor_id", "session_id", "ip", "user_agent", "device_id"),
        *("account", "detail", "request_id", "count"),
    }
    assert body["next_cursor"] == body["items"][0]["id"]


def test_the_cursor_goes_through_everything_once(stage):
    """To the end, where there is none."""
    for _ in range(4):
        stage.log_in()
    seen: list[str] = []
    query = f"/v1/audit?user_id={stage.user.id}&limit=2"

    body = json_of(stage.admin.call("GET", query))
    seen += [item["id"] for item in body["items"]]
    while body["next_cursor"]:
        body = json_of(stage.admin.call("GET", f"{query}&cursor={body['next_cursor']}"))
        seen += [item["id"] for item in body["items"]]

    assert len(seen) == len(set(seen)) == 6
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    "query",
    [
        *(
            "action=login",
            "action=",
            "user_id=x",
            "actor_id=1",
            "ip=1.2.3",
            "ip=::0",
            "limit=0",
            "limit=201",
        ),
        *(
            "limit=+5",
            "limit=x",
            "cursor=x",
            "since=yesterday",
            "since=2026-11-20T12:00:00",
            "until=",
            "x=1",
        ),
        *("cursor=7d8b1d0e-0a53-4be4-93f9-0b0a8bfc1c11", "action=token.unrecorded", "user_id=%00"),
        *("since=99999-01-01T00:00:00Z", "until=0001-01-01T00:00:00%2B99:00"),
    ],
)
def test_what_is_no_filter_is_refused(stage, query):
    """422 with the field, and never something else than was asked for."""
    answer = stage.admin.call("GET", f"/v1/audit?{query}")

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert query.partition("=")[0] in json_of(answer)["errors"]


@pytest.mark.parametrize("when", ["0001-01-01T00:00:00%2B23:59", "9999-12-31T23:59:59.999999-23:59"])
def test_the_ends_of_time_are_times(stage, when):
    """Whatever can be written is compared, and nothing is a fault of the service."""
    answers = [stage.admin.call("GET", f"/v1/audit?{name}={when}") for name in ("since", "until")]

    assert [answer.status_code for answer in answers] == [200, 200]


def test_a_user_sees_what_happened_to_them_and_not_which_admin_did_it(stage):
    """Their logins with place and device, and of what an administrator did that it was somebody else."""
    stage.log_in(WRONG, device_id="laptop")
    stage.api.log_in(new_email(), ip=IP)
    stage.admin.call("DELETE", f"/v1/users/{stage.user.id}/sessions")
    stage.admin.call("POST", "/v1/cache/clear", json={"user_id": stage.user.id})
    again = stage.user.log_in()

    answer = again.call("GET", "/v1/me/events")
    items = json_of(answer)["items"]

    assert [item["action"] for item in items] == [
        *("login.succeeded", "sessions.ended", "login.failed", "login.succeeded", "user.registered"),
    ]
    assert items[1]["by_another"] is True
    assert (items[1]["ip"], items[1]["user_agent"]) == (None, None)
    failed = {name: items[2][name] for name in ("ip", "user_agent", "device_id", "by_another")}
    assert failed == {"ip": IP, "user_agent": AGENT, "device_id": "laptop", "by_another": False}
    assert stage.admin.id not in answer.text


def test_a_user_pages_through_their_own_and_filters_nothing(stage):
    """The same cursor and limit; any other name is refused."""
    stage.log_in()
    first = json_of(stage.user.call("GET", "/v1/me/events?limit=2"))
    rest = json_of(stage.user.call("GET", f"/v1/me/events?cursor={first['next_cursor']}"))

    refused = [
        stage.user.call("GET", f"/v1/me/events?{query}").status_code
        for query in (f"user_id={stage.admin.id}", "limit=201", "cursor=x", "action=login.failed")
    ]

    assert [item["action"] for item in first["items"]] == ["login.succeeded"] * 2
    assert [item["action"] for item in rest["items"]] == ["user.registered"]
    assert (rest["next_cursor"], refused) == (None, [422] * 4)


def test_rows_of_an_account_outlive_it(stage):
    """Deleting an account that was taken over does not delete its events."""
    stage.user.call("DELETE", "/v1/me", json={"password": PASSWORD})

    kept = json_of(stage.admin.call("GET", f"/v1/audit?user_id={stage.user.id}"))["items"]

    assert [item["action"] for item in kept] == ["user.deleted", "login.succeeded", "user.registered"]
    assert kept[0]["actor_id"] == stage.user.id
