"""What the freshness marker promises, over a real server and over the embedded one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import fakeredis
import pytest

from authsvc.cache import CacheClient
from authsvc.domain.revocations import Position
from authsvc.store.copies.marker import FreshnessMarker, MarkerTimings, is_claim
from tests.contract.cache.clients import in_threads
from tests.contract.copies.redis_side import KEYS, SentMarker, client_over, embedded_pool, real_pool
from tests.timings import UNHURRIED

RACERS = 16
#: How long what a test puts there lives: shorter by far than the marker's own life.
PUT_MS = 100_000


@dataclass
class Side:
    """A marker, and the client to look behind it."""

    marker: SentMarker
    client: CacheClient

    def put(self, value: str | bytes) -> None:
        """Let the marker stand at *value*."""
        self.client.call("SET", KEYS.marker, value, "PX", PUT_MS)

    def value(self) -> Any:
        """What stands there."""
        return self.client.call("GET", KEYS.marker)

    def ttl_ms(self) -> int:
        """Its life."""
        left: int = self.client.call("PTTL", KEYS.marker)  # type: ignore[assignment]  # what PTTL replies
        return left

    def is_renewed(self) -> bool:
        """It was given its own life just now."""
        return 5 * PUT_MS < self.ttl_ms() <= UNHURRIED.marker.life_ms

    def over(self) -> int:
        """The generation of the connection."""
        return self.marker.read().over

    def flush(self) -> None:
        """Lose everything."""
        self.client.call("FLUSHDB")


@pytest.fixture(params=["embedded", "real"])
def side(request) -> Iterator[Side]:
    """Make a marker over an empty server, in memory and real; one caller at a time has one connection."""
    is_real = request.param == "real"
    pool = (
        real_pool(request.getfixturevalue("redis_url"), size=RACERS)
        if is_real
        else embedded_pool(fakeredis.FakeServer(), size=RACERS)
    )
    with closing(client_over(pool)) as client:
        yield Side(
            SentMarker(client, FreshnessMarker(KEYS.marker, KEYS.installation, UNHURRIED.marker)), client
        )


def sealed(side: Side):
    """The seal of a page that has been written."""
    seal = side.marker.seal()
    side.client.pipeline([seal.command])
    return seal


def claimed(side: Side) -> bytes:
    """A claim on an empty server."""
    claim = side.marker.claim()
    assert claim is not None
    return claim


def test_an_empty_server_has_no_marker(side):
    """It is told together with the connection that brought the answer."""
    reading = side.marker.read()

    assert reading.value is None
    assert reading.over > 0


def test_a_claim_is_taken_once_and_is_no_number(side):
    """It proves nothing to anybody, and ends by itself if its owner died."""
    claim = claimed(side)

    assert side.marker.claim() is None
    assert side.value() == claim
    assert is_claim(claim)
    assert not claim.isdigit()
    assert 0 < side.ttl_ms() <= UNHURRIED.marker.claim_ms


def test_the_lives_are_those_that_are_documented():
    """In these tests both are longer: a machine that stands still must not end them."""
    assert MarkerTimings() == MarkerTimings(life_ms=10_000, claim_ms=3_000)


def test_a_marker_cannot_be_claimed(side):
    """What stands is not thrown away by one who has not seen it."""
    side.put("7")

    assert side.marker.claim() is None
    assert side.value() == b"7"


def test_of_many_claims_at_once_one_is_taken(side):
    """One process refills."""
    claims = in_threads(*[side.marker.claim] * RACERS)

    assert len([claim for claim in claims if isinstance(claim, bytes)]) == 1


def test_a_refill_ends_with_a_marker(side):
    """Claim, pages, marker; its life begins then."""
    claim = claimed(side)

    second = side.marker.step(claim, Position(5), sealed(side))
    assert second is not None
    assert second != claim
    assert side.value() == second
    assert side.marker.advance(second, Position(9), over=side.over())

    assert side.value() == b"9"
    assert side.is_renewed()


@pytest.mark.parametrize("number", [0, 9, 10**15, (1 << 53) - 1])
def test_numbers_keep_every_digit(side, number):
    """The scripts' arithmetic rounds nothing."""
    assert side.marker.advance(claimed(side), Position(number), over=side.over())

    assert side.value() == str(number).encode()


@pytest.mark.parametrize("lost", ["flushed", "claimed by another", "rebuilt by another"])
def test_a_lost_claim_moves_nothing(side, lost):
    """What was written before the loss is perhaps gone: no step and no marker on top of it."""
    claim, seal = claimed(side), sealed(side)
    if lost != "flushed":
        side.put("replaying:other" if lost == "claimed by another" else "12")
    else:
        side.flush()
        seal = sealed(side)
    before = side.value()

    assert side.marker.step(claim, Position(5), seal) is None
    assert not side.marker.advance(claim, Position(20), over=side.over())

    assert side.value() == before


def test_a_claim_of_an_earlier_page_moves_nothing(side):
    """A server that took over half-way may have it, and lack the page that came with the next one."""
    first = claimed(side)
    assert side.marker.step(first, Position(5), sealed(side)) is not None
    before = side.value()

    assert side.marker.step(first, Position(9), sealed(side)) is None
    assert not side.marker.advance(first, Position(9), over=side.over())

    assert side.value() == before


@pytest.mark.parametrize("read", [b"7", None])
def test_a_page_without_its_seal_moves_nothing(side, read):
    """The page was written to a server that is not this one, or was lost since."""
    if read is None:
        read = claimed(side)
    else:
        side.put(read)
    before, never_written = side.value(), side.marker.seal()

    assert side.marker.step(read, Position(9), never_written) is None

    assert side.value() == before


def test_a_page_moves_a_marker_to_its_last_entry(side):
    """From where the next page goes on."""
    side.put("7")

    assert side.marker.step(b"7", Position(9), sealed(side)) == b"9"
    assert side.marker.step(b"9", Position(12), sealed(side)) == b"12"
    assert side.value() == b"12"
    assert side.is_renewed()


def test_a_seal_is_for_one_page_and_ends_by_itself(side):
    """It leaves nothing behind."""
    one, other = sealed(side), sealed(side)

    assert one.key != other.key
    assert one.key.startswith("authsvc:v1:")
    left: Any = side.client.call("PTTL", one.key)
    assert 0 < left <= UNHURRIED.marker.claim_ms


def test_renewing_needs_no_new_entry(side):
    """From a number to itself."""
    side.put("7")

    assert side.marker.advance(b"7", Position(7), over=side.over())

    assert side.value() == b"7"
    assert side.is_renewed()


def test_a_marker_that_others_raised_is_never_lowered(side):
    """An advance from a stale read is right, and late."""
    side.put("15")

    assert side.marker.advance(b"10", Position(12), over=side.over())
    assert side.value() == b"15"
    assert side.marker.advance(b"10", Position(20), over=side.over())
    assert side.value() == b"20"


def test_the_marker_names_its_entry(side):
    """By the trace of what it was brought to last; whoever is late does not rename it."""
    named, later = Position(9, "0123456789abcdef"), Position(12, "fedcba9876543210")
    assert side.marker.advance(claimed(side), named, over=side.over())
    assert side.marker.read().position == named

    assert side.marker.step(b"9", later, sealed(side)) == b"12"
    assert side.marker.advance(b"9", named, over=side.over())

    assert (side.value(), side.marker.read().position) == (b"12", later)
    side.marker.discard()
    assert side.marker.read().position == Position()


def test_a_marker_without_a_name_is_a_marker(side):
    """Versions before this one move the number alone."""
    side.put("7")
    assert side.marker.read().position == Position()
    assert side.marker.advance(b"7", Position(7, "0123456789abcdef"), over=side.over())
    side.put("8")

    assert side.marker.read().value == b"8"
    assert side.marker.read().position.seq == 7
    assert side.marker.renew(8)


def test_a_seal_is_looked_for_and_kept(side):
    """While the marker stays behind what was written; lost, it takes the marker's word with it."""
    side.put("7")
    seal = sealed(side)
    assert side.marker.read(seal).is_sealed
    assert not side.marker.read().is_sealed
    assert side.marker.advance(b"7", Position(7), over=side.over(), seal=seal)

    side.client.call("DEL", seal.key)

    assert not side.marker.read(seal).is_sealed
    assert not side.marker.advance(b"7", Position(9), over=side.over(), seal=seal)
    assert side.value() == b"7"


@pytest.mark.parametrize("current", [None, b"8", b"replaying:x", b"garbage", b""])
def test_a_marker_that_is_not_what_was_read_or_more_is_not_moved(side, current):
    """It was lost since, or this is another server: what lies between must be replayed."""
    if current is not None:
        side.put(current)

    assert not side.marker.advance(b"10", Position(12), over=side.over())

    assert side.value() == current


def test_an_advance_over_another_connection_counts_for_nothing(side):
    """The comparison belongs to the connection that it began with."""
    side.put("7")
    over = side.over()
    side.client.connections.suspect()

    assert not side.marker.advance(b"7", Position(9), over=over)


@pytest.mark.parametrize(
    ("current", "renewed"),
    [(b"7", True), (b"6", False), (b"8", False), (b"07", False), (b"x", False), (None, False)],
)
def test_without_sql_a_marker_is_renewed_only_where_it_is_exactly_known(side, current, renewed):
    """Neither less nor more, and never made."""
    if current is not None:
        side.put(current)

    assert side.marker.renew(7) is renewed

    assert side.value() == current
    assert side.is_renewed() is renewed


def test_a_discarded_marker_is_gone(side):
    """Also where there was none."""
    for _ in range(2):
        side.marker.discard()
        assert side.value() is None
        side.put("7")


def test_a_marker_only_ever_rises_whoever_moves_it(side):
    """Sixteen threads advance in any order from what they read; nobody sees it fall."""
    side.put("0")

    def advance() -> list[int]:
        seen = []
        for number in sorted(random.sample(range(1, 200), 30)):
            reading = side.marker.read()
            assert reading.value is not None
            side.marker.advance(reading.value, Position(number), over=reading.over)
            seen.append(int(side.marker.read().value or b"0"))
        return seen

    outcomes = in_threads(*[advance] * RACERS)

    assert all(seen == sorted(seen) for seen in outcomes)
    assert side.value() == str(max(max(seen) for seen in outcomes)).encode()
