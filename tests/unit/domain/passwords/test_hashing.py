"""The hashing lane: how many at once, how many waiting, for how long, at which priority."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from authsvc.domain.errors import HashingBusy
from authsvc.domain.passwords.hasher import PasswordHasher
from authsvc.domain.passwords.lane import BoundedPasswords, HashingLane, LaneSize
from authsvc.domain.values.clocks import Monotonic

PATIENCE_S = 60.0


class Gate:
    """Work that says when it has begun, and goes on when it is told to."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.opened = threading.Event()
        self.runs = 0

    def __call__(self) -> str:
        self.runs += 1
        self.began.release()
        assert self.opened.wait(PATIENCE_S)
        return "done"

    def wait_for(self, jobs: int) -> None:
        """Return when *jobs* more have begun."""
        for _ in range(jobs):
            assert self.began.acquire(timeout=PATIENCE_S)


@pytest.fixture
def lane_of() -> Iterator[Callable[..., HashingLane]]:
    """Make lanes that are closed after the test."""
    lanes = []

    def make(*, clock: Monotonic = lambda: 0.0, on_done=lambda _seconds: None, **size) -> HashingLane:
        wanted = LaneSize(**{"threads": 2, "queue_limit": 2, "deadline_s": PATIENCE_S, "niceness": 0, **size})
        lanes.append(HashingLane(wanted, clock=clock, on_done=on_done))
        return lanes[-1]

    yield make
    for lane in lanes:
        lane.close()


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    """Threads that stand for requests."""
    with ThreadPoolExecutor(max_workers=64) as pool:
        yield pool


def wait_for_depth(lane: HashingLane, depth: int) -> None:
    """Return when *depth* jobs wait in *lane*."""
    turn = threading.Event()
    for _ in range(int(PATIENCE_S * 1000)):
        if lane.queue_depth == depth:
            return
        turn.wait(0.001)
    pytest.fail(f"{lane.queue_depth} jobs wait, not {depth}")


def test_a_job_answers_its_caller(lane_of) -> None:
    """The result of the work comes back, from a thread of the lane."""
    name = lane_of().run(lambda: threading.current_thread().name)

    assert name.startswith("hashing-")


def test_what_the_work_raises_reaches_the_caller(lane_of) -> None:
    """Any exception is raised again, also TimeoutError, and the thread lives on."""
    lane = lane_of(threads=1)

    for error in (ValueError("cost"), TimeoutError("of the work itself"), SystemExit(3)):
        with pytest.raises(type(error)) as raised:
            lane.run(lambda error=error: (_ for _ in ()).throw(error))
        assert raised.value is error

    assert lane.run(lambda: "alive") == "alive"


def test_no_more_jobs_than_threads_run_at_once(lane_of, callers) -> None:
    """Three threads and 24 callers: exactly three run, again and again."""
    lane = lane_of(threads=3, queue_limit=100)
    together = threading.Barrier(3)
    count = threading.Lock()
    running, most = 0, 0

    def work() -> None:
        nonlocal running, most
        with count:
            running += 1
            most = max(most, running)
        together.wait(PATIENCE_S)  # breaks unless three run at once
        with count:
            running -= 1

    for caller in [callers.submit(lane.run, work) for _ in range(24)]:
        caller.result(PATIENCE_S)

    assert most == 3


def test_what_cannot_begin_in_time_is_refused_at_once(lane_of, callers) -> None:
    """Jobs take 40 s now: the one behind another may wait for 60 s, the one behind two is not let in."""
    now = [0.0]
    lane, gate = lane_of(threads=1, queue_limit=100, deadline_s=60.0, clock=lambda: now[0]), Gate()

    def takes_40_s() -> None:
        now[0] += 40

    lane.run(takes_40_s)
    admitted = [callers.submit(lane.run, gate)]
    gate.wait_for(jobs=1)
    admitted.append(callers.submit(lane.run, gate))
    wait_for_depth(lane, 1)
    for refused in (lane.require_room, lambda: lane.run(gate)):
        with pytest.raises(HashingBusy):
            refused()
    gate.opened.set()

    assert [caller.result(PATIENCE_S) for caller in admitted] == ["done"] * 2
    lane.require_room()
    assert gate.runs == 2


def test_a_few_may_wait_though_it_may_be_in_vain(lane_of, callers) -> None:
    """Jobs take longer than the deadline now: two are let in to wait all the same, the third is not."""
    now = [0.0]
    lane = lane_of(threads=1, queue_limit=9, always_wait=2, deadline_s=60.0, clock=lambda: now[0])
    gate = Gate()

    def takes_100_s() -> None:
        now[0] += 100

    lane.run(takes_100_s)
    admitted = [callers.submit(lane.run, gate)]
    gate.wait_for(jobs=1)
    admitted += [callers.submit(lane.run, gate) for _ in range(2)]
    wait_for_depth(lane, 2)
    with pytest.raises(HashingBusy):
        lane.run(gate)
    gate.opened.set()

    assert [caller.result(PATIENCE_S) for caller in admitted] == ["done"] * 3


def test_quick_jobs_make_room_again(lane_of, callers) -> None:
    """The estimate follows what jobs take: after a slow one, quick ones open the queue."""
    now = [0.0]
    lane, gate = lane_of(threads=1, queue_limit=2, deadline_s=60.0, clock=lambda: now[0]), Gate()

    def takes(seconds: float) -> None:
        now[0] += seconds

    lane.run(lambda: takes(1000))
    for _ in range(40):
        lane.run(lambda: takes(1))
    admitted = [callers.submit(lane.run, gate) for _ in range(3)]
    gate.wait_for(jobs=1)
    wait_for_depth(lane, 2)
    gate.opened.set()

    assert [caller.result(PATIENCE_S) for caller in admitted] == ["done"] * 3


def test_the_queue_takes_its_limit_and_not_one_more(lane_of, callers) -> None:
    """Two run, three wait, the sixth is told at once to come back; a job that ends makes room for one."""
    lane, gate = lane_of(threads=2, queue_limit=3, deadline_s=7.2), Gate()
    admitted = [callers.submit(lane.run, gate) for _ in range(5)]
    gate.wait_for(jobs=2)
    wait_for_depth(lane, 3)

    for _ in range(2):
        with pytest.raises(HashingBusy) as busy:
            lane.run(gate)
    gate.opened.set()

    assert busy.value.retry_after_s == 8
    assert [caller.result(PATIENCE_S) for caller in admitted] == ["done"] * 5
    assert gate.runs == 5
    assert lane.queue_depth == 0


def test_room_is_counted_exactly_under_a_storm(lane_of, callers) -> None:
    """Of 64 at once, two threads and a queue of five admit seven."""
    lane, gate = lane_of(threads=2, queue_limit=5), Gate()
    start = threading.Barrier(64)

    def storm() -> str:
        start.wait(PATIENCE_S)
        answer: str = lane.run(gate)
        return answer

    attempts = [callers.submit(storm) for _ in range(64)]
    wait_for_refusals(attempts, 57)
    gate.opened.set()

    results = Counter(type(attempt.exception(PATIENCE_S)) for attempt in attempts)
    assert results == {HashingBusy: 57, type(None): 7}


def wait_for_refusals(attempts: list[Future[str]], count: int) -> None:
    """Return when *count* attempts have ended, while the gate is still closed."""
    turn = threading.Event()
    while sum(attempt.done() for attempt in attempts) < count:
        turn.wait(0.001)


def test_a_lone_caller_always_finds_room(lane_of) -> None:
    """The room of a job is free before its caller hears of it: one thread, no queue, 1,000 in a row."""
    lane = lane_of(threads=1, queue_limit=0)

    assert [lane.run(lambda number=number: number) for number in range(1000)] == list(range(1000))


def test_a_job_that_waited_too_long_never_runs(lane_of, callers) -> None:
    """Its caller is told to come back, its place in the queue is free at once, and the work is not done."""
    lane, gate, late = lane_of(threads=1, queue_limit=1, deadline_s=0.05), Gate(), Gate()
    slow = callers.submit(lane.run, gate)
    gate.wait_for(jobs=1)

    for _ in range(3):
        with pytest.raises(HashingBusy) as busy:
            lane.run(late)
        assert lane.queue_depth == 0
    gate.opened.set()

    assert busy.value.retry_after_s == 1
    assert slow.result(PATIENCE_S) == "done"
    lane.close()
    assert late.runs == 0


def test_a_job_that_has_begun_is_waited_for(lane_of, callers) -> None:
    """The deadline is one for beginning: work under way is never thrown away, nor done twice."""
    lane, gate = lane_of(threads=1, queue_limit=1, deadline_s=0.01), Gate()
    slow = callers.submit(lane.run, gate)
    gate.wait_for(jobs=1)

    with pytest.raises(HashingBusy):  # the deadline of the first is over when that of the second is
        lane.run(gate)
    gate.opened.set()

    assert slow.result(PATIENCE_S) == "done"
    assert gate.runs == 1


def test_every_job_is_answered_once(lane_of) -> None:
    """1,000 quick jobs of 16 callers: each has its own answer, none is lost or run twice."""
    lane = lane_of(threads=2, queue_limit=16)
    runs: list[int] = []

    def work(number: int) -> int:
        runs.append(number)
        return number

    with ThreadPoolExecutor(max_workers=16) as pool:
        answers = list(pool.map(lambda number: lane.run(lambda: work(number)), range(1000)))

    assert answers == list(range(1000))
    assert sorted(runs) == list(range(1000))


@pytest.mark.skipif(sys.platform != "linux", reason="a single thread's priority is Linux's")
def test_the_lane_runs_at_lower_priority(lane_of) -> None:
    """The system is told to prefer everything else to hashing, and nothing but the lane is lowered."""
    before = os.getpriority(os.PRIO_PROCESS, 0)

    inside = lane_of(niceness=5).run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    assert inside == min(before + 5, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_system_that_denies_priorities_is_warned_about(lane_of, monkeypatch, caplog) -> None:
    """Hashing goes on at the usual priority, and the log says so."""

    def deny(*_arguments: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", deny)

    with caplog.at_level(logging.WARNING):
        assert lane_of(threads=1).run(lambda: "done") == "done"

    assert "hashing.priority_unchanged" in caplog.text


def test_jobs_are_timed(lane_of) -> None:
    """Each job's seconds are reported, also when it fails; time in the queue is not part of them."""
    ticks = iter([10.0, 10.25, 20.0, 20.5])
    seconds: list[float] = []
    lane = lane_of(threads=1, clock=lambda: next(ticks), on_done=seconds.append)

    lane.run(lambda: None)
    with pytest.raises(ZeroDivisionError):
        lane.run(lambda: 1 // 0)

    assert seconds == [0.25, 0.5]


def test_a_broken_hook_loses_no_caller(lane_of) -> None:
    """What a metric raises is raised to the caller; the thread and its room remain."""

    def broken(_seconds: float) -> None:
        raise OSError("no space left")

    lane = lane_of(threads=1, queue_limit=0, on_done=broken)

    for _ in range(3):
        with pytest.raises(OSError, match="no space"):
            lane.run(lambda: None)


def test_no_thread_exists_before_the_first_job(lane_of) -> None:
    """A process can be forked after the lane was made."""
    before = threading.active_count()
    lane = lane_of(threads=2)
    made = threading.active_count()
    lane.run(lambda: None)

    assert (made - before, threading.active_count() - before) == (0, 2)


def test_closing_finishes_what_waits_and_takes_nothing_new(lane_of, callers) -> None:
    """Jobs in the queue are answered, later ones are refused, and no thread is left."""
    before = threading.active_count()
    lane, gate = lane_of(threads=1, queue_limit=2), Gate()
    admitted = [callers.submit(lane.run, gate) for _ in range(3)]
    gate.wait_for(jobs=1)
    wait_for_depth(lane, 2)
    gate.opened.set()
    lane.close()

    assert [caller.result(PATIENCE_S) for caller in admitted] == ["done"] * 3
    with pytest.raises(HashingBusy):
        lane.run(gate)
    assert {thread.name for thread in threading.enumerate() if thread.name.startswith("hashing-")} == set()
    assert threading.active_count() - before <= len(admitted)


def test_a_running_job_does_not_keep_the_process_alive() -> None:
    """The threads are daemons: a process that ends does not wait for a queue of hashes."""
    program = (
        "import threading; from authsvc.domain.passwords.lane import HashingLane, LaneSize;"
        "size = LaneSize(threads=1, queue_limit=1, deadline_s=60, niceness=0);"
        "lane = HashingLane(size, clock=lambda: 0.0);"
        "began = threading.Event();"
        "work = lambda: (began.set(), threading.Event().wait(120));"
        "threading.Thread(target=lane.run, args=(work,), daemon=True).start();"
        "began.wait(60); print('end')"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )

    assert answer.stdout.strip() == "end"


def test_passwords_are_hashed_and_verified_in_the_lane(lane_of) -> None:
    """Same answers as without the lane; a verification is one job, also for nobody; needs_rehash is none."""
    jobs: list[float] = []
    passwords = BoundedPasswords(PasswordHasher(b"pepper", cost_log2=4), lane_of(on_done=jobs.append))

    stored = passwords.hash("correct horse battery staple")
    right = passwords.verify("correct horse battery staple", stored)
    wrong = passwords.verify("wrong horse battery staple", stored)
    nobody = passwords.verify("correct horse battery staple", None)

    assert (right.is_match, wrong.is_match, nobody.is_match) == (True, False, False)
    assert not passwords.needs_rehash(stored)
    assert len(jobs) == 4
