"""Times: one form in every answer, and that form taken back in a query."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from authsvc.settings import Settings
from tests.api.driver import Api, json_of
from tests.api.test_feed import Reader
from tests.transfers import Desk, user

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIME = re.compile(r'"(\d{4}-\d\d-\d\dT[^"]*)"')


def times_in(*texts: str) -> list[str]:
    """Every time that *texts* show."""
    return [time for text in texts for time in _TIME.findall(text)]


def answers(api: Api) -> Iterator[str]:
    """Every answer with a time in it, about users with and without a login."""
    admin, person = api.an_admin(), api.someone()
    yield api.register("fresh@example.com").text
    for path in ("/v1/me", "/v1/me/sessions", "/v1/me/events", f"/v1/users/{person.id}", "/v1/users"):
        yield admin.call("GET", path).text
    yield admin.call("GET", "/v1/audit").text
    yield admin.call("GET", f"/v1/batch/users/lookup?ids={person.id}").text
    new = {"email": "many@example.com", "password": person.password}
    yield admin.call("POST", "/v1/batch/users/create", json={"users": [new]}).text
    yield admin.call("PATCH", f"/v1/users/{person.id}", json={"status": "disabled"}).text
    yield Reader(api).ask("").text
    yield admin.call("GET", "/v1/health").text
    yield admin.call("GET", "/v1/health/detailed").text


def test_every_time_ends_in_z(pg_api):
    """RFC 3339 in UTC, so that a query that repeats it needs no escaping."""
    texts = list(answers(pg_api))

    for text in texts:
        found = times_in(text)
        assert found, text
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z", time) for time in found), found


def test_an_imported_time_is_answered_in_utc(pg_api):
    """Whatever zone the file has, from SQL and from the cache."""
    admin = pg_api.an_admin()
    Desk(pg_api.services, Settings.from_env(pg_api.env)).take(
        user("zoned", created_at="2020-01-02T03:04:05+02:00")
    )
    [item] = [
        one
        for one in json_of(admin.call("GET", "/v1/users?limit=200"))["items"]
        if one["email"][:6] == "zoned@"
    ]

    shown = [json_of(admin.call("GET", f"/v1/users/{item['id']}"))["created_at"] for _ in range(2)]

    assert {item["created_at"], *shown} == {"2020-01-02T01:04:05Z"}


@pytest.mark.parametrize("name", ["clients", "keys"])
def test_the_command_line_writes_them_so_too(pg_api, command, monkeypatch, capsys, name):
    """One form for programs to read."""
    pg_api.services.client_registry.create("reader")
    for variable, value in pg_api.env.items():
        monkeypatch.setenv(variable, value)

    assert command([name, "list"]) == 0

    found = times_in(capsys.readouterr().out)
    assert found
    assert all(time.endswith("Z") for time in found)


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda at: at, id="as it is answered"),
        pytest.param(lambda at: at.replace("Z", "+00:00"), id="a plus that became a space"),
        pytest.param(lambda at: quote(at.replace("Z", "+00:00")), id="a plus that was escaped"),
        pytest.param(
            lambda at: datetime.fromisoformat(at).isoformat().replace("+00:00", "%2000:00"), id="a space"
        ),
    ],
)
def test_a_time_from_an_answer_may_be_asked_with(pg_api, written):
    """An unescaped plus means a space in a query: before hh:mm at the end it can only have been a plus."""
    admin = pg_api.an_admin()
    person = pg_api.someone()
    about = f"/v1/audit?user_id={person.id}"
    [last, *_] = json_of(admin.call("GET", about))["items"]

    answer = admin.call("GET", f"{about}&since={written(last['at'])}")

    assert answer.status_code == 200, answer.text
    assert [item["id"] for item in json_of(answer)["items"]] == [last["id"]]


@pytest.mark.parametrize("path", ["/v1/audit", "/v1/users", "/v1/me/events", "/v1/batch/users/lookup"])
@pytest.mark.parametrize("query", ["a-b=1", "%3Cb%3E=1", "=1"])
def test_a_fault_in_the_query_is_no_fault_of_a_body(pg_api, path, query):
    """A name that is not repeated to the caller is at fault in the query."""
    answer = pg_api.an_admin().call("GET", f"{path}?{query}")

    errors = json.loads(answer.text)["errors"]
    assert answer.status_code == 422
    assert "query" in errors
    assert "body" not in errors
