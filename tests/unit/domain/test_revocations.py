"""What Redis proves: the judgement of one answer, and the proof behind it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import (
    Committed,
    Horizon,
    IndexAnswer,
    Position,
    Proof,
    Revocation,
    Revocations,
    Sight,
    Verdict,
    judge,
    whole_number,
)
from authsvc.domain.tokens.access import signed_digest
from authsvc.domain.values.shards import Sharded
from tests.unit.domain.samples import ALICE_ID, NOW, access_token, later

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_STALENESS_S = 300.0
#: The token's own epoch is 3.
TOKEN = access_token(epoch=3).keys
#: What SQL vouches for, as a record without a digest holds it.
CLAIMS: dict[str, Any] = {
    "user_id": TOKEN.user_id,
    "roles": ["user"],
    "session_id": TOKEN.session_id,
    "epoch": 3,
}
BOUND = json.dumps({"digest": TOKEN.digest, **CLAIMS}).encode()
UNBOUND = json.dumps({"email": "alice@example.com", **CLAIMS}).encode()
#: Of a token that is not the one checked: another text, another user.
OTHERS = (
    json.dumps({"digest": signed_digest("a.b.c"), **CLAIMS}).encode(),
    json.dumps({**CLAIMS, "user_id": "00000000-0000-4000-8000-00000000ffff"}).encode(),
)
DAMAGED = (None, b"", b"{}", b"[]", b"nul", b'{"user_id": "a"}', b"\xff", b"[" * 5000)
RECORDS = (BOUND, UNBOUND, *OTHERS, *DAMAGED)
SESSIONS = (None, b"alive", b"ended", b"Alive", b"")
EPOCHS = (None, b"2", b"3", b"4", b"", b"-4", b"3.0", b"abc", b"9" * 5000)
BLACKLISTS = (None, b'{"reason": "logout"}', b"")
TABLE = list(product(RECORDS, SESSIONS, EPOCHS, BLACKLISTS, (True, False)))


@pytest.mark.parametrize("is_proven", [True, False])
def test_only_presence_of_everything_is_a_yes(is_proven):
    """Of all that Redis can hold: the token's own record, its session and epoch under a proven marker."""
    rows = [row for row in TABLE if row[4] is is_proven]
    yeses = [row for row in rows if judge(TOKEN, IndexAnswer(*row)) is Verdict.ACTIVE]

    expected = [(record, b"alive", b"3", None, True) for record in (BOUND, UNBOUND)]
    assert yeses == (expected if is_proven else [])


def test_a_no_is_a_revocation_or_the_record_of_another_token_under_proof():
    """A tombstone, a blacklist entry, a higher epoch, another token's record: nothing else is a no."""
    noes = {row for row in TABLE if judge(TOKEN, IndexAnswer(*row)) is Verdict.REVOKED}

    expected = {
        (record, session, epoch, blacklist, is_proven)
        for record, session, epoch, blacklist, is_proven in TABLE
        if is_proven and (session == b"ended" or epoch == b"4" or blacklist is not None or record in OTHERS)
    }
    assert noes == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user_id", "00000000-0000-4000-8000-00000000ffff"),
        ("session_id", "00000000-0000-4000-8000-00000000ffff"),
        ("roles", ["user", "admin"]),
        ("roles", []),
        ("epoch", 2),
    ],
)
def test_a_record_without_a_digest_is_bound_to_what_sql_knows(name, value):
    """Session, user, roles and epoch: what another token of the same id says of them was never issued."""
    record = json.dumps({**CLAIMS, name: value}).encode()

    assert judge(TOKEN, IndexAnswer(record, b"alive", b"3", None, is_proven=True)) is Verdict.REVOKED


def test_a_record_with_a_digest_is_bound_to_the_signed_text():
    """Equal claims are not enough: the digest alone decides, also where all else in the record is damaged."""
    other = replace(TOKEN, digest=signed_digest("other.text.x"))
    cut = BOUND[: BOUND.index(b",")]

    verdicts = [
        judge(token, IndexAnswer(record, b"alive", b"3", None, is_proven=True))
        for token in (TOKEN, other)
        for record in (BOUND, cut)
    ]

    assert verdicts == [Verdict.ACTIVE, Verdict.ACTIVE, Verdict.REVOKED, Verdict.REVOKED]


def test_without_proof_redis_says_nothing():
    """An unproven marker leaves every answer to SQL."""
    verdicts = {judge(TOKEN, IndexAnswer(*row)) for row in TABLE if not row[4]}

    assert verdicts == {Verdict.UNKNOWN}


@pytest.mark.parametrize(
    "raw", [None, b"", b"-1", b"+1", b" 1", b"1.0", b"1_0", b"0x1", b"replaying:1", b"9" * 5000, b"9" * 16]
)
def test_what_no_counter_can_have_reached_is_no_number(raw):
    """Redis can hold anything; it never raises, and no number is made of it."""
    assert whole_number(raw) is None


@pytest.mark.parametrize("number", [0, 1, 42, 1 << 53])
def test_a_counter_is_read_as_written(number):
    """Up to the last number that Redis' scripts hold exactly."""
    assert whole_number(str(number).encode()) == number


def proof(*, known: int = 10, over: int = 5, newest: int = 8, at_s: float = 1000.0) -> Proof:
    """A proof after one comparison."""
    made = Proof(MAX_STALENESS_S)
    made.compared(seq=known, over=over, newest=newest, now_s=at_s)
    return made


@pytest.mark.parametrize("marker", [b"10", b"11"])
@pytest.mark.parametrize("generation", [5, 6, 8])
@pytest.mark.parametrize("now_s", [1000.0, 1300.0])
def test_a_marker_proves_when_every_condition_holds(marker, generation, now_s):
    """Not behind, over a connection that the comparison covers, within the time."""
    assert proof().holds(marker, generation, now_s)


@pytest.mark.parametrize(
    ("marker", "generation", "now_s"),
    [
        pytest.param(None, 6, 1000.0, id="missing"),
        pytest.param(b"9", 6, 1000.0, id="behind"),
        pytest.param(b"replaying:ab12", 6, 1000.0, id="being refilled"),
        pytest.param(b"", 6, 1000.0, id="empty"),
        pytest.param(b"9" * 5000, 6, 1000.0, id="absurd"),
        pytest.param(b"10", 4, 1000.0, id="older connection"),
        pytest.param(b"10", 9, 1000.0, id="newer connection"),
        pytest.param(b"10", 0, 1000.0, id="connection never made"),
        pytest.param(b"10", -1, 1000.0, id="no connection"),
        pytest.param(b"10", 6, 1300.1, id="stale"),
    ],
)
def test_each_condition_alone_breaks_the_proof(marker, generation, now_s):
    """One is enough."""
    assert not proof().holds(marker, generation, now_s)


def test_nothing_is_proven_before_the_first_comparison():
    """A process that has just started asks SQL, also where the clock starts at 0."""
    fresh = Proof(MAX_STALENESS_S)

    answers = [fresh.holds(b"10", generation, 0.0) for generation in (-1, 0, 1)]

    assert answers == [False, False, False]
    assert fresh.known == 0
    assert not fresh.trusts(1)
    assert not fresh.still_connected(1)
    assert not fresh.still_connected(-1)


def test_what_the_process_knows_to_be_missing_puts_the_marker_behind():
    """Entry 11 is in SQL and perhaps not in Redis: 10 proves nothing any more, 11 does."""
    current = proof()

    current.learned(11)

    assert not current.holds(b"10", 6, 1000.0)
    assert current.holds(b"11", 6, 1000.0)


def test_what_is_known_never_falls():
    """Neither an old entry nor a comparison with a lower head forgets a higher one."""
    current = proof()
    current.learned(11)

    current.learned(3)
    current.compared(seq=10, over=5, newest=8, now_s=1000.0)

    assert current.known == 11
    assert not current.holds(b"10", 6, 1000.0)


def test_distrust_lasts_until_the_next_comparison():
    """Also the connections that were trusted are not, whatever the marker says."""
    current = proof()

    current.distrust()

    assert not current.holds(b"10", 6, 1000.0)
    assert not current.still_connected(5)
    assert current.known == 10
    current.compared(seq=10, over=5, newest=8, now_s=1001.0)
    assert current.holds(b"10", 6, 1001.0)


def test_a_comparison_over_a_new_connection_drops_the_older_ones():
    """What was connected before the reconciler's own connection may lead elsewhere."""
    current = proof()

    current.compared(seq=10, over=20, newest=30, now_s=1001.0)

    assert [current.holds(b"10", generation, 1001.0) for generation in (8, 20, 30, 31)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert current.still_connected(20)
    assert current.trusts(30)
    assert not current.trusts(31)


def test_staleness_counts_from_the_last_comparison():
    """Each one starts the time anew."""
    current = proof()
    current.compared(seq=10, over=5, newest=8, now_s=1250.0)

    assert current.holds(b"10", 6, 1550.0)
    assert not current.holds(b"10", 6, 1550.1)


def entry(seq: int) -> Revocation:
    """A log entry."""
    return Revocation(seq=seq, at=NOW, reason="test", expires_at=later(60), user_id=ALICE_ID)


@dataclass
class Index:
    """A Redis that can be made to refuse."""

    is_up: bool = True
    written: list[int] = field(default_factory=list)

    def write(self, entries: Sequence[Revocation]) -> None:
        """Note the numbers."""
        if not self.is_up:
            raise StoreUnavailable("redis")
        self.written += [entry.seq for entry in entries]


def test_a_change_that_reached_redis_is_complete():
    """The proof stays: the marker is not behind what this process could not write."""
    index, current = Index(), proof()

    outcome = Revocations(index, Sharded((current,))).publish(Committed("value", (entry(11), entry(12))))

    assert (outcome.value, outcome.is_complete) == ("value", True)
    assert index.written == [11, 12]
    assert current.holds(b"10", 6, 1000.0)


def test_a_change_that_did_not_reach_redis_is_incomplete_and_distrusted():
    """Until the marker has passed the highest of its entries."""
    current = proof()

    outcome = Revocations(Index(is_up=False), Sharded((current,))).publish(
        Committed("value", (entry(12), entry(11)))
    )

    assert not outcome.is_complete
    assert not current.holds(b"11", 6, 1000.0)
    assert current.holds(b"12", 6, 1000.0)


def test_a_change_without_entries_asks_nothing_of_redis():
    """It is complete also while Redis is away."""
    outcome = Revocations(Index(is_up=False), Sharded((proof(),))).publish(Committed(None))

    assert outcome.is_complete


def test_a_repeated_entry_that_cannot_be_written_is_incomplete_and_takes_no_trust():
    """Its number is long past: Redis has it, or the marker says so."""
    current = proof()

    outcome = Revocations(Index(is_up=False), Sharded((current,))).publish(Committed(None, (entry(0),)))

    assert not outcome.is_complete
    assert current.holds(b"10", 6, 1000.0)


def sight(head: int, *writers: str) -> Sight:
    """A look that saw *head*, and *writers* under way."""
    return Sight(Position(head), frozenset(writers))


class TestHorizon:
    """Up to where nothing is still to come."""

    def looked(self, *sights: Sight) -> list[int | None]:
        """What was settled behind each look."""
        horizon, settled = Horizon(), []
        for began_s, seen in enumerate(sights):
            horizon.look(seen, began_s)
            settled.append(horizon.settled.seq if horizon.settled else None)
        return settled

    def test_where_nobody_writes_the_head_is_settled(self):
        """At once."""
        assert self.looked(sight(0), sight(5)) == [0, 5]

    def test_a_head_is_settled_when_all_have_ended_that_wrote_then(self):
        """Those who came later have higher numbers, and are waited for with the next head."""
        looks = [sight(5, "a", "b"), sight(6, "b", "c"), sight(7, "c"), sight(8, "c"), sight(8, "d")]

        assert self.looked(*looks) == [None, None, 5, 5, 7]

    def test_a_writer_that_comes_and_goes_is_another_one(self):
        """One that is not there any more has ended, also if it was never waited for before."""
        assert self.looked(sight(1, "a"), sight(2, "b"), sight(3, "a")) == [None, 1, 2]

    def test_the_time_is_that_of_the_look_that_is_settled(self):
        """What was committed since then may lie beyond."""
        horizon = Horizon()
        for began_s, seen in ((1.0, sight(5, "a")), (2.0, sight(6, "a")), (3.0, sight(7, "b"))):
            horizon.look(seen, began_s)

        assert (horizon.settled, horizon.settled_at_s) == (Position(5), 1.0)

    def test_of_a_log_that_went_back_nothing_is_known(self):
        """Neither what was settled before, nor who was waited for."""
        assert self.looked(sight(9), sight(4, "a")) == [9, None]
        assert self.looked(sight(9, "a"), sight(4, "b"), sight(5, "c")) == [None, None, 4]

    def test_what_others_know_only_ever_adds(self):
        """A marker lower than what this process has found out says nothing new."""
        horizon = Horizon()
        horizon.hear(Position(3))
        horizon.hear(Position(2))
        assert horizon.settled == Position(3)


@given(st.integers(0, 10**15), st.text("0123456789abcdef", min_size=16, max_size=16) | st.just(""))
def test_a_position_is_read_back(seq, trace):
    """As Redis kept it."""
    assert Position.parse(Position(seq, trace).text().encode()) == Position(seq, trace)


@pytest.mark.parametrize("raw", [None, b"", b"5", b"05:", b"5:xyz", b"-1:", b"5:0123456789ABCDEF", b"\xff:"])
def test_what_no_process_wrote_is_no_position(raw):
    """Whatever stands there, nothing is compared with it."""
    assert Position.parse(raw) == Position()


def test_only_another_entry_of_the_same_number_contradicts():
    """Not its absence, and not a position without a trace."""
    found = Sight(found=(Position(4, "a"), Position(5, "b")))

    assert found.contradicts(Position(5, "c"))
    assert not any(map(found.contradicts, (Position(5, "b"), Position(5), Position(6, "c"))))
