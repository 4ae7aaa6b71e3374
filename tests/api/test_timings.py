"""What ``build`` is given as timings is what each part goes by."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest

from authsvc.cli.keys import generate_key
from authsvc.store.key_folder import FolderTimings
from authsvc.store.sql import SqlTimings
from tests.api.driver import Api, json_of
from tests.api.watching import Shelf
from tests.processes import wait_until
from tests.timings import UNHURRIED

MARKER = "auth:revocations:seq"


def test_a_lock_is_waited_for_as_long_as_sql_is_told(pg_api):
    """Here for longer than the service waits; the request goes through when the lock is gone."""
    person = pg_api.someone()
    longer_s = 1.5 * SqlTimings().statement_s
    waits_too_long = (
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        f" AND query_start < clock_timestamp() - interval '{longer_s} seconds'"
    )
    url = pg_api.env["DATABASE_URL"]

    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as watcher:
        holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(pg_api.call, "PATCH", "/v1/me", token=person.access, json={"name": "Ada"})

            def is_patient() -> bool:
                return asked.done() or watcher.execute(waits_too_long).fetchone() is not None

            wait_until(is_patient, what="a long wait")
            holder.rollback()
            answer = asked.result()

    assert (answer.status_code, json_of(answer)["name"]) == (200, "Ada")


@pytest.mark.parametrize(("reread_s", "seen"), [(0.0, 1), (3600.0, 0)])
def test_the_folder_of_keys_is_looked_at_as_often_as_it_is_told(pg_api, tmp_path, reread_s, seen):
    """A key that is added is there at once, or not for an hour."""
    keys = tmp_path / "keys"
    keys.mkdir()
    generate_key(keys, "ES256")
    env = pg_api.env | {"JWT_KEYS_DIR": str(keys)}

    with closing(Api(env, timings=replace(UNHURRIED, keys=FolderTimings(reread_s=reread_s)))) as api:
        before = published(api)
        generate_key(keys, "EdDSA")
        added = published(api) - before

    assert len(added) == seen


def published(api: Api) -> set[str]:
    """The ids of the keys that are published."""
    return {key["kid"] for key in json_of(api.call("GET", "/.well-known/jwks.json"))["keys"]}


def test_the_marker_lives_as_long_as_it_is_told(pg_api):
    """The one that the comparison has written."""
    usual_ms = 10_000
    with closing(Shelf(pg_api)) as shelf:
        left_ms = shelf.ttl_s(MARKER) * 1000

    assert usual_ms < left_ms <= UNHURRIED.marker.life_ms
