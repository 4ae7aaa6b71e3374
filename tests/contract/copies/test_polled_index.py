"""The lane's copy of the index: open while it is proven, the same answers as the ordinary way, shut else."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest

from authsvc.cache.redis.polled import PolledFleet, PolledReads
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import IndexAnswer, Verdict, judge
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.values.emails import Email
from authsvc.store.copies.polled import PolledIndex
from tests.contract.cache.clients import PATIENT
from tests.contract.copies.reconciling import World
from tests.contract.copies.redis_side import KEYS, NAMES, Process, access_token

ALICE = Email("alice@example.com")


@pytest.fixture
def process(quick_world: World) -> Process:
    """A process that has compared nothing yet."""
    made, _ = quick_world.start()
    return made


@pytest.fixture
def polled(process: Process) -> Iterator[PolledIndex]:
    """Its lane, which the reconciler knows."""
    pool = process.checks.link.connections._pool  # type: ignore[attr-defined]  # noqa: SLF001 the checks' own
    reads = PolledReads(pool, clock=time.monotonic, deadlines=PATIENT)
    process.reconciler.servers.lane_to = lambda _: reads
    fleet = PolledFleet(lambda _: reads)
    fleet.at("")
    made = PolledIndex(
        reads=fleet,
        client=process.checks,
        key_names=NAMES,
        proofs=process.index.proofs,
        owner_of=process.reconciler.servers.owner_of,
        monotonic=process.monotonic,
    )
    yield made
    reads.close()


def answers(polled: PolledIndex, *tokens: AccessToken) -> list[IndexAnswer]:
    """One round: all of *tokens* with one read."""
    polled.ask([polled.keys_of(token.keys) for token in tokens])
    while True:
        assert polled.reads.sockets
        assert select.select([*polled.reads.sockets], [], [], 60)[0]
        if (found := polled.answers()) is not None:
            return found.tokens


def issued(process: Process, count: int) -> list[AccessToken]:
    """Tokens that Redis knows to be issued."""
    tokens = [access_token(process.index.clock) for _ in range(count)]
    for token in tokens:
        process.index.remember([(token, ALICE)])
    return tokens


def test_it_opens_with_the_first_comparison(process, polled):
    """No connection is used that nobody has compared."""
    polled.reads.at("").renew()
    assert not polled.is_open()

    assert process.reconciler.tick()

    assert polled.is_open()
    (token,) = issued(process, 1)
    assert judge(token.keys, *answers(polled, token)) is Verdict.ACTIVE


def test_many_tokens_have_the_answers_that_each_has_alone(process, polled, quick_world):
    """Good, unknown, ended, cut off and blacklisted ones, in one read: field by field as the ordinary way."""
    process.reconciler.tick()
    assert polled.is_open()
    good, ended, cut_off, listed, *others = issued(process, 9)
    unknown = access_token(process.index.clock)
    quick_world.redis.set(KEYS.session(ended.session_id), "ended")
    quick_world.redis.set(KEYS.epoch(cut_off.user_id), 7)
    quick_world.redis.set(KEYS.blacklist(listed.token_id), "{}")
    tokens = [others[0], ended, good, unknown, cut_off, listed, *others[1:]]

    together = answers(polled, *tokens)

    assert together == [process.index.look_up(token.keys) for token in tokens]
    verdicts = [judge(token.keys, answer) for token, answer in zip(tokens, together, strict=True)]
    assert verdicts[:3] == [Verdict.ACTIVE, Verdict.REVOKED, Verdict.ACTIVE]
    assert verdicts[3:6] == [Verdict.UNKNOWN, Verdict.REVOKED, Verdict.REVOKED]


def test_without_its_marker_it_is_shut_until_the_next_comparison(process, polled, quick_world):
    """An emptied Redis proves nothing: not asked again before it was compared again."""
    process.reconciler.tick()
    polled.is_open()
    (token,) = issued(process, 1)
    quick_world.redis.flushall()

    (answer,) = answers(polled, token)

    assert not answer.is_proven
    assert not polled.is_open()
    process.monotonic.tick(1)
    process.reconciler.tick()
    assert polled.is_open()


def test_what_a_request_could_not_tell_redis_shuts_it(process, polled):
    """A revocation that was answered with 202 is refused here, too, from that moment on."""
    process.reconciler.tick()
    polled.is_open()
    (token,) = issued(process, 1)
    process.proof.learned(process.proof.known + 1)

    (answer,) = answers(polled, token)

    assert judge(token.keys, answer) is Verdict.UNKNOWN


def test_a_lost_connection_is_made_and_compared_before_it_is_used(process, polled, quick_world):
    """Those of the checks are made anew with it: none may be older than the reconciler's."""
    process.reconciler.tick()
    polled.is_open()
    (token,) = issued(process, 1)
    before = polled.reads.at("").generation
    quick_world.redis.client_kill_filter(skipme=True, _type="normal")

    with pytest.raises(StoreUnavailable):
        answers(polled, token)
    assert not polled.is_open()
    process.monotonic.tick(1)
    while not process.reconciler.tick():
        pass

    assert polled.is_open()
    assert polled.reads.at("").generation > before
    assert answers(polled, token)[0].is_proven
    assert process.is_proven()


def test_a_connection_older_than_the_reconcilers_is_not_believed(process, polled):
    """Its own was made anew, it may lead elsewhere now: what the old one says proves nothing."""
    process.reconciler.tick()
    polled.is_open()
    (token,) = issued(process, 1)
    old = polled.reads.at("").generation
    polled.ask([polled.keys_of(token.keys)])
    process.reconciling.connections.suspect()
    process.monotonic.tick(1)
    assert process.reconciler.tick()

    assert select.select([*polled.reads.sockets], [], [], 60)[0]
    found = polled.answers()

    assert polled.reads.at("").generation == old
    assert found is not None
    assert [answer.is_proven for answer in found.tokens] == [False]
