"""A worker dies between SQL, Redis and its answer: what SQL has counts once, and holds everywhere."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.fault.asking import PATIENCE_S, refused_within
from tests.fault.audit import audit
from tests.fault.failpoints import BEFORE_COMMIT, CLOCK, ENTRY, FOLDER, SEAMS
from tests.fault.ledger import ACCEPTED_FOR_S, Findings
from tests.fault.load import Person, load, settle
from tests.fault.observing import feeling
from tests.fault.world import START_S
from tests.processes import wait_until
from tests.rig import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fault.ledger import Account
    from tests.fault.world import World

# Each test holds the world against the ledger in the end.
pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.audits]

DEEDS = ("register", "log_in", "refresh", "write", "log_out", "change_password")
#: In the short run: nothing was done, and the worst moment.
SHORT_SEAMS = SEAMS[:2]
#: How often a deed is begun that the machine, not the service, kept from its seam.
TRIES = 4
#: docs/install.md: clocks may differ by a few seconds; tokens bear 5.  Backwards first: forwards would be 10.
SKEWS_S = (-5, 5)


class Frail:
    """One worker on the stores of a world, one to be killed; another when there is another world."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._world: World | None = None
        self._service: Service | None = None

    def beside(self, world: World) -> Service:
        """Give the one of *world*."""
        if self._world is not world or self._service is None:
            self.close()
            folder = self._folders.mktemp("frail")
            points = folder / "points"
            points.mkdir()
            (points / CLOCK).write_text("0")
            env = world.ahead.env | {"WEB_CONCURRENCY": "1", FOLDER: str(points)}
            self._service = Service(env, folder, entry=ENTRY).start(ready_within_s=START_S)
            self._world = world
        return self._service

    def close(self) -> None:
        """Stop it."""
        if self._service is not None:
            self._service.__exit__()


@pytest.fixture(scope="module")
def frails(tmp_path_factory) -> Iterator[Frail]:
    """Keep the worker between tests."""
    kept = Frail(tmp_path_factory)
    yield kept
    kept.close()


@pytest.fixture
def frail(world: World, frails: Frail) -> Service:
    """Give the test the worker."""
    return frails.beside(world)


def points_of(service: Service) -> Path:
    """Where its seams and its clock are set."""
    return service.log.parent / "points"


def set_clock(service: Service, shift_s: float) -> None:
    """Set the wall clock of its worker, in one step."""
    new = points_of(service) / "new"
    new.write_text(str(shift_s))
    new.replace(points_of(service) / CLOCK)


@pytest.mark.parametrize(
    "seam", [pytest.param(s, marks=() if s in SHORT_SEAMS else (pytest.mark.long,)) for s in SEAMS]
)
def test_a_worker_killed_half_way_has_done_all_or_nothing(world, ledger, frail, seam, score):
    """What SQL has holds everywhere, though nobody was answered; asked for again, it is done once."""
    score.name = f"worker-killed-{seam}"
    findings = Findings()
    account = ledger[0]

    for deed in DEEDS:
        tokens, before = die(world, account, frail, findings, deed, seam)
        score.recovery_s = max(score.recovery_s, frail.wait_ready(START_S))
        assert (written(world) != before) == (seam != BEFORE_COMMIT), deed
        for token in ended(world, tokens):
            for replica in world.replicas:
                refused_within(replica, token, ACCEPTED_FOR_S)
    broken = len(findings.broken)
    findings.add(settle(ledger, [frail, *world.replicas]))
    findings.add(audit(world, ledger))
    score.take(findings)

    assert broken == len(DEEDS)
    assert findings.faults(may_break=True) == {}


def die(
    world: World, account: Account, frail: Service, findings: Findings, deed: str, seam: str
) -> tuple[dict[str, str], tuple[Any, ...]]:
    """
    Kill the worker in the middle of *deed*; living tokens and how much was written before.

    Where the machine kept a store from answering (503), *deed* did not come by the seam: once more.
    """
    seams = points_of(frail) / seam
    for _ in range(TRIES):
        tokens, before = make_room(world, account), written(world)
        seams.touch()
        refused = len(findings.refusals_s)
        getattr(Person(account, [frail], random.Random(seam), findings), deed)()
        if not seams.exists() or len(findings.refusals_s) == refused:
            break
    assert not seams.exists(), f"{deed} did not come by"
    return tokens, before


def make_room(world: World, account: Account) -> dict[str, str]:
    """Three sessions and one password, however the last deed ended; the tokens of all."""
    person = Person(account, world.replicas, random.Random(0))
    person.settle()
    wait_until(partial(has_room, person), timeout_s=PATIENCE_S, what="three sessions")
    assert person.findings.faults() == {}
    return {held.session_id: held.access[-1] for held in account.sessions}


def has_room(person: Person) -> bool:
    """Log in once more, unless there are enough sessions and one password."""
    person.find_password()
    if len(person.account.sessions) < 3:
        person.log_in()
    return len(person.account.sessions) >= 3


def written(world: World) -> tuple[Any, ...]:
    """How much has been written to SQL: log, rotations, people."""
    query = (
        "SELECT (SELECT count(*) FROM revocations), (SELECT sum(counter) FROM sessions), count(*) FROM users"
    )
    with world.sql_admin() as connection:
        return connection.execute(query).fetchone() or ()


def ended(world: World, tokens: dict[str, str]) -> list[str]:
    """Those of *tokens* whose session has ended in SQL."""
    query = "SELECT id::text FROM sessions WHERE revoked_at IS NOT NULL AND id::text = ANY(%s)"
    with world.sql_admin() as connection:
        return [tokens[ident] for (ident,) in connection.execute(query, (list(tokens),)).fetchall()]


@pytest.mark.parametrize(
    "skew_s", [pytest.param(s, marks=() if s > 0 else (pytest.mark.long,)) for s in SKEWS_S]
)
def test_a_clock_that_is_off_by_5_s_harms_nobody(world, ledger, frail, window_s, skew_s, score):
    """Also when it jumps while the worker runs: forwards, and back."""
    score.name = f"clock-off-by-{skew_s}-s"

    with feeling(world) as pulse, load(ledger, [frail, world.ahead], seed=score.name) as findings:
        for shift_s in (skew_s, 0, skew_s):
            set_clock(frail, shift_s)
            time.sleep(max(0.7, window_s / 3))
    set_clock(frail, 0)
    findings.add(settle(ledger, [frail]))
    findings.add(audit(world, ledger))
    score.take(findings)

    assert findings.faults() == {}
    assert pulse.is_late or not any(answer.endswith(" 503") for answer in findings.answers)
