"""The revocation feed: who reads it, what it says, how it waits, and that it never passes anything over."""

from __future__ import annotations

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, text

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.feed import PLACES, FeedTimings
from authsvc.domain.values.identifiers import SessionId, UserId, new_id
from authsvc.settings import Settings
from authsvc.store.feed import SqlFeedLog
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.tables import revocations
from authsvc.wiring.stores import open_database
from tests.api.driver import Api, Person, code_of, json_of
from tests.processes import wait_until
from tests.rig import PASSWORD
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

    from authsvc.domain.revocations import Revocation

#: The longest wait there is; what does not wait takes much less, also on a busy machine.
LONG_S, SHORT_S = 15, 12


def until_a_new_look() -> None:
    """
    Pause until the next request reads SQL again: for a short time, all readers share one result.

    Only time ends the sharing, and the service does not show that it has ended: there is nothing to poll.
    """
    time.sleep(1.3 * FeedTimings().look_every_s)


class Reader:
    """A client of the feed that follows it from call to call."""

    def __init__(self, api: Api) -> None:
        made = api.services.client_registry.create("reader")
        pair = f"{made.client.id}:{made.secret}".encode()
        self.headers = {"Authorization": "Basic " + base64.b64encode(pair).decode()}
        self.api = api
        self.cursor: str | None = None

    def ask(self, query: str, **options: Any) -> TestResponse:
        """One request."""
        return self.api.call("GET", f"/v1/revocations?{query}", headers=self.headers, **options)

    def read(self, *, wait: float = 0, limit: int = 500, **options: Any) -> dict[str, Any]:
        """The next page; the cursor moves on."""
        after = "" if self.cursor is None else f"&after={self.cursor}"
        answer = self.ask(f"wait={wait}&limit={limit}{after}", **options)
        assert answer.status_code == 200, answer.text
        page = json_of(answer)
        self.cursor = page["cursor"]
        return page

    def caught_up(self) -> Reader:
        """The same, with all read that has been committed by now."""
        self.news()
        return self

    def news(self) -> list[dict[str, Any]]:
        """What there is, once all of what has been committed by now can be seen."""
        items: list[dict[str, Any]] = []
        while True:
            page = self.read()
            items += page["items"]
            # Before that, it is of a look at SQL that was shared, and began before this request.
            if page["waited_ms"] >= 0 and not page["has_more"]:
                return items


@pytest.fixture
def reader(api) -> Reader:
    """A reader who knows everything that there was."""
    return Reader(api).caught_up()


@pytest.fixture
def pg_reader(pg_api) -> Reader:
    """The same over PostgreSQL."""
    return Reader(pg_api).caught_up()


def without_until(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """*items* as they are but for their time."""
    return [{name: member for name, member in item.items() if name != "until"} for item in items]


def ended(person: Person) -> dict[str, Any]:
    """What is said when the session of *person* is over."""
    return {"kind": "session", "session_id": person.session_id}


def test_only_a_client_reads_it(api):
    """Not without credentials, not a user, not a client with a wrong secret."""
    nobody = api.call("GET", "/v1/revocations")
    user = api.call("GET", "/v1/revocations", token=api.someone().access)

    assert [(answer.status_code, code_of(answer)) for answer in (nobody, user)] == [
        (401, "invalid_client")
    ] * 2
    assert nobody.headers["WWW-Authenticate"].startswith("Basic ")


def test_a_logout_is_an_ended_session(reader):
    """The item has its id and the end of its last token; it does not name the user."""
    person = reader.api.someone()
    reader.caught_up()

    reader.api.log_out(access=person.access)
    items = reader.news()

    assert without_until(items) == [ended(person)]
    left_s = (datetime.fromisoformat(items[0]["until"]) - reader.api.clock()).total_seconds()
    assert 3600 <= left_s <= 3665
    assert reader.news() == []


def test_what_ends_no_token_is_not_told(reader):
    """Registrations, logins and changes of a profile are in the log, but not in the feed."""
    person = reader.api.someone()
    person.call("PATCH", "/v1/me", json={"name": "Ada"})

    page = reader.read()

    assert page["items"] == []


def test_each_change_that_ends_tokens_is_told(reader):
    """Password: the other sessions. Roles: a cut-off. Disabling, deleting, ending all: both."""
    api = reader.api
    admin, one = api.an_admin(), api.someone()
    other = one.log_in()
    reader.caught_up()

    def told(answer: TestResponse) -> list[dict[str, Any]]:
        assert answer.status_code in {200, 204}, answer.text
        return sorted(without_until(reader.news()), key=repr)

    def cut_off(epoch: int) -> dict[str, Any]:
        return {"kind": "user", "user_id": one.id, "epoch": epoch}

    changed = {"current_password": PASSWORD, "new_password": "another horse, another staple"}
    path = f"/v1/users/{one.id}"
    epoch = one.claims()["epoch"]

    assert told(one.call("POST", "/v1/me/password", json=changed)) == [ended(other)]
    assert told(admin.call("PATCH", path, json={"roles": ["admin"]})) == [cut_off(epoch + 1)]
    assert told(admin.call("DELETE", f"{path}/sessions")) == [ended(one), cut_off(epoch + 2)]
    assert told(admin.call("PATCH", path, json={"status": "disabled"})) == [cut_off(epoch + 3)]
    assert told(admin.call("DELETE", path)) == [cut_off(epoch + 4)]


def test_a_long_log_is_read_in_pages(pg_api):
    """In order, each once, however small the pages; the last says that it is the last."""
    reader = Reader(pg_api).caught_up()
    person = pg_api.someone()
    sessions = [person.log_in() for _ in range(5)]
    reader.caught_up()
    for session in sessions:
        pg_api.log_out(access=session.access)
    until_a_new_look()

    pages = [reader.read(limit=2) for _ in range(3)]

    assert [item["session_id"] for page in pages for item in page["items"]] == [
        session.session_id for session in sessions
    ]
    assert [page["has_more"] for page in pages] == [True, True, False]


def test_who_begins_hears_all_that_still_matters(make_api):
    """And nothing of which no token can be alive any more."""
    api = make_api()
    person = api.someone()
    old, young = person.log_in(), person.log_in()
    api.log_out(access=old.access)
    api.clock.tick(3000)
    api.log_out(access=young.access)
    api.clock.tick(700)

    assert without_until(Reader(api).read()["items"]) == [ended(young)]


def test_news_end_a_wait(reader):
    """Well before its time is over: that is the lag of a verifier."""
    person = reader.api.someone()
    reader.caught_up()
    with ThreadPoolExecutor(1) as threads:
        began_s = time.monotonic()
        waiting = threads.submit(reader.read, wait=LONG_S)

        reader.api.log_out(access=person.access)

        page = waiting.result()
    assert without_until(page["items"]) == [ended(person)]
    assert time.monotonic() - began_s < SHORT_S
    assert page["waited_ms"] <= (time.monotonic() - began_s) * 1000


def test_a_wait_without_news_is_a_heartbeat(reader):
    """An empty answer shows until when there was nothing; entries that end no token do not end the wait."""
    with ThreadPoolExecutor(1) as threads:
        began_s = time.monotonic()
        waiting = threads.submit(reader.read, wait=0.5)

        reader.api.someone()

        page = waiting.result()
    took_s = time.monotonic() - began_s
    assert (page["items"], page["has_more"], page["reset"]) == ([], False, False)
    assert took_s >= 0.5
    assert 0 < page["waited_ms"] <= took_s * 1000
    assert page["retry_after_ms"] is None


def test_a_draining_worker_lets_nobody_wait(pg_reader):
    """Its stop is not held up; who asks again is told to leave it a moment."""
    draining = threading.Event()
    environ = {"authsvc.draining": draining}
    with ThreadPoolExecutor(1) as threads:
        began_s = time.monotonic()
        waiting = threads.submit(pg_reader.read, wait=LONG_S, environ=environ)

        draining.set()

        page = waiting.result()
    assert time.monotonic() - began_s < SHORT_S
    assert page["retry_after_ms"] == 500


def follow(reader: Reader, draining: threading.Event) -> list[dict[str, Any]]:
    """The first news, however often the reader is turned away; none once the worker is draining."""
    while not draining.is_set():
        if items := reader.read(wait=LONG_S, environ={"authsvc.draining": draining})["items"]:
            return without_until(items)
    return []


def test_only_so_many_wait(pg_api):
    """Beyond the bound the answer comes at once, with what there is and a word on when to ask again."""
    readers = [Reader(pg_api).caught_up() for _ in range(PLACES + 1)]
    last, draining = readers.pop(), threading.Event()
    with ThreadPoolExecutor(PLACES) as threads:
        waiting = [threads.submit(follow, one, draining) for one in readers]

        def is_turned_away() -> bool:
            return bool(last.read(wait=0.01)["retry_after_ms"] == 500)

        try:
            wait_until(is_turned_away, what="all places taken")
            person = pg_api.someone()
            pg_api.log_out(access=person.access)
            wait_until(lambda: ended(person) in without_until(last.read(wait=0.01)["items"]), what="news")
            wait_until(lambda: all(one.done() for one in waiting), what="news for those who wait")
        finally:
            draining.set()

    assert all(ended(person) in items.result() for items in waiting)
    assert last.read(wait=0.01)["retry_after_ms"] is None


@pytest.mark.parametrize(
    "query",
    [
        "after=", "after=x", "after=MQ", "after=%00", "after=MTowOg%3D%3D", "after=" + "A" * 200,
        "after=" + base64.urlsafe_b64encode(b"1:07:").decode().rstrip("="),
        "after=" + base64.urlsafe_b64encode(b"1:99999999999999999:").decode().rstrip("="),
        "wait=-1", "wait=16", "wait=nan", "wait=1e1", "wait=",
        "limit=0", "limit=1001", "limit=-1", "limit=1.5",
        "before=1",
    ],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_refused(pg_reader, query):
    """422, and nothing of it is repeated; never a 500."""
    answer = pg_reader.ask(query)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")


def appended(api: Api, count: int) -> list[Revocation]:
    """Entries that end unknown sessions, appended directly to the log."""
    database = open_database(Settings.from_env(api.env), UNHURRIED)
    log = SqlRevocationLog(database, copies_live=timedelta(seconds=3665), clock=api.clock)
    try:
        drafts = [log.draft_end(UserId(new_id()), SessionId(new_id()), "test") for _ in range(count)]
        with database.transaction() as connection:
            return list(log.append(connection, drafts))
    finally:
        database.close()


def cut_back(api: Api, *, to: int) -> None:
    """Restore the log as it was when *to* was its highest number; numbers are given again from there."""
    database = open_database(Settings.from_env(api.env), UNHURRIED)
    with database.transaction() as connection:
        connection.execute(delete(revocations).where(revocations.c.seq > to))
        connection.execute(text(f"SELECT setval('revocations_seq_seq', {to})"))
    database.close()


@pytest.mark.parametrize("regrown", [0, 1, 4, 9])
def test_a_restored_log_is_read_anew(make_api, regrown):
    """Shorter than the cursor, of its very length, or longer: no entry of the new one is passed over."""
    api = make_api()
    kept = appended(api, 3)
    lost = appended(api, 4)
    reader = Reader(api).caught_up()
    cut_back(api, to=kept[-1].seq)
    new = appended(api, regrown) if regrown else []
    assert not regrown or new[0].seq == lost[0].seq
    until_a_new_look()

    page = reader.read(wait=LONG_S)

    assert page["reset"]
    assert {item["session_id"] for item in page["items"]} == {entry.session_id for entry in (*kept, *new)}
    assert not reader.read()["reset"]


def test_a_log_that_is_cut_back_during_a_wait_is_noticed(make_api):
    """The heartbeat of a log that has lost entries would be a lie."""
    api = make_api()
    kept = appended(api, 2)
    appended(api, 2)
    reader = Reader(api).caught_up()
    with ThreadPoolExecutor(1) as threads:
        began_s = time.monotonic()
        waiting = threads.submit(reader.read, wait=LONG_S)

        cut_back(api, to=kept[-1].seq)

        page = waiting.result()
    assert time.monotonic() - began_s < SHORT_S
    assert page["reset"]
    assert [item["session_id"] for item in page["items"]] == [entry.session_id for entry in kept]


@pytest.mark.parametrize("step", ["entry", "look", "fatal"])
def test_without_sql_there_is_no_answer(make_api, monkeypatch, step):
    """503 with ``Retry-After``, whichever question fails: a heartbeat would claim what nobody knows."""
    api = make_api(sqlite=True)
    reader = Reader(api).caught_up()
    appended(api, 1)
    until_a_new_look()

    def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("sql: gone")

    monkeypatch.setattr(SqlFeedLog, step, fail)
    answer = reader.ask(f"wait=1&after={reader.cursor}")

    assert (answer.status_code, code_of(answer)) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
