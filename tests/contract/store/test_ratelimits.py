"""What a rate limiter promises, on the embedded and on a real server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import cast

import fakeredis
import pytest
from redis.connection import BlockingConnectionPool

from authsvc.cache import CacheClient, CircuitBreaker, KeySpace, RedisAddress, bounded_pool, stamped
from authsvc.cache.redis.connections import Pool
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.limits import Attempt, Limit
from authsvc.store.ratelimits import RedisRateLimiter
from tests.timings import UNHURRIED

CALLERS = 40
FIVE = Limit(name="login-account", quota=5, window_s=900)
QUICK = Limit(name="login-account", quota=5, window_s=1)
ALICE, BOB = "a" * 64, "b" * 64
#: The server counts in milliseconds.
ROUNDING_S = 0.002


def client_of(pool: Pool) -> CacheClient:
    """A client whose breaker stays out of the way."""
    breaker = CircuitBreaker(clock=time.monotonic, failure_threshold=1_000_000)
    return CacheClient(pool, breaker=breaker, clock=time.monotonic)


@dataclass
class Counters:
    """The limiter under test, and the client to look behind it."""

    limiter: RedisRateLimiter
    client: CacheClient

    def attempt(self, limit: Limit, subject: str) -> Attempt:
        """One attempt by itself."""
        (attempt,) = self.limiter.attempts([(limit, subject)])
        if isinstance(attempt, StoreUnavailable):
            raise attempt
        return attempt

    def key_of(self, limit: Limit, subject: str) -> str:
        """The name that the contract gives to the key."""
        return f"authsvc:v1:auth:rate-limit:{limit.name}:{subject}"

    def ttl_ms(self, limit: Limit, subject: str) -> int:
        """Milliseconds that the key has left; -1 without end, -2 without key."""
        return cast("int", self.client.call("PTTL", self.key_of(limit, subject)))

    def size_bytes(self, limit: Limit, subject: str) -> int:
        """Of all members of the key, without scores."""
        members = cast("list[bytes]", self.client.call("ZRANGE", self.key_of(limit, subject), 0, -1))
        return sum(len(member) for member in members)


@pytest.fixture(params=["embedded", "real"])
def counters(request) -> Iterator[Counters]:
    """Make an empty limiter over the in-memory server, then over a real one."""
    is_real = request.param == "real"
    client = client_of(real(request.getfixturevalue("redis_url")) if is_real else embedded())
    yield Counters(RedisRateLimiter(client, KeySpace()), client)
    client.close()


def embedded() -> Pool:
    """Connections to a server in this process."""
    connection_class = stamped(fakeredis.FakeRedisConnection)
    pool = BlockingConnectionPool(
        max_connections=CALLERS, connection_class=connection_class, server=fakeredis.FakeServer()
    )
    return cast("Pool", pool)


def real(url: str) -> Pool:
    """Connections to the server at *url*."""
    return bounded_pool(RedisAddress.from_url(url), size=CALLERS, deadlines=UNHURRIED.redis)


def at_once(work: Callable[[int], Attempt]) -> list[Attempt]:
    """What *work* says to CALLERS threads that start together."""
    start = threading.Barrier(CALLERS)

    def call(number: int) -> Attempt:
        start.wait(60)
        return work(number)

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(call, range(CALLERS)))


def test_attempts_are_allowed_up_to_the_quota(counters) -> None:
    """Each attempt says what is left; the one beyond the quota is refused and has no receipt."""
    attempts = [counters.attempt(FIVE, ALICE) for _ in range(7)]

    assert [attempt.allowed for attempt in attempts] == [True] * 5 + [False] * 2
    assert [attempt.remaining for attempt in attempts] == [4, 3, 2, 1, 0, 0, 0]
    assert [bool(attempt.receipt) for attempt in attempts] == [True] * 5 + [False] * 2
    assert {(attempt.limit, attempt.subject) for attempt in attempts} == {(FIVE, ALICE)}


def test_no_parallelism_gets_past_the_quota(counters) -> None:
    """Forty threads at once on a quota of five: exactly five are allowed."""
    attempts = at_once(lambda _: counters.attempt(FIVE, ALICE))

    assert sum(attempt.allowed for attempt in attempts) == 5
    assert sorted(attempt.remaining for attempt in attempts if attempt.allowed) == [0, 1, 2, 3, 4]


def test_each_caller_gets_back_what_it_took_under_a_race(counters) -> None:
    """Forty threads that succeed leave nothing behind, and never take more room than there is."""
    roomy = replace(FIVE, quota=CALLERS)

    def succeed(_: int) -> Attempt:
        attempt: Attempt = counters.attempt(roomy, ALICE)
        counters.limiter.refund(attempt)
        return attempt

    attempts = at_once(succeed)

    assert all(attempt.allowed for attempt in attempts)
    assert counters.attempt(roomy, ALICE).remaining == CALLERS - 1


def test_a_refund_gives_back_one_attempt_once(counters) -> None:
    """The same receipt presented again changes nothing."""
    first, *_ = [counters.attempt(FIVE, ALICE) for _ in range(5)]

    for _ in range(3):
        counters.limiter.refund(first)

    assert [counters.attempt(FIVE, ALICE).allowed for _ in range(2)] == [True, False]


def test_a_refused_attempt_has_nothing_to_give_back(counters) -> None:
    """A refund of a refusal makes no room."""
    attempts = [counters.attempt(FIVE, ALICE) for _ in range(6)]

    counters.limiter.refund(attempts[-1])

    assert not counters.attempt(FIVE, ALICE).allowed


def test_subjects_and_rules_are_counted_apart(counters) -> None:
    """Neither attempts nor refunds of one touch another."""
    other_rule = replace(FIVE, name="login-ip")
    attempts = [counters.attempt(FIVE, ALICE) for _ in range(5)]
    counters.limiter.refund(replace(attempts[0], subject=BOB))
    counters.limiter.refund(replace(attempts[0], limit=other_rule))

    assert counters.attempt(FIVE, BOB).remaining == 4
    assert counters.attempt(other_rule, ALICE).remaining == 4
    assert not counters.attempt(FIVE, ALICE).allowed


def test_a_counter_always_ends(counters) -> None:
    """After an attempt, a refusal and a refund the key has a life of one window at most."""
    first = counters.attempt(FIVE, ALICE)
    lives_ms = [counters.ttl_ms(FIVE, ALICE)]
    for _ in range(6):
        counters.attempt(FIVE, ALICE)
        lives_ms.append(counters.ttl_ms(FIVE, ALICE))
    counters.limiter.refund(first)
    lives_ms.append(counters.ttl_ms(FIVE, ALICE))

    assert all(850_000 < life_ms <= 900_000 for life_ms in lives_ms), lives_ms


def test_an_empty_counter_is_gone(counters) -> None:
    """When everything was given back no key is left."""
    counters.limiter.refund(counters.attempt(FIVE, ALICE))

    assert counters.ttl_ms(FIVE, ALICE) == -2


def test_an_attempt_takes_little_room(counters) -> None:
    """A few bytes for each: a flood of addresses costs memory only in keys."""
    for _ in range(5):
        counters.attempt(FIVE, ALICE)

    assert counters.size_bytes(FIVE, ALICE) <= 5 * 12


def test_keys_quote_their_subject(counters) -> None:
    """An IPv6 network stays one part of the key."""
    limit = replace(FIVE, name="login-ip")

    counters.attempt(limit, "2001:db8:1:2::")

    assert counters.ttl_ms(limit, "2001%3Adb8%3A1%3A2%3A%3A") > 0


def test_reset_is_whole_seconds_until_room(counters) -> None:
    """A full window for the first attempt; never zero, never longer than the window."""
    attempts = [counters.attempt(FIVE, ALICE) for _ in range(6)]

    assert attempts[0].reset_s == 900
    assert all(850 <= attempt.reset_s <= 900 for attempt in attempts)


def test_room_comes_back_when_an_attempt_leaves_the_window(counters) -> None:
    """Refused until the first attempt is one window old, allowed then; refusals do not prolong it."""
    began_s = time.monotonic()
    counters.attempt(QUICK, ALICE)
    made_s = time.monotonic()
    for _ in range(4):
        counters.attempt(QUICK, ALICE)

    asked_s = [time.monotonic()]
    while not (again := counters.attempt(QUICK, ALICE)).allowed:
        assert again.reset_s == 1
        threading.Event().wait(0.005)
        asked_s.append(time.monotonic())

    assert again.receipt
    assert time.monotonic() - began_s >= QUICK.window_s - ROUNDING_S
    # All but the last were refused: a prolonged window would go on refusing.
    assert all(at_s - made_s < QUICK.window_s + ROUNDING_S for at_s in asked_s[:-1])


def test_no_window_holds_more_than_the_quota(counters) -> None:
    """Four callers that never stop: of any six allowed attempts the last is a window after the first."""
    allowed: list[tuple[float, float]] = []

    def hammer(_: int) -> None:
        while len(allowed) < 10:
            before_s = time.monotonic()
            if counters.attempt(QUICK, ALICE).allowed:
                allowed.append((before_s, time.monotonic()))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hammer, range(4)))

    starts = sorted(before_s for before_s, _ in allowed)
    ends = sorted(after_s for _, after_s in allowed)
    assert all(
        end - start >= QUICK.window_s - ROUNDING_S for start, end in zip(starts, ends[5:], strict=False)
    )


def test_attempts_at_once_are_counted_as_if_one_by_one(counters) -> None:
    """Also several of one subject, with different limits beside them."""
    other = replace(FIVE, name="refresh", quota=2)
    counters.attempt(FIVE, ALICE)

    asked = [(FIVE, ALICE), (other, ALICE), (FIVE, BOB), *[(FIVE, ALICE)] * 4, *[(other, ALICE)] * 2]
    attempts = counters.limiter.attempts(asked)

    assert all(isinstance(attempt, Attempt) for attempt in attempts)
    assert [(attempt.limit, attempt.subject) for attempt in attempts] == asked
    assert [attempt.remaining for attempt in attempts] == [3, 1, 4, 2, 1, 0, 0, 0, 0]
    assert [attempt.allowed for attempt in attempts] == [True] * 6 + [False, True, False]
    assert len({attempt.receipt for attempt in attempts}) == 8


def test_one_counter_that_is_damaged_leaves_the_others(counters) -> None:
    """What cannot be counted is told by itself."""
    counters.client.call("SET", counters.key_of(FIVE, ALICE), "no set")

    damaged, other = counters.limiter.attempts([(FIVE, ALICE), (FIVE, BOB)])

    assert isinstance(damaged, StoreUnavailable)
    assert isinstance(other, Attempt)
    assert other.remaining == 4


def test_reset_tells_when_the_attempt_that_blocks_leaves(counters) -> None:
    """The oldest, usually; a later one when the quota was lowered after they were counted."""
    pair = Limit(name="login-account", quota=2, window_s=300)
    began_s = time.monotonic()
    counters.attempt(pair, ALICE)
    threading.Event().wait(1.1)
    second_s = time.monotonic()
    counters.attempt(pair, ALICE)

    full = counters.attempt(pair, ALICE)
    lowered = counters.attempt(replace(pair, quota=1), ALICE)
    ended_s = time.monotonic()

    assert (full.allowed, full.remaining, lowered.allowed, lowered.remaining) == (False, 0, False, 0)
    assert 300 - (ended_s - began_s) <= full.reset_s <= 299  # more than a second ago
    assert 300 - (ended_s - second_s) <= lowered.reset_s <= 300
    assert lowered.reset_s > full.reset_s


def test_a_full_redis_counts_nothing_though_an_old_attempt_makes_room(private_redis) -> None:
    """Redis would let what follows a removal in the same script through, full as it is."""
    client = client_of(real(private_redis.url))
    counters = Counters(RedisRateLimiter(client, KeySpace()), client)
    counters.attempt(FIVE, ALICE)
    client.call("ZADD", counters.key_of(FIVE, ALICE), 1, "of long ago")

    client.call("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(StoreUnavailable):
        counters.attempt(FIVE, ALICE)
    client.call("CONFIG", "SET", "maxmemory", 0)

    assert client.call("ZCARD", counters.key_of(FIVE, ALICE)) == 2
    assert counters.attempt(FIVE, ALICE).remaining == 3
    client.close()


def unreachable() -> CacheClient:
    """A client of a port that nobody listens on."""
    return client_of(bounded_pool(RedisAddress(host="127.0.0.1", port=1), size=1))


def test_what_cannot_be_counted_is_not_allowed() -> None:
    """An outage is StoreUnavailable, with nothing of the driver in it."""
    limiter = RedisRateLimiter(unreachable(), KeySpace())

    with pytest.raises(StoreUnavailable) as outage:
        limiter.attempts([(FIVE, ALICE)])

    assert outage.value.store == "redis"
    assert str(outage.value) == "redis"


def test_a_lost_refund_is_logged_and_not_raised(caplog) -> None:
    """The caller's success stands; the log names the rule, not the subject."""
    limiter = RedisRateLimiter(unreachable(), KeySpace())
    attempt = Attempt(limit=FIVE, subject=ALICE, allowed=True, remaining=4, reset_s=900, receipt="r")

    with caplog.at_level(logging.WARNING):
        limiter.refund(attempt)

    (record,) = [record for record in caplog.records if record.name == "authsvc.store.ratelimits"]
    assert (record.message, vars(record)["rule"], vars(record)["reason"]) == (
        "limit.refund_lost",
        "login-account",
        "refused",
    )
    assert ALICE not in str(vars(record))
