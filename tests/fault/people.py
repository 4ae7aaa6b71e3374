"""The people of the load: they move in, and Redis comes to know their tokens."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from tests.fault.asking import Answer, ask
from tests.fault.ledger import Account, Ledger
from tests.fault.load import LEAST_SESSIONS, Person, claim
from tests.fault.verdicts import PATIENCE_S, answered, verdict
from tests.processes import wait_until
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fault.world import World
    from tests.rig import Service

PEOPLE = 4


def move_in(ledger: Ledger, service: Service) -> None:
    """Register everybody and log each of them in twice."""
    for _ in range(PEOPLE):
        account = _signed_up(service)
        person = Person(account, [service], random.Random(0))
        wait_until(partial(_is_at_home, person), timeout_s=PATIENCE_S, what="two sessions")
        assert person.findings.faults() == {}
        ledger.append(account)


def _signed_up(service: Service) -> Account:
    """Somebody new, under an address that was asked for once."""
    emails = []

    def sign_up() -> Answer:
        emails.append(f"{uuid4().hex}@example.com")
        return ask(service, "POST", "/v1/auth/register", json={"email": emails[-1], "password": PASSWORD})

    answer = answered(sign_up)
    account = Account(emails[-1], answer.body["id"], [PASSWORD])
    account.done["registered"].acknowledged += 1
    return account


def _is_at_home(person: Person) -> bool:
    """Log in once more, unless there are enough sessions."""
    if len(person.account.sessions) < LEAST_SESSIONS:
        person.log_in()
    return len(person.account.sessions) == LEAST_SESSIONS


def show_up(world: World, ledger: Ledger, *more: str) -> None:
    """See that Redis has a copy of every token that the load may use, and of the tokens in *more*."""
    used = [access for account in ledger for held in account.sessions for access in held.access[-2:]]
    wait_until(partial(_have_copies, world, [*used, *more]), timeout_s=PATIENCE_S, what="copies")


def _have_copies(world: World, tokens: Sequence[str]) -> bool:
    """Check each, which brings its copy back where it is lost."""
    assert {verdict(world.ahead, token) for token in tokens} == {200}
    with world.redis_admin() as client:
        copies = client.mget([f"authsvc:v1:auth:token:{claim(token, 'jti')}" for token in tokens])
    return None not in copies
