"""Counts, windows and the health of a server that says little."""

from __future__ import annotations

import pytest

from authsvc.cache import CacheEvents, CacheUnavailable, CircuitBreaker, Meter, Monitor, State, joined


@pytest.fixture
def meter(clock):
    """Return a meter at nothing."""
    return Meter(clock)


def look(meter, *outcomes):
    """Tell *meter* of looks."""
    for outcome in outcomes:
        meter.events().on_lookup("book", outcome)


def test_nothing_asked_is_no_ratio(meter):
    """Neither nothing nor everything."""
    stats = meter.stats()

    assert (stats.hits, stats.misses, stats.operations) == (0, 0, 0)
    assert (stats.hit_ratio, stats.hit_ratio_1m, stats.average_latency_ms) == (None, None, None)


def test_what_answers_the_reader_is_a_hit(meter):
    """Also a stale record, and the knowledge that there is none."""
    look(meter, "hit", "stale", "negative", "miss", "expired", "other_id", "unavailable", "untrusted")

    stats = meter.stats()

    assert (stats.hits, stats.misses, stats.hit_ratio) == (3, 5, 3 / 8)


def test_ratios_forget_what_lies_behind_their_window(meter, clock):
    """A minute and five; the whole stays."""
    look(meter, "miss", "miss")
    clock.tick(120)
    look(meter, "hit", "miss")
    clock.tick(50)
    look(meter, "hit", "hit")

    near = meter.stats()
    clock.tick(200)
    later = meter.stats()
    clock.tick(1000)
    long_after = meter.stats()

    assert (near.hit_ratio_1m, near.hit_ratio_5m) == (3 / 4, 3 / 6)
    assert (later.hit_ratio_1m, later.hit_ratio_5m) == (None, 3 / 4)
    assert (long_after.hit_ratio_5m, long_after.hit_ratio) == (None, 3 / 6)


def test_operations_and_their_time_are_counted(meter):
    """Milliseconds on the average, errors apart."""
    meter.events().on_operation("get", 0.001, "ok")
    meter.events().on_operation("get", 0.003, "timeout")

    stats = meter.stats()

    assert (stats.operations, stats.errors) == (2, 1)
    assert stats.average_latency_ms == pytest.approx(2)


def test_a_server_that_tells_nothing_costs_nothing(client, meter, clock):
    """fakeredis has no INFO, a narrow ACL denies it."""
    client.call("SET", "a", "1")

    snapshot = Monitor(client, meter, clock).snapshot()

    assert snapshot.health.is_connected
    assert snapshot.health.breaker is State.CLOSED
    assert snapshot.memory[0].used_bytes is None
    assert snapshot.keyspace.key_count == 1
    assert snapshot.keyspace.expiring_count is None


def test_latency_is_measured(connect, meter):
    """By the clock given."""
    times_s = iter([10.0, 10.002])

    assert Monitor(connect(), meter, lambda: next(times_s)).health().latency_ms == pytest.approx(2)


def test_an_outage_is_told_and_hides_the_rest(connect, server, meter, clock):
    """With its reason and the breaker's state."""
    client = connect(breaker=CircuitBreaker(failure_threshold=1, clock=clock))
    server.connected = False
    monitor = Monitor(client, meter, clock)

    snapshot = monitor.snapshot()

    assert (snapshot.health.is_connected, snapshot.health.reason) == (False, "refused")
    assert snapshot.memory == ()
    assert snapshot.keyspace.key_count is None
    assert snapshot.health.breaker is State.OPEN
    with pytest.raises(CacheUnavailable):
        monitor.memory()


def test_events_reach_all_listeners(meter):
    """A meter, and whoever else counts."""
    told = []
    both = joined(
        meter.events(),
        CacheEvents(
            on_operation=lambda *event: told.append(event),
            on_lookup=lambda *event: told.append(event),
            on_fill=lambda *event: told.append(event),
        ),
    )
    both.on_operation("get", 0.5, "ok")
    both.on_lookup("book", "hit")
    both.on_fill("book", "filled")

    assert told == [("get", 0.5, "ok"), ("book", "hit"), ("book", "filled")]
    assert meter.stats().hits == meter.stats().operations == 1
