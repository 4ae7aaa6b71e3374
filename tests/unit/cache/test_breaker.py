"""The circuit breaker, turned by hand through all its states."""

from __future__ import annotations

import threading

import pytest

from authsvc.cache import CircuitBreaker, State


@pytest.fixture
def changes() -> list[tuple[State, State]]:
    """Collect the changes of state."""
    return []


@pytest.fixture
def breaker(clock, changes) -> CircuitBreaker:
    """Three failures in ten seconds open for two; two probes."""
    return CircuitBreaker(
        failure_threshold=3,
        monitoring_period_s=10.0,
        recovery_timeout_s=2.0,
        half_open_max_calls=2,
        clock=clock,
        on_change=lambda before, after: changes.append((before, after)),
    )


def permit_of(breaker):
    """Take a permit that must be there."""
    permit = breaker.permit()
    assert permit is not None
    return permit


def fail(breaker, times):
    """Let *times* calls fail, one after the other."""
    for _ in range(times):
        breaker.failed(permit_of(breaker))


def half_open(breaker, clock):
    """Bring *breaker* half open and return the first probe's permit."""
    breaker.open()
    clock.tick(2.0)
    return permit_of(breaker)


def test_failures_below_the_threshold_change_nothing(breaker):
    """A breaker that has seen two of three failures lets calls through."""
    fail(breaker, 2)

    assert breaker.state is State.CLOSED
    assert breaker.permit() is not None


def test_the_threshold_opens_it(breaker, changes):
    """The third failure opens, and an open breaker lets nothing through."""
    fail(breaker, 3)

    assert breaker.permit() is None
    assert changes == [(State.CLOSED, State.OPEN)]


def test_successes_between_do_not_hide_failures(breaker):
    """What counts is failures in the window: a service half of whose calls fail is no good either."""
    for _ in range(3):
        breaker.succeeded(permit_of(breaker))
        fail(breaker, 1)

    assert breaker.state is State.OPEN


def test_failures_outside_the_window_are_forgotten(breaker, clock):
    """Three failures open only when all of them lie within the monitoring period."""
    fail(breaker, 1)
    clock.tick(10.1)
    fail(breaker, 2)

    assert breaker.state is State.CLOSED


def test_failures_just_inside_the_window_count(breaker, clock):
    """The window's end belongs to it."""
    fail(breaker, 1)
    clock.tick(10.0)
    fail(breaker, 2)

    assert breaker.state is State.OPEN


def test_it_stays_open_for_the_recovery_time(breaker, clock):
    """Just short of the time-out nothing passes; at it a probe does."""
    breaker.open()
    clock.tick(1.999)
    early = breaker.permit()
    clock.tick(0.001)

    assert early is None
    assert breaker.permit() is not None
    assert breaker.state is State.HALF_OPEN


def test_probes_are_limited(breaker, clock):
    """Half open lets two calls through and refuses the third."""
    half_open(breaker, clock)

    permits = [breaker.permit() for _ in range(3)]

    assert [permit is not None for permit in permits] == [True, False, False]


def test_the_first_success_closes(breaker, clock, changes):
    """One answered probe is enough."""
    breaker.succeeded(half_open(breaker, clock))

    assert breaker.state is State.CLOSED
    assert changes[-2:] == [(State.OPEN, State.HALF_OPEN), (State.HALF_OPEN, State.CLOSED)]


def test_a_failed_probe_opens_for_another_recovery_time(breaker, clock):
    """One unanswered probe sends everybody away again, for the whole time."""
    breaker.failed(half_open(breaker, clock))
    clock.tick(1.999)

    assert breaker.state is State.OPEN
    assert breaker.permit() is None


def test_closing_forgets_the_failures(breaker, clock):
    """After a recovery the count starts at nothing."""
    fail(breaker, 3)
    clock.tick(2.0)
    breaker.succeeded(permit_of(breaker))
    fail(breaker, 2)

    assert breaker.state is State.CLOSED


def test_a_late_failure_of_an_older_generation_is_ignored(breaker, clock):
    """A call that began before the outage and hung says nothing about the time after it."""
    old = permit_of(breaker)
    probe = half_open(breaker, clock)
    breaker.failed(old)
    after_old = breaker.state
    breaker.succeeded(probe)
    for _ in range(3):
        breaker.failed(old)

    assert after_old is State.HALF_OPEN
    assert breaker.state is State.CLOSED


def test_a_late_success_of_an_older_generation_does_not_close(breaker, clock):
    """A probe of an earlier recovery cannot end a later outage."""
    old_probe = half_open(breaker, clock)
    breaker.open()
    clock.tick(2.0)
    permit_of(breaker)
    breaker.succeeded(old_probe)

    assert breaker.state is State.HALF_OPEN


def test_a_probe_that_never_reports_does_not_wedge_it(breaker, clock):
    """Lost probes give their places back after the recovery time."""
    half_open(breaker, clock)
    permit_of(breaker)
    clock.tick(1.999)
    early = breaker.permit()
    clock.tick(0.001)

    assert early is None
    assert breaker.permit() is not None


def test_a_slow_probe_still_counts(breaker, clock):
    """An answer slower than the recovery time is an answer: else a slow service would never be back."""
    slow = half_open(breaker, clock)
    clock.tick(2.5)
    permit_of(breaker)
    breaker.succeeded(slow)

    assert breaker.state is State.CLOSED


def test_a_withdrawn_probe_gives_its_place_back(breaker, clock):
    """A call that was never made leaves room for another probe."""
    first = half_open(breaker, clock)
    permit_of(breaker)
    breaker.withdrawn(first)

    assert breaker.permit() is not None
    assert breaker.permit() is None


def test_a_withdrawn_call_is_no_failure(breaker):
    """What says nothing about the other side counts for nothing."""
    for _ in range(9):
        breaker.withdrawn(permit_of(breaker))

    assert breaker.state is State.CLOSED


def test_it_can_be_opened_and_closed_by_hand(breaker, changes):
    """An operator and a test may turn it; doing it twice is told once."""
    breaker.open()
    breaker.open()
    breaker.close()
    breaker.close()

    assert changes == [(State.CLOSED, State.OPEN), (State.OPEN, State.CLOSED)]


def test_a_listener_may_call_the_breaker(clock):
    """The callback runs outside the lock, and what it causes is delivered after it, in order."""
    told = []

    def listen(before, after):
        told.append((before, after))
        if after is State.OPEN:
            turned.close()

    turned = CircuitBreaker(clock=clock, on_change=listen)
    turned.open()

    assert told == [(State.CLOSED, State.OPEN), (State.OPEN, State.CLOSED)]


def test_a_blocked_listener_blocks_one_thread(clock):
    """A log that hangs holds up the thread that writes it and nobody else."""
    entered, release = threading.Event(), threading.Event()

    def hang(_before, _after):
        entered.set()
        release.wait(10)

    breaker = CircuitBreaker(clock=clock, on_change=hang)
    stuck = threading.Thread(target=breaker.open)
    stuck.start()
    entered.wait(10)
    refused = breaker.permit()
    breaker.close()
    passed = breaker.permit()
    release.set()
    stuck.join(10)

    assert refused is None
    assert passed is not None


@pytest.mark.parametrize("limits", [{"failure_threshold": 0}, {"half_open_max_calls": 0}])
def test_a_limit_of_nothing_is_refused(clock, limits):
    """Zero would mean always open or never closed: surely a mistake."""
    with pytest.raises(ValueError, match="count from 1"):
        CircuitBreaker(clock=clock, **limits)


def test_racing_threads_get_exactly_the_probes_there_are(clock):
    """Of 32 threads that ask a half-open breaker at once three are let through."""
    breaker = CircuitBreaker(half_open_max_calls=3, clock=clock)
    breaker.open()
    clock.tick(2.0)
    start, permits = threading.Barrier(32), []

    def ask():
        start.wait(10)
        permits.append(breaker.permit())

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(permits) == 32
    assert sum(permit is not None for permit in permits) == 3


def test_it_is_steady_until_a_call_fails_and_again_a_period_later(breaker, clock):
    """Who can do without the other side need not find out for itself that it fails."""
    assert breaker.is_steady
    fail(breaker, 1)
    clock.tick(10.0)
    assert not breaker.is_steady

    clock.tick(0.1)
    assert breaker.is_steady


def test_it_is_not_steady_while_it_is_not_closed(breaker, clock):
    """Neither open nor half open; closed again it is."""
    breaker.open()
    clock.tick(60.0)
    assert not breaker.is_steady

    probe = permit_of(breaker)
    assert not breaker.is_steady
    breaker.succeeded(probe)
    assert breaker.is_steady
