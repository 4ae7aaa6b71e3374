"""What the fast copy promises, over a real server and over the embedded one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import fakeredis
import pytest

from authsvc.cache import CacheClient
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Proof, Revocation, Verdict, judge
from authsvc.domain.sessions import Session, Standing
from authsvc.domain.tokens import AccessToken
from authsvc.domain.users import User
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import TokenId, new_id
from authsvc.store.index import RedisIndex
from tests.contract.cache_clients import in_threads
from tests.contract.redis_side import (
    KEYS,
    MAX_STALENESS_S,
    Hooks,
    access_token,
    client_over,
    embedded_pool,
    index_over,
    real_pool,
)
from tests.contract.stores import WallClock
from tests.processes import free_port

RACERS = 16
ALICE = Email("alice@example.com")
#: Beyond the token itself: leeway and a margin.
MARGIN_MS = 65_000
LONGEST_MS = 3_665_000


@dataclass
class Side:
    """An index, the client behind it, and what it said to others."""

    index: RedisIndex
    client: CacheClient
    proof: Proof
    hooks: Hooks
    clock: WallClock
    operations: list[str]

    def prove(self, *, known: int = 0, marker: bytes | None = None) -> None:
        """Let the marker stand and the process have compared it."""
        if marker is not None:
            self.client.call("SET", KEYS.marker, marker)
        newest = self.client.connections.generation
        self.proof.compared(seq=known, over=1, newest=newest, now_s=self.index.monotonic())

    def value(self, key: str) -> Any:
        """The value of *key*."""
        return self.client.call("GET", key)

    def ttl_ms(self, key: str) -> int:
        """Its life in milliseconds."""
        left: int = self.client.call("PTTL", key)  # type: ignore[assignment]  # what PTTL replies
        return left

    def verdict(self, token: AccessToken) -> Verdict:
        """What a check would make of it."""
        return judge(token.keys, self.index.look_up(token.keys))


@pytest.fixture(params=["embedded", "real"])
def side(request) -> Iterator[Side]:
    """Make an empty index over the in-memory server, then over a real one."""
    is_real = request.param == "real"
    pool = (
        real_pool(request.getfixturevalue("redis_url"), size=RACERS)
        if is_real
        else embedded_pool(fakeredis.FakeServer(), size=RACERS)
    )
    operations: list[str] = []
    with closing(client_over(pool, on_operation=lambda name, _s, _o: operations.append(name))) as client:
        proof, hooks, clock = Proof(MAX_STALENESS_S), Hooks(), WallClock()
        index = index_over(client, clock, proof=proof, hooks=hooks)
        client.ping()
        operations.clear()
        yield Side(index, client, proof, hooks, clock, operations)


def end_of(token: AccessToken, clock: WallClock, **changes: Any) -> Revocation:
    """The entry that ends the token's session."""
    ended = Revocation(
        seq=1,
        at=clock(),
        reason="logout",
        expires_at=clock() + timedelta(milliseconds=LONGEST_MS),
        user_id=token.user_id,
        session_id=token.session_id,
    )
    return replace(ended, **changes)


def cut_off(token: AccessToken, clock: WallClock, epoch: int, **changes: Any) -> Revocation:
    """The entry that raises the epoch of the token's user."""
    return end_of(token, clock, **({"session_id": None, "epoch": epoch} | changes))


def standing_of(token: AccessToken, clock: WallClock, **changes: Any) -> Standing:
    """What SQL would say of the token: all is well, but for *changes* of user or session."""
    now = clock()
    user = User(
        id=token.user_id, email=ALICE, created_at=now, updated_at=now, epoch=token.epoch, roles=token.roles
    )
    session = Session(
        id=token.session_id, user_id=token.user_id, device_id=None, ip="192.0.2.1", user_agent=None,
        created_at=now, last_used_at=now, idle_expires_at=now + timedelta(days=7),
        expires_at=now + timedelta(days=30), counter=0, rotated_at=now, salt=b"",
    )  # fmt: skip
    of_session = {name: value for name, value in changes.items() if hasattr(session, name)}
    of_user = {name: value for name, value in changes.items() if name not in of_session}
    return Standing(session=replace(session, **of_session), user=replace(user, **of_user))


def test_an_issued_token_is_good_under_proof(side):
    """Record, session and epoch are there; the check is one round trip."""
    token = access_token(side.clock, epoch=3)
    side.index.remember(token, ALICE)
    side.prove(marker=b"0")
    side.operations.clear()

    assert side.verdict(token) is Verdict.ACTIVE
    assert side.operations == ["mget"]


def test_the_keys_are_those_that_are_published(side):
    """Names, values and lives: each copy outlives its token by leeway and a minute, the record does not."""
    token = access_token(side.clock, epoch=3, roles=("user", "admin"))

    side.index.remember(token, ALICE)

    record = f"authsvc:v1:auth:token:{token.token_id}"
    session = f"authsvc:v1:auth:session:{token.session_id}"
    epoch = f"authsvc:v1:auth:epoch:{token.user_id}"
    assert {key.decode() for key in side.client.call("KEYS", "*")} == {record, session, epoch}
    assert json.loads(side.value(record)) == {
        "user_id": token.user_id,
        "email": ALICE,
        "roles": ["user", "admin"],
        "session_id": token.session_id,
        "epoch": 3,
        "expires_in": 3600,
        "created_at": token.issued_at,
    }
    assert (side.value(session), side.value(epoch)) == (b"alive", b"3")
    assert 3_590_000 < side.ttl_ms(record) <= 3_600_000
    assert 3_600_000 + MARGIN_MS - 10_000 < side.ttl_ms(session) <= 3_600_000 + MARGIN_MS
    assert 3_600_000 + MARGIN_MS - 10_000 < side.ttl_ms(epoch) <= 3_600_000 + MARGIN_MS


def test_a_revocation_leaves_what_is_published(side):
    """Tombstone, blacklist, epoch; record and cached copies gone; lives as long as the longest token."""
    token = access_token(side.clock)
    side.index.remember(token, ALICE)
    for copy in (f"authsvc:v1:user:{token.user_id}", f"authsvc:v1:user:email:{ALICE}"):
        side.client.call("SET", copy, "x")
    ended = end_of(token, side.clock, token_id=token.token_id, epoch=4, email=ALICE)

    side.index.write([ended])

    blacklist = f"authsvc:v1:auth:blacklist:{token.token_id}"
    session, epoch = KEYS.session(token.session_id), KEYS.epoch(token.user_id)
    assert {key.decode() for key in side.client.call("KEYS", "*")} == {session, epoch, blacklist}
    assert (side.value(session), side.value(epoch)) == (b"ended", b"4")
    assert json.loads(side.value(blacklist)) == {"reason": "logout", "revoked_at": ended.at.isoformat()}
    for key in (session, epoch, blacklist):
        assert LONGEST_MS - 10_000 < side.ttl_ms(key) <= LONGEST_MS


@pytest.mark.parametrize("life_s", [3600, 1800, 10, 1, 0])
def test_every_no_outlives_the_token(side, life_s):
    """By leeway and a minute at least, whatever is left of the token and however the no came about."""
    token = access_token(side.clock, life_s=life_s)
    needed_ms = life_s * 1000 + MARGIN_MS - 5_000

    side.index.write([end_of(token, side.clock, token_id=token.token_id)])
    assert side.ttl_ms(KEYS.session(token.session_id)) >= needed_ms
    assert side.ttl_ms(KEYS.blacklist(token.token_id)) >= needed_ms
    side.client.call("DEL", KEYS.session(token.session_id))
    side.index.refill(token, None)
    assert side.ttl_ms(KEYS.session(token.session_id)) >= needed_ms
    side.client.call("DEL", KEYS.session(token.session_id))
    side.index.refill(token, standing_of(token, side.clock, revoked_at=side.clock()))
    assert side.ttl_ms(KEYS.session(token.session_id)) >= needed_ms


def test_an_entry_that_is_replayed_late_still_leaves_a_key(side):
    """Its life is what is left of it, and never none at all."""
    token = access_token(side.clock)
    ended = end_of(token, side.clock)

    side.clock.tick(3_000)
    side.index.write([ended])
    assert 660_000 < side.ttl_ms(KEYS.session(token.session_id)) <= 665_000
    side.clock.tick(10_000)
    side.index.write([ended])

    assert 0 < side.ttl_ms(KEYS.session(token.session_id)) <= 1000


@pytest.mark.parametrize("how", ["remembered", "refilled"])
def test_a_tombstone_is_never_overwritten(side, how):
    """A check or a refresh that began before the end comes too late, and so does its note."""
    token = access_token(side.clock)
    side.prove(marker=b"0")
    side.index.write([end_of(token, side.clock)])

    if how == "remembered":
        side.index.remember(token, ALICE)
    else:
        side.index.refill(token, standing_of(token, side.clock))

    assert side.value(KEYS.session(token.session_id)) == b"ended"
    assert side.ttl_ms(KEYS.session(token.session_id)) > LONGEST_MS - 10_000
    assert side.verdict(token) is Verdict.REVOKED


@pytest.mark.parametrize("epochs", [(4, 3), (3, 4), (4, 4), (0, 12), (10, 9)])
def test_an_epoch_never_falls(side, epochs):
    """Compared as a number, whoever writes: a revocation, a login, a refill."""
    token = access_token(side.clock)
    key = KEYS.epoch(token.user_id)
    writers = [
        lambda epoch: side.index.write([cut_off(token, side.clock, epoch)]),
        lambda epoch: side.index.remember(replace(token, epoch=epoch), ALICE),
        lambda epoch: side.index.refill(token, standing_of(token, side.clock, epoch=epoch)),
    ]

    for first in writers:
        for second in writers:
            side.client.call("DEL", key)
            first(epochs[0])
            second(epochs[1])
            assert side.value(key) == str(max(epochs)).encode()


def test_the_life_of_alive_and_epoch_is_never_shortened(side):
    """A token that ends sooner takes nothing from one that ends later."""
    long = access_token(side.clock)
    short = replace(long, token_id=TokenId(new_id()), expires_at=long.issued_at + 5)

    for order in ((long, short), (short, long)):
        for token in order:
            side.index.remember(token, ALICE)

        for key in (KEYS.session(long.session_id), KEYS.epoch(long.user_id)):
            assert side.ttl_ms(key) > 3_600_000 + MARGIN_MS - 10_000
            side.client.call("DEL", key)


def test_a_refill_puts_back_what_sql_said(side):
    """After that Redis answers as it would after the login."""
    token = access_token(side.clock, epoch=3)

    side.index.refill(token, standing_of(token, side.clock))

    side.prove(marker=b"0")
    assert side.verdict(token) is Verdict.ACTIVE


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        pytest.param({"revoked_at": "now"}, Verdict.REVOKED, id="session ended"),
        pytest.param({"epoch": 4}, Verdict.REVOKED, id="user cut off"),
        pytest.param({"epoch": 2}, Verdict.UNKNOWN, id="epoch of a lost future"),
        pytest.param({"roles": ("user", "admin")}, Verdict.UNKNOWN, id="other roles"),
        pytest.param({"status": "disabled"}, Verdict.UNKNOWN, id="user disabled"),
        pytest.param({"idle_expires_at": "now"}, Verdict.UNKNOWN, id="session idle"),
        pytest.param({"expires_at": "now"}, Verdict.UNKNOWN, id="session over"),
    ],
)
def test_a_refill_of_what_is_not_good_never_makes_a_yes(side, changes, verdict):
    """What Redis can say it says; the rest is asked of SQL again."""
    token = access_token(side.clock, epoch=3)
    side.prove(marker=b"0")
    changes = {name: side.clock() if value == "now" else value for name, value in changes.items()}

    side.index.refill(token, standing_of(token, side.clock, **changes))

    assert side.verdict(token) is verdict


def test_a_token_whose_session_sql_does_not_know_is_refused(side):
    """Its user was removed: the tombstone says so until the token is over."""
    token = access_token(side.clock)
    side.prove(marker=b"0")

    side.index.refill(token, None)

    assert side.verdict(token) is Verdict.REVOKED


def test_repeating_a_revocation_is_harmless(side):
    """Twice the same, or an older one behind it: nothing comes back."""
    token = access_token(side.clock)
    side.prove(marker=b"0")
    side.index.remember(token, ALICE)
    entries = [end_of(token, side.clock), cut_off(token, side.clock, 2), cut_off(token, side.clock, 1)]

    for _ in range(2):
        side.index.write(entries)

    assert side.verdict(token) is Verdict.REVOKED
    assert side.value(KEYS.epoch(token.user_id)) == b"2"


def test_many_entries_are_one_round_trip(side):
    """However many a page has; each tells how long it took."""
    tokens = [access_token(side.clock) for _ in range(50)]
    entries = [end_of(token, side.clock, token_id=token.token_id, epoch=1, email=ALICE) for token in tokens]
    side.clock.tick(2)

    side.index.write(entries)

    assert side.operations == ["pipeline"]
    assert side.hooks.written_s == [2.0] * 50


def test_logouts_win_over_whatever_races_them(side):
    """Refills and logins from eight sides, logouts from eight others: in the end all sessions are ended."""
    tokens = [access_token(side.clock) for _ in range(30)]

    def bring_back() -> None:
        for token in random.sample(tokens, len(tokens)):
            side.index.remember(token, ALICE)
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
                side.index.remember(replace(token, epoch=epoch), ALICE)
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
        lambda: side.index.remember(token, ALICE),
        lambda: side.index.refill(token, standing_of(token, side.clock)),
        lambda: side.index.write([cut_off(token, side.clock, 1)]),
    ):
        with pytest.raises(StoreUnavailable):
            write()


@pytest.mark.parametrize("epoch", [b"", b"abc", b"-1", b"1.5", b"9" * 400])
def test_a_damaged_epoch_makes_no_yes(side, epoch):
    """SQL decides."""
    token = access_token(side.clock)
    side.index.remember(token, ALICE)
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
            lambda: index.remember(token, ALICE),
            lambda: index.refill(token, None),
            lambda: index.write([end_of(token, clock)]),
        ):
            with pytest.raises(StoreUnavailable):
                call()
