"""The busiest routes without Flask: nobody can tell, but for the time that it takes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from authsvc.api import direct
from authsvc.domain.authentication import Authentication
from authsvc.domain.errors import RefreshReused, SessionOver, StoreUnavailable
from authsvc.domain.revocations import Outcome

REFRESH, LOGOUT = "/v1/auth/refresh", "/v1/auth/logout"
JSON = "application/json"
BROWSER = {
    "User-Agent": "Mozilla/5.0 \u00e9",
    "X-Request-Id": "one-of-mine",
    "Origin": "https://app.example.com",
}
LONG = {"json": {"refresh_token": "x" * 70_000}}

#: Requests that the direct route answers, or has to leave to Flask.
REFRESHES = {
    "malformed token": {"json": {"refresh_token": "abc"}},
    "empty token": {"json": {"refresh_token": ""}},
    "unknown session": {"json": {"refresh_token": "A" * 70}},
    "with a query": {"json": {"refresh_token": "abc"}, "query_string": "a=b"},
    "no body": {},
    "an empty object": {"json": {}},
    "no object": {"json": ["abc"]},
    "another type": {"json": {"refresh_token": 5}},
    "null": {"json": {"refresh_token": None}},
    "unknown member": {"json": {"refresh_token": "abc", "more": 1}},
    "a NUL": {"json": {"refresh_token": "a\0c"}},
    "one name twice": {
        "data": b'{"refresh_token":"a","refresh_token":"b"}',
        "content_type": "application/json",
    },
    "no JSON": {"data": b"{", "content_type": JSON},
    "not UTF-8": {"data": b'{"refresh_token":"\xff"}', "content_type": JSON},
    "with a charset": {"data": b'{"refresh_token":"a"}', "content_type": f"{JSON}; charset=utf-8"},
    "another charset": {
        "data": b'{"refresh_token":"a"}',
        "content_type": f"{JSON}; charset=latin-1",
    },
    "a form": {"data": {"refresh_token": "a"}},
    "another media type": {"data": b'{"refresh_token":"a"}', "content_type": "text/plain"},
    "no media type": {"data": b'{"refresh_token":"a"}'},
    "too long": LONG,
    "compressed": {"json": {"refresh_token": "a"}, "headers": {"Content-Encoding": "gzip"}},
    "an empty coding": {"json": {"refresh_token": "a"}, "headers": {"Content-Encoding": ""}},
    "a bad length": {"json": {"refresh_token": "a"}, "headers": {"Content-Length": "\u00b2"}},
    "a short length": {"data": b'{"refresh_token":"a"}', "headers": {"Content-Length": "5"}},
}
LOGOUTS = {
    "no token": {},
    "an empty header": {"headers": {"Authorization": ""}},
    "another scheme": {"headers": {"Authorization": "Basic YTpi"}},
    "no token in it": {"headers": {"Authorization": "Bearer"}},
    "a forged token": {"headers": {"Authorization": "Bearer a.b.c"}},
    "a body": {"headers": {"Authorization": "Bearer a.b.c"}, "json": {"refresh_token": "a"}},
    "an empty body with a type": {"headers": {"Authorization": "Bearer a.b.c"}, "content_type": "text/plain"},
    "a broken body": {
        "headers": {"Authorization": "Bearer a.b.c"},
        "data": b"{",
        "content_type": "application/json",
    },
}
CASES = [
    *((REFRESH, name, about) for name, about in REFRESHES.items()),
    *((LOGOUT, name, about) for name, about in LOGOUTS.items()),
]


@pytest.fixture
def through_flask(monkeypatch):
    """Calls what it is given while no request is a plain one."""

    def call(send):
        with monkeypatch.context() as patch:
            patch.setattr(direct, "_meant", lambda *_: None)
            return send()

    return call


def client(api):
    """What sends requests as they are given."""
    return api.application.flask.test_client(use_cookies=False)


def told(answer) -> tuple[str, list[tuple[str, str]], str]:
    """All of *answer*, but for what is different each time."""
    body = re.sub(r'"(access_token|refresh_token|request_id)": ?"[^"]+"', r"\1", answer.text)
    headers = [(name, value) for name, value in answer.headers if name != "X-Request-Id"]
    return answer.status, headers, body


def series(api) -> dict[str, float]:
    """The counts of requests, by their labels."""
    found = {}
    for metric in api.services.metrics.registry.collect():
        for sample in metric.samples:
            if sample.name in {"flask_http_request_total", "flask_http_request_duration_seconds_count"}:
                found[f"{sample.name}{sorted(sample.labels.items())}"] = sample.value
    return found


def rise(api, send) -> tuple[Any, dict[str, float]]:
    """What *send* returns, and which counts it raised by how much."""
    before = series(api)
    answer = send()
    after = series(api)
    return answer, {
        name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name)
    }


@pytest.mark.parametrize(
    ("path", "about"), [(p, a) for p, _, a in CASES], ids=[f"{p}: {n}" for p, n, _ in CASES]
)
def test_a_refusal_is_the_same_with_and_without_flask(api, through_flask, caplog, path, about):
    """Status, headers in their order, body, log and counts."""
    caplog.set_level("INFO", logger="authsvc.requests")
    options = {**about, "headers": {**BROWSER, **about.get("headers", {})}}

    def send():
        return client(api).post(path, **options)

    here, counted_here = rise(api, send)
    lines_here = [lines(record) for record in caplog.records if record.name == "authsvc.requests"]
    caplog.clear()
    there, counted_there = rise(api, lambda: through_flask(send))

    assert told(here) == told(there)
    assert here.status_code >= 400
    assert here.headers["X-Request-Id"] == there.headers["X-Request-Id"] == "one-of-mine"
    assert lines_here == [lines(record) for record in caplog.records if record.name == "authsvc.requests"]
    assert counted_here == counted_there
    assert counted_here


def lines(record) -> tuple[object, ...]:
    """What a line says of a request, but for the time that it took."""
    return record.getMessage(), record.method, record.route, record.status


def test_a_grant_and_a_logout_are_the_same_with_and_without_flask(api, through_flask):
    """Two sessions of one user, each refreshed and ended in one of the ways."""
    alice, other = api.someone(), None
    other = alice.log_in()

    def refresh(session):
        return lambda: client(api).post(
            REFRESH, json={"refresh_token": session.refresh_token}, headers=BROWSER
        )

    def log_out(session):
        return lambda: client(api).post(
            LOGOUT, headers={**BROWSER, "Authorization": f"Bearer {session.access}"}
        )

    for act in (refresh, log_out, log_out):
        here, counted_here = rise(api, act(alice))
        there, counted_there = rise(api, lambda act=act: through_flask(act(other)))

        assert told(here)[:2] == told(there)[:2]
        assert re.sub(r"[0-9a-f-]{36}", "", told(here)[2]) == re.sub(r"[0-9a-f-]{36}", "", told(there)[2])
        assert counted_here == counted_there
        assert here.status_code in {200, 204}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused_as_before(api, method):
    """By Flask, which says what is allowed."""
    for path in (REFRESH, LOGOUT):
        answer = client(api).open(path, method=method)

        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("sql: gone"), SessionOver(), RefreshReused(), RuntimeError("a fault of ours")],
    ids=lambda error: type(error).__name__,
)
def test_what_goes_wrong_within_is_told_the_same(api, through_flask, monkeypatch, error):
    """Outages, refusals and faults."""

    def fail(*_):
        raise error

    monkeypatch.setattr(Authentication, "refresh", fail)
    monkeypatch.setattr(Authentication, "log_out", fail)
    bearer = {**BROWSER, "Authorization": "Bearer a.b.c"}
    for path, options in (
        (REFRESH, {"json": {"refresh_token": "a"}, "headers": BROWSER}),
        (LOGOUT, {"headers": bearer}),
    ):

        def send(path=path, options=options):
            return client(api).post(path, **options)

        here, counted_here = rise(api, send)
        there, counted_there = rise(api, lambda send=send: through_flask(send))

        assert told(here) == told(there)
        assert counted_here == counted_there


def test_a_logout_that_redis_has_yet_to_hear_of_is_told_the_same(api, through_flask, monkeypatch):
    """202, and no body."""
    outcome = Outcome(None, is_complete=False)
    monkeypatch.setattr(Authentication, "log_out", lambda *_: outcome)

    def send():
        return client(api).post(LOGOUT, headers={**BROWSER, "Authorization": "Bearer a.b.c"})

    here = send()

    assert here.status_code == 202
    assert told(here) == told(through_flask(send))


def test_a_refresh_beyond_its_limit_is_told_the_same(make_api, through_flask):
    """With the headers of the limit, on what is granted, too."""
    api = make_api(RATE_LIMIT_REFRESH="2/minute")
    alice, other = api.someone(), api.someone()
    for _ in range(3):
        here = client(api).post(REFRESH, json={"refresh_token": alice.refresh_token})
        there = through_flask(lambda: client(api).post(REFRESH, json={"refresh_token": other.refresh_token}))

        assert (here.status, here.headers["RateLimit"]) == (there.status, there.headers["RateLimit"])
        assert list(here.headers.keys()) == list(there.headers.keys())
    assert here.status_code == 429
