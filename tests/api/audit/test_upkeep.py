"""The audit trail when SQL is away, and when it has grown old."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from authsvc.domain.audit import AuditFilter, Entry
from authsvc.domain.values.identifiers import timed_id
from authsvc.observability.trail import TrailTimings
from authsvc.settings import Settings
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.sql import SqlTimings
from authsvc.wiring import now
from authsvc.wiring.stores import open_database
from tests.api.driver import Api, code_of
from tests.processes import wait_until
from tests.rig import development, migrate
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from collections.abc import Iterator

WRONG = "wrong horse battery staple"
REFUSALS = 10
#: A busy machine may take so long; who waits for SQL each time takes longer.
HOPELESS_S = REFUSALS * TrailTimings().wait_s - 1


@pytest.fixture
def trail(tmp_path, redis_url, monkeypatch) -> Iterator[SqlAuditTrail]:
    """A trail over SQLite, and an environment in which commands find it."""
    env = development(f"sqlite:///{tmp_path / 'authsvc.db'}", redis_url, tmp_path)
    migrate(env)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with closing(open_database(Settings.from_env(env), UNHURRIED)) as database:
        yield SqlAuditTrail(database)


def entry(*, days_old: float) -> Entry:
    """One event of some days ago."""
    at = now() - timedelta(days=days_old)
    return Entry(id=timed_id(at), at=at, action="login.failed")


def test_prune_deletes_what_is_older_and_says_how_much(trail, capsys, command):
    """One JSON object on stdout, progress on stderr, and nothing younger is touched."""
    trail.write([entry(days_old=91 + number / 100) for number in range(10_500)])
    trail.write([entry(days_old=days) for days in (0, 1, 89.9)])

    assert command(["audit", "prune", "--older-than", "90d"]) == 0

    output = capsys.readouterr()
    printed = json.loads(output.out)
    assert printed.keys() == {"deleted", "before"}
    assert (printed["deleted"], output.err) == (10_500, "10000 deleted\n")
    assert len(trail.page(AuditFilter(limit=200))) == 3


@pytest.mark.parametrize("age", ["90", "0d", "-1d", "1.5d", "", "d", "99999d"])
def test_prune_takes_nothing_but_days(age, capsys, command):
    """A mistake deletes nothing."""
    with pytest.raises(SystemExit) as stopped:
        command(["audit", "prune", f"--older-than={age}"])

    assert stopped.value.code == 2
    assert "must be a number of days" in capsys.readouterr().err


@pytest.fixture
def api(private_postgres, redis_url, tmp_path) -> Iterator[Api]:
    """An application over a PostgreSQL of its own, with the deadlines of the service."""
    url = private_postgres.create_database()
    env = development(url, redis_url, tmp_path, RATE_LIMIT_LOGIN_ACCOUNT="1/hour")
    migrate(env)
    usual = replace(UNHURRIED, sql=SqlTimings(), trail=TrailTimings())
    with closing(Api(env, timings=usual)) as made:
        yield made


def test_a_sql_that_hangs_holds_up_no_refusal_and_loses_no_event(api, private_postgres):
    """A refusal that only the trail needs SQL for comes at once; its row is there when SQL is back."""
    with closing(Api(api.env)) as unhurried:
        person, admin = unhurried.someone(), unhurried.an_admin()
        assert unhurried.log_in(person.email, WRONG).status_code == 401

    private_postgres.pause()
    try:
        began_s = time.monotonic()
        refusals = [api.log_in(person.email, WRONG).status_code for _ in range(REFUSALS)]
        refused_s = time.monotonic() - began_s
        login = api.log_in(admin.email)
        login_s = time.monotonic() - began_s - refused_s
    finally:
        private_postgres.resume()

    assert refusals == [429] * REFUSALS
    assert refused_s < HOPELESS_S
    assert (login.status_code, code_of(login)) == (503, "unavailable")
    assert login_s < HOPELESS_S

    def written() -> bool:
        wanted = AuditFilter(actions=frozenset({"limit.reached"}))
        return [one.count for one in api.services.audit.page(wanted)[0]] == [REFUSALS]

    wait_until(written, what="the row")
