"""Every outage has its answer: the matrix of docs/failure-modes.md, fault by fault, under load."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pytest

from tests.fault.audit import audit
from tests.fault.load import load, settle, show_up
from tests.fault.matrix import FAULTS
from tests.fault.signs import Signs
from tests.fault.watch import watching
from tests.fault.world import RECOVERY_S, later_than, refused_within, without_retry_after
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.fault.asking import Answer
    from tests.fault.ledger import Findings
    from tests.fault.matrix import Fault
    from tests.fault.world import Cast, World
    from tests.rig import Service

pytestmark = [pytest.mark.fault, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "failure-modes.md"
#: docs/failure-modes.md: a 202 holds in every worker so long after it, unless one is cut off.
ACCEPTED_FOR_S = 2.0
#: For a machine that does other things, too; the table shows what it did take.
SLACK_S, WHOLE_WITHIN_S = 1.0, 2 * RECOVERY_S
#: A breaker opens after 5 failures, a comparison is missed after 2, SQL is impaired after 4 s without one.
SHOWS_WITHIN_S = 10.0
#: "At once", with room for a busy machine.
AT_ONCE_S = 0.5
#: Of the checks, while SQL is away, and how many in any case: a busy machine may keep Redis from answering
#: in 250 ms.
MOMENTS, FEW = 0.05, 3
#: More requests than open the breakers of both workers, however they are dealt.
CROWD = 16


@pytest.fixture
def world(audited: World) -> World:
    """Each test holds it against the ledger."""
    return audited


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=() if f.is_short else (pytest.mark.long,)) for f in FAULTS],
)
def test_every_outage_has_its_answer(world, ledger, fault, window_s, score):
    """Its row of the matrix, in time; ready and a sign of it; whole again by itself; the ledger is exact."""
    score.name = fault.name
    cast = world.cast()
    before = world.preferences(cast.writes)
    asked = world.at(world.beside) if fault.is_on_the_wire else world
    signs = Signs.of(asked.service)
    world.forgotten[:] = [cast.gone.access]
    if fault.spares_no_check:
        show_up(ledger, world.ahead)
    watched = {
        "good": [cast.stays.access],
        "bad": world.forgotten,
        "allowed": (200, 503) if fault.spares_no_check else (200,),
    }

    with (
        load(ledger, world.replicas, seed=fault.name) as findings,
        watching(world.ahead, **watched),
        watching(world.beside, **watched),
    ):
        began = time.monotonic()
        with fault.breaking(world):
            if fault.is_brief:
                check_everywhere(world, cast, world.forgotten)
                world.wait_whole(WHOLE_WITHIN_S)
            answers = ask_in_a_crowd(asked, cast) if fault.opens_breaker else asked.ask_everything(cast)
            ended = tokens_ended(answers, cast)
            look_around(asked, cast, fault, ended)
            signs.wait_for(fault.signs, timeout_s=SHOWS_WITHIN_S)
            wait_until(lambda: time.monotonic() - began >= window_s, timeout_s=window_s + 1)
        score.recovery_s = world.wait_whole(WHOLE_WITHIN_S)
    findings.add(settle(ledger, world.replicas))
    findings.add(audit(world, ledger))
    score.take(findings)

    assert {name: a.status for name, a in answers.items() if a.status not in fault.row[name]} == {}
    assert later_than(answers, fault.within_s + SLACK_S) == {}
    assert without_retry_after(answers) == []
    assert findings.faults(may_lag=fault.may_lag) == {}
    assert fault.stops_checks or too_many_refused(findings, fault) == 0
    check_everywhere(world, cast, [*ended, *world.forgotten])
    check_afterwards(world, cast, answers, None if fault.leaves_doubts else before)


def too_many_refused(findings: Findings, fault: Fault) -> int:
    """How many checks of the load were answered 503, where that is more than *fault* may cause."""
    refused, answered = findings.answers["check 503"], findings.answers["check 200"]
    spared = max(FEW, MOMENTS * answered) if fault.spares_no_check else 0
    return refused if refused > spared else 0


def tokens_ended(answers: dict[str, Answer], cast: Cast) -> list[str]:
    """The tokens of the sessions whose end was acknowledged."""
    left = [cast.leaving, cast.leaves.access] if answers["logout"].status in {202, 204} else []
    return left + ([cast.ended.access] if answers["end"].status in {202, 204} else [])


def look_around(world: World, cast: Cast, fault: Fault, ended: list[str]) -> None:
    """Meanwhile: what was acknowledged holds soon, refusals come at once, the probes say what is wrong."""
    for token in ended:
        for service in world.replicas:
            refused_within(service, token, ACCEPTED_FOR_S + SLACK_S)
    if fault.opens_breaker:
        assert max(world.service.from_each_worker(lambda: refusal_s(world, cast))) < AT_ONCE_S
    wait_until(lambda: is_told(world, fault), timeout_s=SHOWS_WITHIN_S, what="ready")
    assert world.ask("GET", "/v1/health/live").status == 200
    if not fault.stops_checks:
        check_everywhere(world, cast, ended)


def check_everywhere(world: World, cast: Cast, ended: Iterable[str]) -> None:
    """In each worker of both replicas whoever is in stays in, and whoever is out stays out."""
    tokens = (cast.stays.access, cast.gone.access, *ended)
    for service in world.replicas:
        verdicts = service.from_each_worker(partial(verdicts_of, service, tokens))
        assert verdicts == [[200] + [401] * (len(tokens) - 1)] * 2


def verdicts_of(service: Service, tokens: Iterable[str]) -> list[int]:
    """The statuses of one check of each token."""
    return [service.verify(token) for token in tokens]


def check_afterwards(world: World, cast: Cast, answers: dict[str, Answer], before: object) -> None:
    """What was answered with success is so; what was refused is as it was, unless *before* is None."""
    if answers["refresh"].status == 200:
        assert world.service.verify(answers["refresh"].body["access_token"]) == 200
    elif before is not None:
        assert world.refresh(cast.refreshes).status == 200
    if answers["write"].status == 200:
        assert world.preferences(cast.writes) == answers["write"].body
    elif before is not None:
        assert world.preferences(cast.writes) == before
    out = [cast.gone, *([cast.leaves] if answers["logout"].status in {202, 204} else [])]
    wait_until(lambda: {world.redis_session(member) for member in out} == {"ended"})


def is_told(world: World, fault: Fault) -> bool:
    """Each worker answers ready as it should, and names something of what is impaired, and nothing else."""
    answers = world.service.from_each_worker(lambda: world.ask("GET", "/v1/health/ready"))
    named = [set(answer.body["impaired"]) for answer in answers]
    return {answer.status for answer in answers} == {fault.ready} and all(
        names <= fault.impaired and (fault.is_fitful or bool(names) == bool(fault.impaired))
        for names in named
    )


def ask_in_a_crowd(world: World, cast: Cast) -> dict[str, Answer]:
    """One request of each kind among so many others that the breaker of each worker is open afterwards."""
    with ThreadPoolExecutor(CROWD) as pool:
        crowd = [pool.submit(world.refresh, cast.refreshes) for _ in range(CROWD)]
        answers = world.ask_everything(cast)
        assert {other.result().status for other in crowd} == {503}
    return answers


def refusal_s(world: World, cast: Cast) -> float:
    """How long a refusal takes behind the breaker; a probe of it may be among them."""
    return median(world.refresh(cast.refreshes).seconds for _ in range(5))


def test_every_fault_has_its_row_on_the_page():
    """An operator finds each fault by its name, and no name that is not tried."""
    rows = re.findall(r"^\| \*\*.*$", PAGE.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`((?:redis|sql|both)-[a-z-]+)`", row)}

    assert {fault.name for fault in FAULTS} == named
