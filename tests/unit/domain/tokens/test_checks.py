"""Whom a token check asks, and what it makes of silence: real stores cannot be made to say all this."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from authsvc.domain.errors import Forbidden, StoreUnavailable, TokenInvalid
from authsvc.domain.revocations import IndexAnswer
from authsvc.domain.sessions import SessionStore, Standing
from authsvc.domain.tokens.access import TokenReader, TokenSigner
from authsvc.domain.tokens.checks import Source, TokenChecks, require_roles
from tests.unit.domain.samples import (
    ALICE_ID,
    NOW,
    PROFILE,
    SESSION_ID,
    access_token,
    later,
    ring,
    session,
    user,
)

if TYPE_CHECKING:
    from authsvc.domain.tokens.access import AccessToken, MachineToken
    from authsvc.domain.tokens.machines import MachineStanding
    from authsvc.domain.users import User

#: Of the one token that is checked here, without its digest: each test signs it anew.
RECORD = json.dumps({"user_id": ALICE_ID, "session_id": SESSION_ID, "roles": ["user"], "epoch": 3}).encode()
YES = IndexAnswer(RECORD, b"alive", b"3", None, is_proven=True)
NO = IndexAnswer(RECORD, b"ended", b"3", None, is_proven=True)
NOTHING = IndexAnswer(None, None, None, None, is_proven=True)
UNPROVEN_YES = IndexAnswer(RECORD, b"alive", b"3", None, is_proven=False)
UNPROVEN_NO = IndexAnswer(RECORD, b"ended", b"4", b"{}", is_proven=False)
GOOD = Standing(session=session(), user=user())


@dataclass
class Index:
    """A Redis that gives one answer, or none."""

    answer: IndexAnswer | None
    takes_refills: bool = True
    refills: list[tuple[AccessToken, Standing | None]] = field(default_factory=list)

    def look_up(self, _token: object) -> IndexAnswer:
        """The answer."""
        if self.answer is None:
            raise StoreUnavailable("redis")
        return self.answer

    def look_up_with_user(self, token: object) -> tuple[IndexAnswer, User | None]:
        """The answer, and no user."""
        return self.look_up(token), None

    def refill(self, token: AccessToken, standing: Standing | None) -> None:
        """Note it."""
        if not self.takes_refills:
            raise StoreUnavailable("redis")
        self.refills.append((token, standing))

    def refill_machine(self, token: MachineToken, standing: MachineStanding | None) -> None:
        """Note nothing: these tests are about people."""
        raise AssertionError((token, standing))


class NoMachines:
    """Clients, of whom these tests ask nothing."""

    def standing(self, token: MachineToken, /) -> MachineStanding | None:
        """Nobody asks."""
        raise AssertionError(token)


NO_MACHINES = NoMachines()


@dataclass
class Sql:
    """A SQL that gives one answer, or none, and counts the questions."""

    answer: Standing | StoreUnavailable | None
    asked: int = 0

    def standing(self, _session_id: object) -> Standing | None:
        """The answer."""
        self.asked += 1
        if isinstance(self.answer, StoreUnavailable):
            raise self.answer
        return self.answer


@dataclass
class Outcome:
    """What a check came to."""

    token: AccessToken | None
    error: Exception | None
    observed: list[tuple[str, Source]]
    index: Index
    sql: Sql


def check(
    answer: IndexAnswer | None,
    standing: Standing | StoreUnavailable | None = None,
    *,
    text: str | None = None,
    takes_refills: bool = True,
) -> Outcome:
    """One check of a token issued to Alice just now."""
    keys, observed = ring(), []
    signer = TokenSigner(PROFILE, lambda: keys)
    good, _ = signer.issue(user(), SESSION_ID, now=NOW, not_after=later(86_400))
    index, sql = Index(answer, takes_refills), Sql(standing)
    checks = TokenChecks(
        reader=TokenReader(PROFILE, lambda: keys),
        index=index,
        sessions=cast("SessionStore", sql),
        machines=NO_MACHINES,
        observe=lambda *what, times=1: observed.extend([what] * times),
        clock=lambda: NOW,
    )
    try:
        return Outcome(checks.check(text or good), None, observed, index, sql)
    except (TokenInvalid, StoreUnavailable) as error:
        return Outcome(None, error, observed, index, sql)


def test_a_proven_yes_asks_nobody_else():
    """The hot path is one round trip to Redis."""
    outcome = check(YES, StoreUnavailable("sql"))

    assert outcome.token is not None
    assert outcome.token.user_id == ALICE_ID
    assert outcome.sql.asked == 0
    assert outcome.index.refills == []
    assert outcome.observed == [("active", Source.REDIS)]


def test_a_proven_no_asks_nobody_else():
    """SQL could say nothing that changes it."""
    outcome = check(NO, GOOD)

    assert isinstance(outcome.error, TokenInvalid)
    assert outcome.sql.asked == 0
    assert outcome.observed == [("revoked", Source.REDIS)]


@pytest.mark.parametrize("answer", [None, NOTHING, UNPROVEN_YES, UNPROVEN_NO])
def test_whatever_is_not_proven_is_for_sql_to_say(answer):
    """Good in SQL is good, whatever an unproven Redis holds; and what is missing is put back."""
    outcome = check(answer, GOOD)

    assert outcome.token is not None
    assert outcome.index.refills == [(outcome.token, GOOD)]
    assert outcome.observed == [("active", Source.SQL)]


@pytest.mark.parametrize("answer", [None, NOTHING, UNPROVEN_YES, UNPROVEN_NO])
@pytest.mark.parametrize(
    "standing",
    [
        pytest.param(None, id="no session"),
        pytest.param(Standing(session=session(revoked_at=NOW), user=user()), id="session ended"),
        pytest.param(Standing(session=session(expires_at=NOW), user=user()), id="session over"),
        pytest.param(Standing(session=session(idle_expires_at=NOW), user=user()), id="session idle"),
        pytest.param(Standing(session=session(), user=user(status="disabled")), id="user disabled"),
        pytest.param(Standing(session=session(), user=user(epoch=4)), id="user cut off"),
        pytest.param(Standing(session=session(), user=user(epoch=2)), id="epoch of a lost future"),
        pytest.param(Standing(session=session(), user=user(roles=("user", "admin"))), id="other roles"),
        pytest.param(Standing(session=session(), user=user(id="other")), id="another user"),
    ],
)
def test_sql_alone_decides_what_is_revoked(answer, standing):
    """And Redis is told what SQL said, so that it can answer next time."""
    outcome = check(answer, standing)

    assert isinstance(outcome.error, TokenInvalid)
    assert [told for _, told in outcome.index.refills] == [standing]
    assert outcome.observed == [("revoked", Source.SQL)]


@pytest.mark.parametrize("answer", [None, NOTHING, UNPROVEN_YES, UNPROVEN_NO])
def test_nobody_to_ask_is_an_outage_and_never_a_yes(answer):
    """503: neither valid nor invalid out of nothing."""
    outcome = check(answer, StoreUnavailable("sql"))

    assert isinstance(outcome.error, StoreUnavailable)
    assert outcome.index.refills == []
    assert outcome.observed == [("unavailable", Source.NONE)]


@pytest.mark.parametrize(("standing", "is_good"), [(GOOD, True), (None, False)])
def test_an_answer_stands_also_where_redis_cannot_be_told(standing, is_good):
    """The next check asks SQL again."""
    outcome = check(None, standing, takes_refills=False)

    assert (outcome.token is not None) is is_good
    assert not isinstance(outcome.error, StoreUnavailable)


def test_a_forged_token_reaches_no_store():
    """It costs a signature, and nobody's connection."""
    outcome = check(YES, GOOD, text="a.b.c")

    assert isinstance(outcome.error, TokenInvalid)
    assert outcome.sql.asked == 0
    assert outcome.observed == [("invalid", Source.NONE)]


@pytest.mark.parametrize(
    ("roles", "wanted", "allowed"),
    [
        (("user",), set(), True),
        (("user",), {"user"}, True),
        (("user",), {"admin"}, False),
        (("user",), {"user", "admin"}, False),
        (("user", "admin"), {"user", "admin"}, True),
        (("user", "admin"), {"root"}, False),
    ],
)
def test_a_role_is_held_or_the_way_is_barred(roles, wanted, allowed):
    """All of the wanted ones; an unknown one is held by nobody."""
    token = access_token(roles=roles)

    def require() -> Any:
        return require_roles(token, frozenset(wanted))

    if allowed:
        require()
    else:
        with pytest.raises(Forbidden):
            require()
