"""The fast copy for an event loop: many tokens with one read, which nobody waits for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from authsvc.cache.errors import CacheUnavailable
from authsvc.cache.redis.client import CacheClient
from authsvc.cache.redis.polled import PolledFleet, PolledReads
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import IndexAnswer, Proof, TokenKeys
from authsvc.domain.tokens.checks import PolledAnswers, PolledKeys
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Monotonic
from authsvc.domain.values.shards import Sharded, shard_of
from authsvc.store.copies.index import IndexKeys, UserCopies

#: Keys that belong to one token.
KEYS_EACH = 4
#: A longer copy of a user would keep the event loop busy: a thread reads it.
LARGEST_COPY_BYTES = 4096

#: What is known of a token that nobody was asked about.
_UNASKED = IndexAnswer(None, None, None, None, is_proven=False)


class _Asked(NamedTuple):
    """What is asked about one shard: the places of its tokens among all, and of those with their users."""

    shard: int
    places: Sequence[int]
    users: list[int]


@dataclass(slots=True)
class _Question:
    """One read of one server."""

    reads: PolledReads
    shards: list[_Asked]
    #: Of the connection that was asked: while others answer, the reads may change to another one.
    generation: int
    values: Sequence[bytes | None] | None = None
    is_over: bool = False


@dataclass(slots=True, kw_only=True)
class PolledIndex:
    """
    Reads what :class:`~authsvc.store.copies.index.RedisIndex` reads, over connections of its own.

    It is open while such a connection existed at the last comparison.  After an answer without proof it asks
    nothing more about that shard until there is another comparison.  While the breaker of *client* is not
    closed it is shut, too: by the calls of others the breaker finds out that Redis is back.
    """

    reads: PolledFleet
    client: CacheClient
    key_names: Sharded[IndexKeys]
    proofs: Sharded[Proof]
    #: The name of the server that owns a shard, as of the last comparison; None: not known.
    owner_of: Callable[[int], str | None]
    monotonic: Monotonic
    #: None: users are not cached.
    user_copies: UserCopies | None = None
    _markers: tuple[bytes, ...] = field(init=False)
    #: The comparison of each shard whose proof did not hold; what it proved is not asked again.
    _refuted_at_s: list[float] = field(init=False)
    _questions: list[_Question] = field(default_factory=list, init=False)
    _count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._markers = tuple(_bulk(names.marker) for names in self.key_names.each)
        self._refuted_at_s = [-1.0] * len(self.proofs.each)

    def is_open(self) -> bool:
        """True if it makes sense to ask."""
        adopted = [reads.adopt(self._is_trusted) for reads in self.reads.all]
        return any(adopted) and self.client.may_ask and any(map(self._is_proving, range(len(self._markers))))

    @property
    def has_users(self) -> bool:
        """True where users are cached."""
        return self.user_copies is not None

    def keys_of(self, token: TokenKeys, *, with_user: bool = False) -> PolledKeys:
        """The shard of *token*, and the names of its keys, as they are sent."""
        shard = shard_of(token.user_id, len(self._markers))
        keys = b"".join(map(_bulk, self.key_names.each[shard].of(token)))
        copies = self.user_copies if with_user else None
        return PolledKeys(shard, keys, _bulk(copies.key(token.user_id)) if copies is not None else b"")

    def read_user(self, user_id: str, raw: bytes | None) -> User | None:
        """The user in the copy *raw*; None where there is no good one, or one too large for the loop."""
        if self.user_copies is None or raw is None or len(raw) > LARGEST_COPY_BYTES:
            return None
        return self.user_copies.read(user_id, raw)

    def ask(self, keys: Sequence[PolledKeys]) -> None:
        """Begin to read *keys*, with the markers of their shards; raises StoreUnavailable if none can be."""
        self._questions, self._count = [], len(keys)
        for name, shards in self._by_server(keys).items():
            reads = self.reads.at(name)
            if reads.socket is not None:
                requests = [self._mget(keys, asked) for asked in shards]
                counts = [KEYS_EACH * len(places) + 1 + len(users) for _, places, users in shards]
                with suppress(CacheUnavailable):  # told by the reads' hooks; a thread asks again
                    reads.send(b"".join(requests), *counts)
                    self._questions.append(_Question(reads, shards, reads.generation))
        if not self._questions:
            raise StoreUnavailable("redis: no server of the lane can be asked")

    def answers(self) -> PolledAnswers | None:
        """What was asked for, None while it is not there; raises StoreUnavailable."""
        under_way = [question for question in self._questions if not question.is_over]
        if len(under_way) < len(self.reads.all):
            self._notice_ends({id(question.reads) for question in under_way})
        if [question for question in under_way if not self._take(question)]:
            return None
        questions, self._questions = self._questions, []
        found = PolledAnswers([_UNASKED] * self._count, {})
        if not [question for question in questions if self._judge(question, found)]:
            raise StoreUnavailable("redis: no answer")
        return found

    def _take(self, question: _Question) -> bool:
        """Read what is there of the answer to *question*; True if it is over, or cannot come any more."""
        try:
            question.values = question.reads.receive()
        except CacheUnavailable:
            question.is_over = True
        else:
            question.is_over = question.values is not None
        return question.is_over

    def _notice_ends(self, asked: Collection[int]) -> None:
        """Close the connections that ended while nothing was asked; *asked* are the ids of the others."""
        for reads in self.reads.all:
            if reads.socket is not None and id(reads) not in asked:
                with suppress(CacheUnavailable):  # told by the reads' hooks
                    reads.receive()

    def _judge(self, question: _Question, found: PolledAnswers) -> bool:
        """Add the answer to *question* to *found*; False if there was none."""
        values, begin = question.values, 0
        if values is None:
            return False
        now_s = self.monotonic()
        for shard, places, users in question.shards:
            end = begin + KEYS_EACH * len(places)
            proof = self.proofs.each[shard]
            is_proven = proof.holds(values[end], question.generation, now_s)
            if not is_proven:
                self._refuted_at_s[shard] = proof.compared_at_s
            each = (iter(values[begin:end]),) * KEYS_EACH
            for place, (record, session, epoch, blacklist) in zip(
                places, zip(*each, strict=True), strict=True
            ):
                found.tokens[place] = IndexAnswer(record, session, epoch, blacklist, is_proven)
            begin = end + 1 + len(users)
            if users:
                found.users.update(zip(users, values[end + 1 : begin], strict=True))
        return True

    def _by_server(self, keys: Sequence[PolledKeys]) -> dict[str, list[_Asked]]:
        """The shards of *keys* that are worth asking about, by server, as a question has them."""
        by_server: dict[str, list[_Asked]] = {}
        for shard, places in self._by_shard(keys).items():
            name = self.owner_of(shard)
            if name is not None and self._is_proving(shard):
                users = [place for place in places if keys[place].user_key]
                by_server.setdefault(name, []).append(_Asked(shard, places, users))
        return by_server

    def _by_shard(self, keys: Sequence[PolledKeys]) -> Mapping[int, Sequence[int]]:
        """The places of *keys* by shard."""
        if len(self._markers) == 1:
            return {0: range(len(keys))}
        by_shard: dict[int, list[int]] = {}
        for place, asked in enumerate(keys):
            by_shard.setdefault(asked.shard, []).append(place)
        return by_shard

    def _mget(self, keys: Sequence[PolledKeys], asked: _Asked) -> bytes:
        shard, places, users = asked
        count = KEYS_EACH * len(places) + len(users) + 2
        tokens = b"".join([keys[place].keys for place in places])
        copies = b"".join([keys[place].user_key for place in users])
        return b"*%d\r\n$4\r\nMGET\r\n%b%b%b" % (count, tokens, self._markers[shard], copies)

    def _is_proving(self, shard: int) -> bool:
        return self.proofs.each[shard].compared_at_s != self._refuted_at_s[shard]

    def _is_trusted(self, generation: int) -> bool:
        return any(proof.trusts(generation) for proof in self.proofs.each)


def _bulk(text: str) -> bytes:
    """*text* as Redis reads it (RESP: a bulk string)."""
    data = text.encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)
