"""Security events: one row and one line for each act, with who did it to whom, and no secret in either."""

from __future__ import annotations

import logging
from contextlib import closing
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from authsvc.api.frame.context import DEVICE_HEADER
from authsvc.domain.audit import OPERATIONAL, Action
from authsvc.observability.audit import TALLY_WINDOW_S
from authsvc.store.tables import audit_events, users
from tests.api.audit.auditing import AGENT, IP, WRONG, Stage, Theatre
from tests.api.driver import at_once, json_of, new_email
from tests.api.mailing import MAIL
from tests.api.second_factors import UNLIMITED
from tests.processes import wait_until
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEW_PASSWORD = "a staple that no horse has seen"
#: Events that no request to this API causes.
BY_OPERATORS = {action for action in Action if action.startswith(("key.", "users.", "client."))}
#: What the sender of mails notes.
BY_SENDER = {Action.MAIL_FAILED}

ADDED = [Action.EMAIL_VERIFIED, Action.FACTOR_ADDED]
FIVE_FAILURES = [Action.LOGIN_FAILED] * 5
#: Each act with the events it makes, in order.
ACTS: dict[str, tuple[Callable[[Stage], object], list[Action]]] = {
    "register": (lambda at: at.api.register(new_email()), [Action.USER_REGISTERED]),
    "batch": (
        lambda at: at.administer(
            "POST", "/v1/batch/users/create", 200, {"users": [{"email": new_email(), "password": PASSWORD}]}
        ),
        [Action.USER_REGISTERED],
    ),
    "log in": (lambda at: at.log_in(device_id="laptop"), [Action.LOGIN_SUCCEEDED]),
    "fail": (lambda at: at.log_in(WRONG), [Action.LOGIN_FAILED]),
    "unknown": (lambda at: at.api.log_in(new_email()), [Action.LOGIN_FAILED]),
    "no address": (lambda at: at.api.log_in("no address"), [Action.LOGIN_FAILED]),
    "foreign hash": (Stage.foreign_hash, [Action.PASSWORD_REHASHED, Action.LOGIN_SUCCEEDED]),
    "broken hash": (Stage.broken_hash, [Action.HASH_MALFORMED, Action.LOGIN_FAILED]),
    "exhaust": (Stage.exhaust, [*FIVE_FAILURES, Action.LIMIT_REACHED]),
    "log out": (lambda at: at.api.log_out(access=at.user.access), [Action.SESSION_ENDED]),
    "log out twice": (
        lambda at: [at.api.log_out(refresh=at.user.refresh_token) for _ in "12"],
        [Action.SESSION_ENDED],
    ),
    "refresh": (lambda at: at.user.refresh(), []),
    "check": (lambda at: at.user.is_accepted(), []),
    "reuse": (Stage.reuse, [Action.REFRESH_REUSED]),
    "password": (
        lambda at: at.call(
            "POST", "/v1/me/password", 204, {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        ),
        [Action.PASSWORD_CHANGED],
    ),
    "wrong password": (
        lambda at: at.call("DELETE", "/v1/me", 403, {"password": WRONG}),
        [Action.PASSWORD_REFUSED],
    ),
    "end one": (
        lambda at: at.call("DELETE", f"/v1/me/sessions/{at.user.session_id}", 204),
        [Action.SESSION_ENDED],
    ),
    "end all": (lambda at: at.call("DELETE", "/v1/me/sessions", 204), [Action.SESSIONS_ENDED]),
    "close": (lambda at: at.call("DELETE", "/v1/me", 204, {"password": PASSWORD}), [Action.USER_DELETED]),
    "promote": (
        lambda at: at.administer("PATCH", "/v1/users/{}", 200, {"roles": ["admin"]}),
        [Action.USER_STANDING_SET],
    ),
    "disable": (
        lambda at: at.administer("PATCH", "/v1/users/{}", 200, {"status": "disabled"}),
        [Action.USER_STANDING_SET],
    ),
    "throw out": (
        lambda at: at.administer("DELETE", "/v1/users/{}/sessions", 204),
        [Action.SESSIONS_ENDED],
    ),
    "delete": (lambda at: at.administer("DELETE", "/v1/users/{}", 204), [Action.USER_DELETED]),
    "note logins": (
        lambda at: at.administer("PATCH", "/v1/batch/users/last-login", 200, {"ids": [at.user.id]}),
        [Action.LOGINS_NOTED],
    ),
    "export": (lambda at: at.call("GET", "/v1/me/export", 200), [Action.ACCOUNT_EXPORTED]),
    "forgot": (Stage.forgot, [Action.PASSWORD_RESET_ASKED]),
    "reset": (Stage.reset, [Action.PASSWORD_RESET_ASKED, Action.PASSWORD_RESET]),
    "prove": (Stage.prove, [Action.EMAIL_VERIFIED]),
    "invite": (
        lambda at: at.administer("POST", "/v1/users", 201, {"email": new_email()}),
        [Action.USER_INVITED],
    ),
    "lock": (
        lambda at: at.administer("POST", "/v1/users/{}/password-reset", 202, {"lock": True}),
        [Action.PASSWORD_RESET_ASKED],
    ),
    "move": (Stage.move, [Action.EMAIL_CHANGE_ASKED, Action.EMAIL_CHANGED]),
    "add a factor": (Stage.guard, ADDED),
    "step up": (Stage.step_up, [*ADDED, Action.SESSION_STEPPED_UP]),
    "recovery code": (
        Stage.use_a_recovery_code,
        [*ADDED, Action.SECOND_FACTOR_FAILED, Action.LOGIN_SUCCEEDED, Action.RECOVERY_USED],
    ),
    "remove a factor": (
        Stage.take_the_factor_away,
        [*ADDED, Action.LOGIN_SUCCEEDED, Action.RECOVERY_RENEWED, Action.FACTOR_REMOVED],
    ),
    "lock a factor": (
        Stage.lock_the_factor,
        [*ADDED, Action.SECOND_FACTOR_FAILED, Action.FACTOR_LOCKED],
    ),
    "lose a factor": (Stage.lose_the_factor, [*ADDED, Action.FACTORS_RESET]),
    "clear": (lambda at: at.administer("POST", "/v1/cache/clear", 200, {}), [Action.CACHE_CLEARED]),
}


@pytest.fixture(scope="module")
def theatre(make_module_api) -> Iterator[Theatre]:
    """Share one application."""
    with closing(Theatre(make_module_api(RATE_LIMIT_LOGIN_ACCOUNT="5/hour", **MAIL, **UNLIMITED))) as made:
        yield made


@pytest.fixture
def stage(theatre: Theatre) -> Stage:
    """Take a new user, and look past all that is there already."""
    return theatre.stage()


@pytest.mark.parametrize(("act", "expected"), ACTS.values(), ids=ACTS)
def test_each_act_is_one_row_and_one_line(stage, caplog, act, expected):
    """In the order in which it happened, and with the same words in both places."""
    rows: list[dict[str, Any]] = []
    with caplog.at_level(logging.INFO, "authsvc.audit"):
        act(stage)

    def all_written() -> bool:
        rows.extend(stage.rows())
        return len(rows) >= len(expected)

    wait_until(all_written)

    records = [record for record in caplog.records if record.name == "authsvc.audit"]
    lines = [record.getMessage() for record in records]
    assert [row["action"] for row in rows] == expected
    assert lines == expected or act is ACTS["log out twice"][0]
    assert all(row["count"] == len(lines) / len(expected) for row in rows)
    for row, record in zip(rows, records, strict=False):
        told = {name: getattr(record, name, None) for name in ("user_id", "actor_id", "client_ip", "account")}
        assert {name: row[name] for name in told} == told
        assert row["request_id"]


def test_no_event_is_without_its_act():
    """Every event has an entry in this table, or in the operators' tests, that causes it."""
    shown = set(chain.from_iterable(events for _, events in ACTS.values()))

    assert shown | BY_OPERATORS | BY_SENDER | OPERATIONAL == set(Action)


def test_an_event_says_who_did_what_to_whom_from_where(stage):
    """Of a login the user themselves, of an admin's act both; the request's id is that of the answer."""
    answer = stage.log_in(device_id="laptop")
    stage.log_in(WRONG)
    stage.admin.call("DELETE", f"/v1/users/{stage.user.id}/sessions", ip=IP, headers={"User-Agent": AGENT})

    good, bad, ended = stage.rows()

    who = {"user_id": stage.user.id, "client_ip": IP, "user_agent": AGENT}
    assert {name: good[name] for name in who} == {name: bad[name] for name in who} == who
    assert (good["session_id"], good["device_id"]) == (json_of(answer)["session_id"], "laptop")
    assert good["request_id"] == answer.headers["X-Request-Id"]
    assert (good["actor_id"], bad["actor_id"], ended["actor_id"]) == (None, None, stage.admin.id)
    assert {name: ended[name] for name in who} == who


def test_the_actor_is_whose_token_the_request_showed(stage):
    """Of accounts that an admin creates the admin, on all threads of a batch; of their own acts the users."""
    users = [{"email": new_email(), "password": PASSWORD} for _ in range(3)]
    stage.administer("POST", "/v1/batch/users/create", 200, {"users": users})
    stage.call("POST", "/v1/me/password", 403, {"current_password": WRONG, "new_password": NEW_PASSWORD})
    stage.api.log_in(stage.user.email)

    *created, refused, login = stage.rows()

    assert [row["actor_id"] for row in created] == [stage.admin.id] * 3
    assert (refused["user_id"], refused["actor_id"]) == (stage.user.id, stage.user.id)
    assert login["actor_id"] is None


def test_nothing_in_the_table_is_a_secret_or_an_address(stage):
    """Neither what was typed, nor what was answered, nor what is stored: in no column of any row."""
    email, secret = new_email(), "typed into the wrong field: hunter2hunter2hunter2"
    stage.api.register(email, secret)
    login = stage.api.log_in(email, secret)
    pair, device = json_of(login), login.headers[DEVICE_HEADER]
    next_pair = json_of(stage.api.refresh(pair["refresh_token"]))
    stage.api.log_in(secret, email)
    odd = {"User-Agent": f"Browser {pair['access_token']} of {email}"}
    body = {"email": email, "password": WRONG, "device_id": f"of {email}"}
    assert stage.api.post("/v1/auth/login", body, headers=odd).status_code == 401
    with stage.database.read() as connection:
        hashes = connection.execute(select(users.c.password_hash)).scalars().all()
        text = repr(connection.execute(select(audit_events)).all())

    tokens = [pair[name] for pair in (pair, next_pair) for name in ("access_token", "refresh_token")]
    assert len(stage.rows()) == 4
    typed = [email, secret, PASSWORD, WRONG, stage.user.email, stage.admin.email]
    for known in [*typed, *tokens, device, *hashes]:
        assert known not in text
    assert "@example" not in text


def test_one_account_is_one_digest_however_it_is_spelled(stage):
    """Failures for an unknown address have one digest in common, and no user."""
    email = new_email()
    for typed in (email, f" {email.upper()}", new_email()):
        stage.api.log_in(typed)

    first, second, other = stage.rows()

    assert first["account"] == second["account"] != other["account"]
    assert (first["user_id"], len(first["account"])) == (None, 16)


def test_a_flood_of_refusals_is_one_row_that_counts(stage):
    """200 requests beyond the limit, from 200 addresses: a row, and a count in powers of ten."""
    left_s = TALLY_WINDOW_S - stage.api.clock().timestamp() % TALLY_WINDOW_S
    if left_s < TALLY_WINDOW_S / 2:
        stage.api.clock.tick(left_s)
    for _ in range(5):
        stage.log_in(WRONG)
    stage.rows()

    answers = at_once(
        lambda n: stage.api.log_in(stage.user.email, WRONG, ip=f"198.51.100.{n}").status_code, range(200)
    )
    found: list[int] = []

    def counted() -> bool:
        with stage.database.read() as connection:
            rows = connection.execute(
                select(audit_events.c.count).where(
                    audit_events.c.action == "limit.reached", audit_events.c.id.not_in(stage.seen)
                )
            )
            found[:] = rows.scalars()
        return found == [100]

    assert answers == [429] * 200
    wait_until(counted)


def test_times_are_those_of_the_acts(stage):
    """By the service's clock, in UTC."""
    begun = stage.api.clock()
    stage.log_in()
    (row,) = stage.rows()

    assert begun <= row["at"] <= stage.api.clock() + timedelta(milliseconds=1)
