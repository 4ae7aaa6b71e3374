"""A damaged row is an outage of that row: 503 and a line in the log, never a 500."""

from __future__ import annotations

import psycopg
import pytest

from tests.api.driver import code_of
from tests.rig import PASSWORD

DAMAGES = ["last_login = 'infinity'", "preferences = '[1]'", "status = 'asleep'"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_user_is_unavailable_everywhere(pg_api, caplog, damage):
    """Whatever asks for the row: its owner, an admin, the list, a login; others go on."""
    admin, owner = pg_api.an_admin(), pg_api.someone()
    with psycopg.connect(pg_api.env["DATABASE_URL"]) as connection:
        connection.execute(f"UPDATE users SET {damage} WHERE id = %s", [owner.id])
    assert admin.call("POST", "/v1/cache/clear").status_code < 300

    asked = [
        owner.call("GET", "/v1/me"),
        admin.call("GET", f"/v1/users/{owner.id}"),
        admin.call("PATCH", f"/v1/users/{owner.id}", json={"roles": ["user"]}),
        admin.call("GET", "/v1/users?limit=100"),
        pg_api.log_in(owner.email, PASSWORD),
    ]

    with psycopg.connect(pg_api.env["DATABASE_URL"]) as connection:
        connection.execute("DELETE FROM users WHERE id = %s", [owner.id])
    assert [answer.status_code for answer in asked] == [503] * len(asked)
    assert {code_of(answer) for answer in asked} == {"unavailable"}
    damaged = [record for record in caplog.records if record.message == "sql.row_damaged"]
    assert len(damaged) >= len(asked)
    assert admin.call("GET", "/v1/me").status_code == 200
