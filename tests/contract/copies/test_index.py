"""What the fast copy promises, over a real server and over the embedded one."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from authsvc.domain.clients import Client
from authsvc.domain.revocations import Revocation, Verdict
from authsvc.domain.tokens.access import MachineToken, signed_digest
from authsvc.domain.tokens.machines import MachineStanding
from authsvc.domain.values.identifiers import TokenId, UserId, new_id
from tests.contract.copies.index_side import ALICE, LONGEST_MS, Side, cut_off, end_of, standing_of
from tests.contract.copies.redis_side import KEYS, access_token, machine_token

#: Beyond the token itself: leeway and a margin.
MARGIN_MS = 65_000


def lives_for(side: Side, key: str, life_ms: int, began_s: float) -> bool:
    """True if *key* was given exactly *life_ms* since *began_s*: what is left, and at most the time since."""
    left_ms = side.ttl_ms(key)
    since_ms = 1 + (time.monotonic() - began_s) * 1000
    return life_ms - since_ms <= left_ms <= life_ms


def test_an_issued_token_is_good_under_proof(side):
    """Record, session and epoch are there; the check is one round trip."""
    token = access_token(side.clock, epoch=3)
    side.index.remember([(token, ALICE)])
    side.prove(marker=b"0")
    side.operations.clear()

    assert side.verdict(token) is Verdict.ACTIVE
    assert side.operations == ["mget"]


def test_the_keys_are_those_that_are_published(side):
    """Names, values and lives: each copy outlives its token by leeway and a minute, the record does not."""
    token = access_token(side.clock, epoch=3, roles=("user", "admin"))
    began_s = time.monotonic()

    side.index.remember([(token, ALICE)])

    record = f"authsvc:v1:auth:token:{token.token_id}"
    session = f"authsvc:v1:auth:session:{token.session_id}"
    epoch = f"authsvc:v1:auth:epoch:{token.user_id}"
    assert {key.decode() for key in side.client.call("KEYS", "*")} == {record, session, epoch}
    assert json.loads(side.value(record)) == {
        "digest": token.digest,
        "user_id": token.user_id,
        "email": ALICE,
        "roles": ["user", "admin"],
        "session_id": token.session_id,
        "epoch": 3,
        "expires_in": 3600,
        "created_at": token.issued_at,
    }
    assert (side.value(session), side.value(epoch)) == (b"alive", b"3")
    assert lives_for(side, record, 3_600_000, began_s)
    assert lives_for(side, session, 3_600_000 + MARGIN_MS, began_s)
    assert lives_for(side, epoch, 3_600_000 + MARGIN_MS, began_s)


def test_a_revocation_leaves_what_is_published(side):
    """Tombstone, blacklist, epoch; record and cached copies gone; lives as long as the longest token."""
    token = access_token(side.clock)
    side.index.remember([(token, ALICE)])
    for copy in (f"authsvc:v1:user:{token.user_id}", f"authsvc:v1:user:email:{ALICE}"):
        side.client.call("SET", copy, "x")
    ended = end_of(token, side.clock, token_id=token.token_id, epoch=4, email=ALICE)
    began_s = time.monotonic()

    side.index.write([ended])

    blacklist = f"authsvc:v1:auth:blacklist:{token.token_id}"
    session, epoch = KEYS.session(token.session_id), KEYS.epoch(token.user_id)
    assert {key.decode() for key in side.client.call("KEYS", "*")} == {session, epoch, blacklist}
    assert (side.value(session), side.value(epoch)) == (b"ended", b"4")
    assert json.loads(side.value(blacklist)) == {"reason": "logout", "revoked_at": ended.at.isoformat()}
    for key in (session, epoch, blacklist):
        assert lives_for(side, key, LONGEST_MS, began_s)


@pytest.mark.parametrize("life_s", [3600, 1800, 10, 1, 0])
def test_every_no_outlives_the_token(side, life_s):
    """By leeway and a minute at least, whatever is left of the token and however the no came about."""
    token = access_token(side.clock, life_s=life_s)
    session, blacklist = KEYS.session(token.session_id), KEYS.blacklist(token.token_id)
    began_s = time.monotonic()

    side.index.write([end_of(token, side.clock, token_id=token.token_id)])
    assert lives_for(side, session, LONGEST_MS, began_s)
    assert lives_for(side, blacklist, LONGEST_MS, began_s)
    for standing in (None, standing_of(token, side.clock, revoked_at=side.clock())):
        side.client.call("DEL", session)
        side.index.refill(token, standing)
        assert lives_for(side, session, LONGEST_MS, began_s)


@pytest.mark.parametrize("life_s", [3600, 1800, 10, 1, 0])
def test_alive_and_epoch_outlive_a_refilled_token(side, life_s):
    """By exactly the leeway and a minute, as they do at its issue."""
    token = access_token(side.clock, life_s=life_s)
    began_s = time.monotonic()

    side.index.refill(token, standing_of(token, side.clock))

    for key in (KEYS.session(token.session_id), KEYS.epoch(token.user_id)):
        assert lives_for(side, key, life_s * 1000 + MARGIN_MS, began_s)


def test_an_entry_that_is_replayed_late_still_leaves_a_key(side):
    """Its life is what is left of it, and never none at all."""
    token = access_token(side.clock)
    ended = end_of(token, side.clock)

    side.clock.tick(3_000)
    side.index.write([ended])
    assert 640_000 < side.ttl_ms(KEYS.session(token.session_id)) <= 665_000
    side.clock.tick(10_000)
    # In the same step: a second later the key is gone.
    note = "redis.call('SET', KEYS[2], redis.call('PTTL', KEYS[1])) return 1"
    key = KEYS.session(token.session_id)
    side.client.pipeline([*side.index.parts([ended])[0], ("EVAL", note, 2, key, "life")])

    assert 0 < int(side.value("life")) <= 1000


@pytest.mark.parametrize("how", ["remembered", "refilled"])
def test_a_tombstone_is_never_overwritten(side, how):
    """A check or a refresh that began before the end comes too late, and so does its note."""
    token = access_token(side.clock)
    side.prove(marker=b"0")
    side.index.write([end_of(token, side.clock)])

    if how == "remembered":
        side.index.remember([(token, ALICE)])
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
        lambda epoch: side.index.remember([(replace(token, epoch=epoch), ALICE)]),
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
            side.index.remember([(token, ALICE)])

        for key in (KEYS.session(long.session_id), KEYS.epoch(long.user_id)):
            assert side.ttl_ms(key) > 3_600_000 + MARGIN_MS - 10_000
            side.client.call("DEL", key)


def test_a_refill_puts_back_what_sql_said(side):
    """After that Redis answers as it would after the login."""
    token = access_token(side.clock, epoch=3)

    side.index.refill(token, standing_of(token, side.clock))

    side.prove(marker=b"0")
    assert side.verdict(token) is Verdict.ACTIVE


@pytest.mark.parametrize("is_kept", [True, False])
def test_another_text_of_an_issued_token_is_refused(side, is_kept):
    """Bound to the text from the start, and still so after its session or epoch was lost and put back."""
    token = access_token(side.clock, epoch=3)
    forged = replace(token, digest=signed_digest("another.text.x"), expires_at=token.expires_at - 1)
    side.index.remember([(token, ALICE)])
    side.prove(marker=b"0")
    if not is_kept:
        side.client.call("DEL", KEYS.session(token.session_id), KEYS.epoch(token.user_id))
        side.index.refill(token, standing_of(token, side.clock))

    assert (side.verdict(token), side.verdict(forged)) == (Verdict.ACTIVE, Verdict.REVOKED)


def test_a_refill_binds_no_text(side):
    """SQL cannot tell which text was issued: a forged one that came first must not lock out the real."""
    token = access_token(side.clock, epoch=3)
    forged = replace(token, digest=signed_digest("another.text.x"))
    promoted = replace(forged, roles=("user", "admin"))
    side.prove(marker=b"0")

    side.index.refill(forged, standing_of(token, side.clock))

    assert "digest" not in json.loads(side.value(KEYS.token(token.token_id)))
    assert side.verdict(token) is Verdict.ACTIVE
    assert side.verdict(promoted) is Verdict.REVOKED


def test_a_refill_of_another_text_leaves_the_record_bound(side):
    """Asked while Redis was unproven, SQL knows nothing against it: the binding outlives that answer."""
    token = access_token(side.clock, epoch=3)
    forged = replace(token, digest=signed_digest("another.text.x"))
    side.index.remember([(token, ALICE)])

    side.index.refill(forged, standing_of(token, side.clock))

    side.prove(marker=b"0")
    assert (side.verdict(token), side.verdict(forged)) == (Verdict.ACTIVE, Verdict.REVOKED)


def test_records_of_the_first_release_stay_good(side):
    """They have no digest; a process of that release can also replace one that has."""
    token = access_token(side.clock, epoch=3)
    side.index.remember([(token, ALICE)])
    side.prove(marker=b"0")
    key = KEYS.token(token.token_id)
    record = json.loads(side.value(key))
    del record["digest"]
    side.client.call("SET", key, json.dumps(record), "EX", 3600)

    verdicts = [side.verdict(text) for text in (token, replace(token, user_id=UserId(new_id())))]

    assert verdicts == [Verdict.ACTIVE, Verdict.REVOKED]


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
    """Redis answers what it can prove; the rest is asked of SQL again."""
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
    side.index.remember([(token, ALICE)])
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


def machine_standing(side: Side, token: MachineToken, **changes: object) -> MachineStanding:
    """What SQL would say of *token*: all is well, but for *changes* of the client."""
    client = Client(
        id=token.client_id,
        name="orders",
        scopes=token.scopes,
        may=(),
        created_at=side.clock(),
        epoch=token.epoch,
    )
    return MachineStanding(client=replace(client, **changes), is_revoked=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["remembered", "refilled"])
def test_the_token_of_a_machine_is_good_under_proof(side, how):
    """By the same keys and the same rule: its secret stands where a session does."""
    token = machine_token(side.clock)
    if how == "remembered":
        side.index.remember_machine(token)
    else:
        side.index.refill_machine(token, machine_standing(side, token))
    side.prove(marker=b"0")

    assert side.verdict(token) is Verdict.ACTIVE
    assert side.value(KEYS.session(token.session_id)) == b"alive"
    assert side.verdict(replace(token, scopes=("orders:write",), digest="x")) is not Verdict.ACTIVE


@pytest.mark.parametrize(
    "changes",
    [{"session_id": True}, {"epoch": 1}, {"token_id": True}],
    ids=["secret", "client", "token"],
)
def test_what_ends_the_token_of_a_machine_outlives_every_late_writer(side, changes):
    """A secret that is dropped, a client that is cut off, one token: whoever issues or refills afterwards."""
    token = machine_token(side.clock)
    named = {name: getattr(token, name) if value is True else value for name, value in changes.items()}
    entry = Revocation(
        seq=1,
        at=side.clock(),
        reason="dropped",
        expires_at=side.clock() + timedelta(milliseconds=LONGEST_MS),
        user_id=token.user_id,
        **named,
    )
    side.index.remember_machine(token)
    side.prove(marker=b"0")

    side.index.write([entry])
    assert side.verdict(token) is Verdict.REVOKED
    side.index.remember_machine(token)
    side.index.refill_machine(token, machine_standing(side, token))

    assert side.verdict(token) is Verdict.REVOKED


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [({"epoch": 1}, Verdict.REVOKED), ({"scopes": ()}, Verdict.UNKNOWN), (None, Verdict.REVOKED)],
    ids=["cut off", "without the scope", "gone"],
)
def test_a_refill_of_a_machine_that_is_not_good_never_makes_a_yes(side, changes, verdict):
    """A secret or client that is gone leaves a tombstone, a cut-off its epoch."""
    token = machine_token(side.clock)
    side.prove(marker=b"0")

    side.index.refill_machine(token, changes if changes is None else machine_standing(side, token, **changes))

    assert side.verdict(token) is verdict
