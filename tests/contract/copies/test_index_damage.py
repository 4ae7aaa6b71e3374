"""What becomes of the fast copy in races, without proof, and where somebody damaged it."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace

import pytest

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Verdict
from tests.contract.cache.clients import in_threads
from tests.contract.copies.index_side import ALICE, cut_off, end_of, standing_of
from tests.contract.copies.redis_side import KEYS, access_token, client_over, index_over, real_pool
from tests.contract.store.stores import WallClock
from tests.processes import free_port

RACERS = 16


def test_logouts_win_over_whatever_races_them(side):
    """Refills and logins from eight sides, logouts from eight others: in the end all sessions are ended."""
    tokens = [access_token(side.clock) for _ in range(30)]

    def bring_back() -> None:
        for token in random.sample(tokens, len(tokens)):
            side.index.remember([(token, ALICE)])
            side.index.refill(token, standing_of(token, side.clock))

    def end() -> None:
        for token in random.sample(tokens, len(tokens)):
            side.index.write([end_of(token, side.clock)])

    assert in_threads(*[bring_back, end] * (RACERS // 2)) == [None] * RACERS

    assert {side.value(KEYS.session(token.session_id)) for token in tokens} == {b"ended"}


def test_the_highest_epoch_wins_over_whatever_races_it(side):
    """Sixteen threads raise and remember in every order; the highest is what stands."""
    token = access_token(side.clock)
    seen: list[int] = []

    def write(number: int) -> None:
        for epoch in random.sample(range(40), 40):
            raised = cut_off(token, side.clock, epoch)
            if number % 2:
                side.index.write([raised])
            else:
                side.index.remember([(replace(token, epoch=epoch), ALICE)])
            current = int(side.value(KEYS.epoch(token.user_id)))
            assert current >= epoch
            if number == 0:
                seen.append(current)

    outcomes = in_threads(*(lambda number=number: write(number) for number in range(RACERS)))

    assert outcomes == [None] * RACERS
    assert seen == sorted(seen)
    assert side.value(KEYS.epoch(token.user_id)) == b"39"


@pytest.mark.parametrize(
    ("marker", "is_proven"),
    [(None, False), (b"6", False), (b"7", True), (b"8", True), (b"replaying:x", False)],
)
def test_the_marker_is_read_together_with_the_token(side, marker, is_proven):
    """One answer, one connection, one moment."""
    side.prove(known=7, marker=marker)

    assert side.index.look_up(access_token(side.clock).keys).is_proven is is_proven


def test_a_connection_that_no_comparison_has_seen_is_told_of(side):
    """So that the next comparison comes at once; one that is merely unproven is not."""
    token = access_token(side.clock)

    assert not side.index.look_up(token.keys).is_proven
    assert side.hooks.new_connections == 1
    side.prove(known=7, marker=b"6")
    assert not side.index.look_up(token.keys).is_proven
    assert side.hooks.new_connections == 1


@pytest.mark.parametrize("kind", ["LPUSH", "SADD"])
def test_keys_of_another_type_raise_nothing_but_an_outage(side, kind):
    """Somebody wrote there by hand: a check asks SQL, a login goes through, a revocation is a 202."""
    token = access_token(side.clock)
    for key in (KEYS.token(token.token_id), KEYS.session(token.session_id), KEYS.epoch(token.user_id)):
        side.client.call(kind, key, "x")
    side.prove(marker=b"0")

    assert side.verdict(token) is Verdict.UNKNOWN
    for write in (
        lambda: side.index.remember([(token, ALICE)]),
        lambda: side.index.refill(token, standing_of(token, side.clock)),
        lambda: side.index.write([cut_off(token, side.clock, 1)]),
    ):
        with pytest.raises(StoreUnavailable):
            write()


@pytest.mark.parametrize("epoch", [b"", b"abc", b"-1", b"1.5", b"9" * 400])
def test_a_damaged_epoch_makes_no_yes(side, epoch):
    """SQL decides."""
    token = access_token(side.clock)
    side.index.remember([(token, ALICE)])
    side.client.call("SET", KEYS.epoch(token.user_id), epoch)
    side.prove(marker=b"0")

    assert side.verdict(token) is Verdict.UNKNOWN


def test_without_redis_every_call_is_an_outage():
    """In the words of the domain: no driver's error comes out."""
    clock = WallClock()
    with closing(client_over(real_pool(f"redis://127.0.0.1:{free_port()}/0"))) as client:
        index, token = index_over(client, clock), access_token(clock)

        for call in (
            lambda: index.look_up(token.keys),
            lambda: index.remember([(token, ALICE)]),
            lambda: index.refill(token, None),
            lambda: index.write([end_of(token, clock)]),
        ):
            with pytest.raises(StoreUnavailable):
                call()
