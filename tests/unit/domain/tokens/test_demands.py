"""What a check asks for: no demand that one kind of token cannot meet lets it in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.clients import ClientId
from authsvc.domain.errors import Forbidden, ScopeMissing, StepUpRequired
from authsvc.domain.tokens.access import MachineToken
from authsvc.domain.tokens.demands import Admitted, Demand
from authsvc.domain.values.identifiers import SessionId, TokenId, new_id
from authsvc.domain.values.levels import Acr, Requirement
from tests.unit.domain.samples import access_token

NOW_S = 1_800_000_000.0
NAMES = ("a", "b", "user", "admin")
names = st.frozensets(st.sampled_from(NAMES))


def machine(*scopes: str) -> MachineToken:
    """A machine's token with *scopes*."""
    return MachineToken(
        token_id=TokenId(new_id()),
        session_id=SessionId(new_id()),
        client_id=ClientId(new_id()),
        scopes=scopes,
        epoch=0,
        issued_at=int(NOW_S),
        not_before=int(NOW_S),
        expires_at=int(NOW_S) + 600,
        issuer="https://auth.example.com",
        audience="orders",
        digest="",
    )


PERSON, MACHINE = access_token(roles=("user", "admin")), machine("a", "b")


@given(admitted=st.sampled_from(Admitted), roles=names, scopes=names)
def test_each_kind_is_judged_by_its_own_demands(admitted, roles, scopes):
    """The rule once more: admitted at all, not meant for the other kind alone, and all that is asked."""
    demand = Demand(admitted=admitted, roles=roles, scopes=scopes)

    person = (
        admitted is not Admitted.MACHINES
        and roles <= {"user", "admin"}
        and not (scopes and (admitted is Admitted.PEOPLE or not roles))
    )
    a_machine = (
        admitted is not Admitted.PEOPLE
        and scopes <= {"a", "b"}
        and not (roles and (admitted is Admitted.MACHINES or not scopes))
    )
    assert (demand.is_met_by(PERSON, NOW_S), demand.is_met_by(MACHINE, NOW_S)) == (person, a_machine)


@pytest.mark.parametrize(
    ("demand", "token", "refusal"),
    [
        (Demand(), MACHINE, Forbidden),
        (Demand(admitted=Admitted.MACHINES), PERSON, Forbidden),
        (Demand(roles=frozenset({"root"})), PERSON, Forbidden),
        (Demand(admitted=Admitted.MACHINES, scopes=frozenset({"c"})), MACHINE, ScopeMissing),
        (Demand(scopes=frozenset({"a"})), PERSON, ScopeMissing),
        (Demand(level=Requirement(acr=Acr.AAL2)), PERSON, Forbidden),
        (Demand(level=Requirement(acr=Acr.AAL2), has_levels=True), PERSON, StepUpRequired),
    ],
)
def test_a_refusal_says_what_is_missing(demand, token, refusal):
    """The wrong kind or a role, a scope, or the level."""
    with pytest.raises(refusal):
        demand.require(token, NOW_S)


def test_a_level_says_nothing_to_machines():
    """Nobody logs in there: a gateway that asks people for a second factor lets machines through by scope."""
    level = Requirement(acr=Acr.PHR, max_age_s=0)

    for has_levels in (True, False):
        demand = Demand(admitted=Admitted.BOTH, level=level, has_levels=has_levels)
        assert demand.is_met_by(MACHINE, NOW_S)
