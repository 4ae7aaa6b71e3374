"""The busiest routes in groups and without Flask: the answers are those of Flask."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from werkzeug.datastructures import EnvironHeaders
from werkzeug.test import EnvironBuilder

from authsvc.domain.authentication import Authentication
from authsvc.domain.errors import RefreshReused, SessionOver, StoreUnavailable
from authsvc.domain.revocations import Outcome
from authsvc.server.checks import PostReader
from authsvc.store.sessions import SqlSessionStore

if TYPE_CHECKING:
    from authsvc.api.grouped import Answer

REFRESH, LOGOUT = "/v1/auth/refresh", "/v1/auth/logout"
JSON = "application/json"
BROWSER = {
    "User-Agent": "Mozilla/5.0 \u00e9",
    "X-Request-Id": "one-of-mine",
    "Origin": "https://app.example.com",
}
LONG = {"json": {"refresh_token": "x" * 70_000}}

#: Requests that are answered in a group, or left to Flask.
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


#: Those that are answered in groups.
PLAIN = {"malformed token", "empty token", "unknown session", "a forged token", "an empty body with a type"}


class Told(NamedTuple):
    """An answer, but for what is different each time."""

    status: str
    headers: list[tuple[str, str]]
    body: str


def client(api):
    """What sends requests to Flask, as they are given."""
    return api.application.flask.test_client(use_cookies=False)


def in_a_group(api, *asked: tuple[str, dict[str, Any]]) -> list[Answer | None]:
    """What the routes answer to requests on one path; None where the request is left to Flask."""
    reader = PostReader(api.application.grouped.paths)
    requests = [
        reader.read(raw(path, options), address="127.0.0.1", began_s=time.monotonic())
        for path, options in asked
    ]
    answers = iter(api.application.grouped.answer([request for request in requests if request]))
    return [next(answers) if request else None for request in requests]


def raw(path: str, options: dict[str, Any]) -> bytes:
    """The bytes of a request that the test client would make."""
    builder = EnvironBuilder(path, method="POST", **options)
    environ = builder.get_environ()
    target = path + (f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else "")
    fields = {"Host": "localhost", **EnvironHeaders(environ)}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + bytes(environ["wsgi.input"].read())


def read(answer: Answer | None) -> Told:
    """The parts of an answer to a member of a group."""
    assert answer is not None
    head, _, body = answer.rest.partition(b"\r\n\r\n")
    lines = [line.partition(": ") for line in head.decode("latin-1").splitlines()]
    headers = [(name, value) for name, _, value in lines]
    return plain(answer.status, headers, body.decode())


def told(answer) -> Told:
    """The same of an answer of Flask."""
    return plain(answer.status, list(answer.headers), answer.text)


def plain(status: str, headers: list[tuple[str, str]], body: str) -> Told:
    """Without ids and tokens that the service made up."""
    body = re.sub(r'("(?:access_token|refresh_token)": ?)"[^"]+"', r'\1""', body)
    return Told(status, headers, re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "", body))


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


@pytest.mark.parametrize(("path", "name", "about"), CASES, ids=[f"{p}: {n}" for p, n, _ in CASES])
def test_a_refusal_is_the_same_as_by_flask(api, caplog, path, name, about):
    """Status, headers in their order, body, log and counts; what is not plain is left to Flask untouched."""
    caplog.set_level("INFO", logger="authsvc.requests")
    options = {**about, "headers": {**BROWSER, **about.get("headers", {})}}

    (here,), counted_here = rise(api, lambda: in_a_group(api, (path, options)))
    lines_here = [lines(record) for record in caplog.records if record.name == "authsvc.requests"]
    caplog.clear()

    assert (here is not None) == (name in PLAIN)
    if here is None:
        assert (counted_here, lines_here) == ({}, [])
        return
    there, counted_there = rise(api, lambda: client(api).post(path, **options))
    assert read(here) == told(there)
    assert there.status_code >= 400
    assert ("X-Request-Id", "one-of-mine") in read(here).headers
    assert lines_here == [lines(record) for record in caplog.records if record.name == "authsvc.requests"]
    assert counted_here == counted_there
    assert counted_here


def lines(record) -> tuple[object, ...]:
    """What a line says of a request, but for the time that it took."""
    return record.getMessage(), record.method, record.route, record.status


def test_grants_and_logouts_are_the_same_as_by_flask(api):
    """Four sessions of one user in a group, and one without: refreshed, ended and ended again."""
    alice = api.someone()
    other, *some = (alice.log_in() for _ in range(5))

    def refresh(session):
        return REFRESH, {"json": {"refresh_token": session.refresh_token}, "headers": BROWSER}

    def log_out(session):
        return LOGOUT, {"headers": {**BROWSER, "Authorization": f"Bearer {session.access}"}}

    for act in (refresh, log_out):
        here, counted_here = rise(api, lambda act=act: in_a_group(api, *map(act, some)))
        path, options = act(other)
        there, counted_there = rise(api, lambda path=path, options=options: client(api).post(path, **options))

        assert [read(answer) for answer in here] == [told(there)] * 4
        assert there.status_code in {200, 204}
        assert counted_here == {name: 4 * count for name, count in counted_there.items()}

    for session in some:  # over already, which may be left to Flask
        (again,), counted = rise(api, lambda session=session: in_a_group(api, log_out(session)))
        path, options = log_out(session)
        there, counted_there = rise(api, lambda path=path, options=options: client(api).post(path, **options))

        assert again is None or read(again) == told(there)
        assert counted == ({} if again is None else counted_there)
        assert there.status_code == 204


def test_each_member_of_a_group_has_its_own_answer(api):
    """One token is forged, one reused, two are the same, and one is no token at all."""
    alice = api.someone()
    used, good = alice.log_in(), alice.log_in()
    client(api).post(REFRESH, json={"refresh_token": used.refresh_token})
    api.clock.tick(60)
    tokens = [used.refresh_token, "A" * 70, good.refresh_token, good.refresh_token, "?"]

    answers = in_a_group(api, *((REFRESH, {"json": {"refresh_token": token}}) for token in tokens))

    bodies = [json.loads(read(answer).body) for answer in answers]
    assert [body.get("code", body.get("token_type")) for body in bodies] == [
        "refresh_reused",
        "refresh_invalid",
        "Bearer",
        "Bearer",
        "refresh_invalid",
    ]


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
def test_what_goes_wrong_within_is_told_the_same(api, monkeypatch, error):
    """Outages, refusals and faults."""

    def fail(*_):
        raise error
        yield

    monkeypatch.setattr(Authentication, "refreshing", fail)
    monkeypatch.setattr(Authentication, "logging_out", fail)
    bearer = {**BROWSER, "Authorization": "Bearer a.b.c"}
    for path, options in (
        (REFRESH, {"json": {"refresh_token": "a"}, "headers": BROWSER}),
        (LOGOUT, {"headers": bearer}),
    ):
        (here,), counted_here = rise(api, lambda path=path, options=options: in_a_group(api, (path, options)))
        there, counted_there = rise(api, lambda path=path, options=options: client(api).post(path, **options))

        assert read(here) == told(there)
        assert counted_here == counted_there


def test_a_logout_that_redis_has_yet_to_hear_of_is_told_the_same(api, monkeypatch):
    """202, and no body."""

    def log_out(*_):
        return Outcome(None, is_complete=False)
        yield

    monkeypatch.setattr(Authentication, "logging_out", log_out)
    options = {"headers": {**BROWSER, "Authorization": "Bearer a.b.c"}}

    (here,) = in_a_group(api, (LOGOUT, options))

    assert read(here).status == "202 ACCEPTED"
    assert read(here) == told(client(api).post(LOGOUT, **options))


def test_a_refresh_beyond_its_limit_is_told_the_same(make_api):
    """With the headers of the limit, on what is granted, too."""
    api = make_api(RATE_LIMIT_REFRESH="2/minute")
    alice, other = api.someone(), api.someone()
    for _ in range(3):
        (here,) = in_a_group(api, (REFRESH, {"json": {"refresh_token": alice.refresh_token}}))
        there = told(client(api).post(REFRESH, json={"refresh_token": other.refresh_token}))

        names = ("RateLimit", "RateLimit-Policy", "Retry-After")
        assert [name for name, _ in read(here).headers] == [name for name, _ in there.headers]
        assert [pair for pair in read(here).headers if pair[0] in names[:2]] == [
            pair for pair in there.headers if pair[0] in names[:2]
        ]
    assert read(here).status.startswith("429")


def test_a_refresh_that_has_to_wait_is_left_to_flask_and_counted_once(make_api, monkeypatch):
    """Another request has the lock of its session."""
    api = make_api(RATE_LIMIT_REFRESH="5/minute")
    alice = api.someone()
    asked = {"json": {"refresh_token": alice.refresh_token}}
    with monkeypatch.context() as patch:
        patch.setattr(SqlSessionStore, "rotate_free", lambda _, rotations: [None for _ in rotations])
        answers, counted = rise(api, lambda: in_a_group(api, (REFRESH, asked)))

    assert (answers, counted) == ([None], {})
    there = client(api).post(REFRESH, **asked)
    assert there.status_code == 200
    assert ";r=4;" in there.headers["RateLimit"]


@pytest.mark.parametrize("origin", ["https://app.example.com", None])
def test_answers_vary_with_the_origin_where_pages_may_call(make_api, origin):
    """What a page of another origin asks is left to Flask."""
    api = make_api(CORS_ORIGINS="https://app.example.com")
    headers = {"X-Request-Id": "mine", **({"Origin": origin} if origin else {})}
    options = {"json": {"refresh_token": "a"}, "headers": headers}

    (here,) = in_a_group(api, (REFRESH, options))

    if origin:
        assert here is None
    else:
        assert read(here).headers == told(client(api).post(REFRESH, **options)).headers
