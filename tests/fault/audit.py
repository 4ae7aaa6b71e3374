"""Holds everything that was acknowledged against SQL, Redis and each worker of each replica."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any

from tests.fault.asking import ALL_REFUSED, PATIENCE_S, ask, everywhere
from tests.fault.ledger import Account, Findings, Ledger
from tests.fault.load import Person, settle
from tests.processes import wait_until

if TYPE_CHECKING:
    import psycopg

    from tests.fault.conftest import Score
    from tests.fault.observing import Pulse
    from tests.fault.world import World
    from tests.rig import Service

#: Entries of the log that the load makes; all are counted.
REASONS = ("registered", "logged_in", "user_changed", "logout", "password_changed")


def audit(world: World, ledger: Ledger) -> Findings:
    """Check everything; the world works again, and nobody acts meanwhile."""
    findings = Findings()
    world.wait_replayed()  # from here on a 202 holds everywhere, too
    with world.sql_admin() as connection:
        for account in ledger:
            _count_entries(connection, account, findings)
            _count_rotations(connection, account, findings)
            _look_for_newcomers(connection, account, findings)
    for service in world.replicas:
        service.from_each_worker(lambda service=service: _try_tokens(service, ledger, findings))  # type: ignore[misc]
    for account in ledger:
        _try_passwords(world, account, findings)
        _read_numbers(world, account, findings)
        _count_attempts(world, account, findings)
    _look_for_tombstones(world, ledger, findings)
    return findings


def take_stock(world: World, ledger: Ledger, findings: Findings, score: Score) -> None:
    """Let everybody finish, check everything, and note what was found; nobody acts any more."""
    findings.add(settle(ledger, world.replicas))
    findings.add(audit(world, ledger))
    score.take(findings)


def assert_nothing_is_lost(
    world: World, ledger: Ledger, findings: Findings, pulse: Pulse, score: Score
) -> None:
    """Nothing acknowledged is, checks were answered, and who logged out in vain is out everywhere."""
    take_stock(world, ledger, findings, score)
    score.pulse_s = pulse.worst_s
    assert findings.faults(may_lag=True) == {}
    assert pulse.is_late or not findings.answers["check 503"]
    for token in world.forgotten:
        assert [everywhere(service, token) for service in world.replicas] == [[ALL_REFUSED]] * 2


def _count_entries(connection: psycopg.Connection[Any], account: Account, findings: Findings) -> None:
    """The log has as many entries of each kind as were acknowledged; more only where no answer came."""
    query = "SELECT reason, count(*) FROM revocations WHERE user_id = %s GROUP BY reason"
    found = dict(connection.execute(query, (account.id,)).fetchall())
    for reason in REASONS:
        count, tally = found.get(reason, 0), account.done[reason]
        if count < tally.acknowledged:
            findings.lost.append(f"{reason}: {count} of {tally}")
        elif not tally.allows(count):
            findings.doubled.append(f"{reason}: {count} for {tally}")


def _count_rotations(connection: psycopg.Connection[Any], account: Account, findings: Findings) -> None:
    """Each session was rotated as often as that was acknowledged."""
    query = "SELECT counter FROM sessions WHERE id = %s"
    for held in account.sessions:
        row = connection.execute(query, (held.session_id,)).fetchone()
        count = row[0] if row else -1
        if count < held.rotations:
            findings.lost.append(f"rotation {count} of {held.rotations}")
        elif count > held.rotations + (held.unsure_since_s is not None):
            findings.doubled.append(f"rotation {count} for {held.rotations}")


def _look_for_newcomers(connection: psycopg.Connection[Any], account: Account, findings: Findings) -> None:
    """Who was registered is there, once, under the id that was told; then they are forgotten here."""
    for email, ident in account.newcomers.items():
        query = "SELECT u.id, count(r.seq) FROM users u LEFT JOIN revocations r ON r.user_id = u.id"
        rows = connection.execute(f"{query} WHERE u.email = %s GROUP BY u.id", (email,)).fetchall()
        if ident is not None and not rows:
            findings.lost.append("registration")
        elif ident not in (None, "somebody") and str(rows[0][0]) != ident:
            findings.foreign.append("registered under another id")
        if len(rows) > 1 or any(count != 1 for _, count in rows):
            findings.doubled.append(f"registration: {rows}")
    account.newcomers.clear()


def _try_tokens(service: Service, ledger: Ledger, findings: Findings) -> None:
    """Every living session's token is accepted, for whom it is; every revoked one is refused."""
    for account in ledger:
        for held in account.sessions:
            answer = ask(service, "GET", "/v1/auth/verify", token=held.access[-1])
            if not held.is_leaving and findings.judge("audit: check", answer, 200):
                _own(account, answer.headers.get("X-Auth-User-Id"), findings)
        for revoked in account.revoked:
            answer = ask(service, "GET", "/v1/auth/verify", token=revoked.access)
            findings.judge("audit: revoked", answer, 200, 401)
            if answer.status == 200:
                findings.accepted.append(f"session {revoked.session_id}")


def _try_passwords(world: World, account: Account, findings: Findings) -> None:
    """Exactly one of the passwords that may be right is; it is the acknowledged one where there is one."""
    person = Person(account, [world.ahead], random.Random(0), findings)
    person.find_password()
    if account.done["password_changed"].acknowledged:
        person.log_in()


def _read_numbers(world: World, account: Account, findings: Findings) -> None:
    """The preferences are the user's own, and as last acknowledged."""
    account.numbered_at_s = 0
    Person(account, [world.beside], random.Random(0), findings).read_numbers()


def _count_attempts(world: World, account: Account, findings: Findings) -> None:
    """No attempt counts twice; Redis may have forgotten some."""
    subject_of = hashlib.sha256(account.mistyped.encode()).hexdigest()
    with world.redis_admin() as client:
        counted = client.zcard(f"authsvc:v1:auth:rate-limit:login-account:{subject_of}")
    tally = account.done["mistyped"]
    if counted > tally.acknowledged + tally.unanswered:
        findings.doubled.append(f"attempts: {counted} for {tally}")


def _look_for_tombstones(world: World, ledger: Ledger, findings: Findings) -> None:
    """Redis knows each session that has ended, soon and without being asked."""
    ended = [revoked.session_id for account in ledger for revoked in account.revoked]
    if not ended:
        return
    with world.redis_admin() as client:

        def missing() -> list[str]:
            states = client.mget([f"authsvc:v1:auth:session:{ident}" for ident in ended])
            return [ident for ident, state in zip(ended, states, strict=True) if state != "ended"]

        try:
            wait_until(lambda: not missing(), timeout_s=PATIENCE_S)
        except TimeoutError:
            findings.lost.append(f"{len(missing())} tombstones")


def _own(account: Account, ident: str | None, findings: Findings) -> None:
    if ident != account.id:
        findings.foreign.append(f"{ident} is not {account.id}")
