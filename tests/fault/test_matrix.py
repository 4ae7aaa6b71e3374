"""Every outage has its answer: the matrix of docs/failure-modes.md, fault by fault, under load."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.fault.asking import (
    PATIENCE_S,
    answered,
    later_than,
    refused_within,
    verdict,
    without_retry_after,
)
from tests.fault.audit import take_stock
from tests.fault.ledger import ACCEPTED_FOR_S
from tests.fault.load import load, show_up
from tests.fault.matrix import FAULTS, SOME_LATE
from tests.fault.observing import Signs, feeling, watching
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from tests.fault.asking import Answer
    from tests.fault.ledger import Findings
    from tests.fault.matrix import Fault
    from tests.fault.observing import Pulse, Watch
    from tests.fault.world import Cast, World
    from tests.rig import Service

# Each test holds the world against the ledger in the end.
pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.audits]

PAGE = ROOT / "docs" / "failure-modes.md"
#: For a machine that does other things, too; the table shows what it did take.
SLACK_S = 4.0
#: A breaker opens after 5 failures, a comparison is missed after 2, SQL is impaired after 4 s without one.
SHOWS_WITHIN_S = 30.0
#: "At once": without a breaker a store that hangs costs 2.5 s.
AT_ONCE_S = 0.5
#: Of the checks, while SQL is away, and how many in any case: who is asked meanwhile is the only one that is
#: not frozen, and a check that is frozen on its way to Redis comes too late.
MOMENTS, FEW = 0.05, 3
#: More requests than open the breakers of both workers, however they are dealt.
CROWD = 16


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
    if fault.spares_redis:
        show_up(world, ledger, cast.stays.access)

    with (
        feeling(world, redis=fault.spares_redis, sql=fault.spares_sql) as pulse,
        load(ledger, world.replicas, seed=fault.name) as findings,
        watched(world.ahead, world, cast, fault, pulse),
        watched(world.beside, world, cast, fault, pulse),
    ):
        began = time.monotonic()
        with fault.breaking(world):
            if fault.is_brief:
                check_everywhere(world, cast, world.forgotten, pulse)
                world.wait_whole()
            answers = ask_in_a_crowd(asked, cast) if fault.opens_breaker else asked.ask_everything(cast)
            ended = tokens_ended(answers, cast)
            look_around(asked, cast, fault, ended, pulse)
            signs.wait_for(fault.signs, timeout_s=SHOWS_WITHIN_S)
            time.sleep(max(0.0, began + window_s - time.monotonic()))
        score.recovery_s = world.wait_whole()
    take_stock(world, ledger, findings, score)

    score.pulse_s, is_late = pulse.worst_s, pulse.is_late
    assert not_in_the_row(answers, fault, pulse) == {}
    assert later_than(answers, fault.within_s + SLACK_S) == {}
    assert without_retry_after(answers) == []
    assert findings.faults(may_lag=fault.may_lag or is_late) == {}
    assert fault.stops_checks or is_late or too_many_refused(findings, fault) == 0
    check_everywhere(world, cast, [*ended, *world.forgotten], pulse)
    check_afterwards(world, cast, answers, None if fault.leaves_doubts or is_late else before)


def watched(
    service: Service, world: World, cast: Cast, fault: Fault, pulse: Pulse
) -> AbstractContextManager[Watch]:
    """Watch whoever is in and whoever is out; a check is refused where the fault or the machine says so."""
    return watching(
        service,
        good=[cast.stays.access],
        bad=world.forgotten,
        allowed=(200,) if fault.spares_sql else (200, 503),
        excused=lambda: pulse.is_late,
    )


def too_many_refused(findings: Findings, fault: Fault) -> int:
    """How many checks of the load were answered 503, where that is more than *fault* may cause."""
    refused, answers = findings.answers["check 503"], findings.answers["check 200"]
    spared = max(FEW, MOMENTS * answers) if fault.spares_redis else 0
    return refused if refused > spared else 0


def not_in_the_row(answers: dict[str, Answer], fault: Fault, pulse: Pulse) -> dict[str, int]:
    """Answers that the fault does not explain, nor a machine that kept the other store from answering."""
    late = SOME_LATE if pulse.is_late else dict.fromkeys(SOME_LATE, frozenset())
    return {n: answer.status for n, answer in answers.items() if answer.status not in fault.row[n] | late[n]}


def tokens_ended(answers: dict[str, Answer], cast: Cast) -> list[str]:
    """The tokens of the sessions whose end was acknowledged."""
    left = [cast.leaving, cast.leaves.access] if answers["logout"].status in {202, 204} else []
    return left + ([cast.ended.access] if answers["end"].status in {202, 204} else [])


def look_around(world: World, cast: Cast, fault: Fault, ended: list[str], pulse: Pulse) -> None:
    """Meanwhile: what was acknowledged holds soon, refusals come at once, the probes say what is wrong."""
    for token in ended:
        for service in world.replicas:
            refused_within(service, token, ACCEPTED_FOR_S)
    for position in range(2 if fault.opens_breaker else 0):
        is_refused = partial(is_refused_at_once, world, cast, position, pulse)
        wait_until(is_refused, timeout_s=SHOWS_WITHIN_S, what="refusal at once")
    wait_until(lambda: is_told(world, fault, pulse), timeout_s=SHOWS_WITHIN_S, what="ready")
    assert world.ask("GET", "/v1/health/live").status == 200
    if not fault.stops_checks:
        check_everywhere(world, cast, ended, pulse)


def check_everywhere(world: World, cast: Cast, ended: Iterable[str], pulse: Pulse) -> None:
    """In each worker of both replicas whoever is in stays in, and whoever is out stays out."""
    expected = dict.fromkeys((cast.gone.access, *ended), 401) | {cast.stays.access: 200}
    for service in world.replicas:
        check = partial(verdicts_of, service, tuple(expected))
        for verdicts in service.from_each_worker(partial(pulse.timed, check)):
            wrong = {
                expected[token]: status for token, status in verdicts.items() if status != expected[token]
            }
            assert wrong == {} or (pulse.is_late and set(wrong.values()) == {503})


def verdicts_of(service: Service, tokens: Iterable[str]) -> dict[str, int]:
    """The status of one check of each token."""
    return {token: service.verify(token) for token in tokens}


def check_afterwards(world: World, cast: Cast, answers: dict[str, Answer], before: object) -> None:
    """What was answered with success is so; what was refused is as it was, unless *before* is None."""
    if answers["refresh"].status == 200:
        assert verdict(world.service, answers["refresh"].body["access_token"]) == 200
    elif before is not None:
        assert answered(partial(world.refresh, cast.refreshes)).status == 200
    if answers["write"].status == 200:
        assert world.preferences(cast.writes) == answers["write"].body
    elif before is not None:
        assert world.preferences(cast.writes) == before
    out = [cast.gone, *([cast.leaves] if answers["logout"].status in {202, 204} else [])]
    wait_until(lambda: {world.redis_session(member) for member in out} == {"ended"}, timeout_s=PATIENCE_S)


def is_told(world: World, fault: Fault, pulse: Pulse) -> bool:
    """Each worker answers ready as it should, and names something of what is impaired, and nothing else."""
    ready = partial(world.ask, "GET", "/v1/health/ready")
    answers = world.service.from_each_worker(partial(pulse.timed, ready))
    if pulse.is_late and fault.spares_redis:
        return all(answer.status == 503 or is_as_told(answer, fault) for answer in answers)
    return all(is_as_told(answer, fault) for answer in answers)


def is_as_told(answer: Answer, fault: Fault) -> bool:
    """Ready as *fault* has it."""
    names = set((answer.body or {}).get("impaired", ()))
    is_named = fault.is_fitful or bool(names) == bool(fault.impaired)
    return answer.status == fault.ready and names <= fault.impaired and is_named


def ask_in_a_crowd(world: World, cast: Cast) -> dict[str, Answer]:
    """One request of each kind among so many others that the breaker of each worker is open afterwards."""
    with ThreadPoolExecutor(CROWD) as pool:
        crowd = [pool.submit(world.refresh, cast.refreshes) for _ in range(CROWD)]
        answers = world.ask_everything(cast)
        assert {other.result().status for other in crowd} == {503}
    return answers


def is_refused_at_once(world: World, cast: Cast, position: int, pulse: Pulse) -> bool:
    """True if the worker has an open breaker; a probe of it is slow, and opens it again."""
    refresh = partial(world.refresh, cast.refreshes)
    answer = world.service.from_worker(position, partial(pulse.timed, refresh))
    return answer.status == 503 and answer.seconds < AT_ONCE_S


def test_every_fault_has_its_row_on_the_page():
    """An operator finds each fault by its name, and no name that is not tried."""
    rows = re.findall(r"^\| \*\*.*$", PAGE.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`((?:redis|sql|both)-[a-z-]+)`", row)}

    assert {fault.name for fault in FAULTS} == named
