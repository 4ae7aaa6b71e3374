"""The fast copy for an event loop: many tokens with one read, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from authsvc.cache.breaker import State
from authsvc.cache.errors import CacheUnavailable
from authsvc.cache.redis.client import CacheClient
from authsvc.cache.redis.polled import PolledReads
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import IndexAnswer, Proof, TokenKeys
from authsvc.domain.values.clocks import Monotonic
from authsvc.store.copies.index import IndexKeys

#: Keys that belong to one token.
KEYS_EACH = 4


@dataclass(slots=True, kw_only=True)
class PolledIndex:
    """
    Reads what :class:`~authsvc.store.copies.index.RedisIndex` reads, over a connection of its own.

    It is open while that connection existed at the last comparison, and shut after an answer without proof
    until there is another comparison.  While the breaker of *client* is not closed it is shut, too: by the
    calls of others the breaker finds out that Redis is back.
    """

    reads: PolledReads
    client: CacheClient
    key_names: IndexKeys
    proof: Proof
    monotonic: Monotonic
    _marker: bytes = field(init=False)
    #: The comparison whose proof did not hold; what it proved is not asked again.
    _refuted_at_s: float = field(default=-1.0, init=False)

    def __post_init__(self) -> None:
        self._marker = _bulk(self.key_names.marker)

    def is_open(self) -> bool:
        """True if it makes sense to ask."""
        is_proving = self.proof.compared_at_s != self._refuted_at_s
        return self.reads.adopt(self.proof.trusts) and is_proving and self.client.state is State.CLOSED

    def keys_of(self, token: TokenKeys) -> bytes:
        """The names of the keys of *token*, as they are sent."""
        return b"".join(map(_bulk, self.key_names.of(token)))

    def ask(self, keys: Sequence[bytes]) -> None:
        """Begin to read *keys*, those of the marker behind them; raises StoreUnavailable."""
        count = KEYS_EACH * len(keys) + 1
        request = b"*%d\r\n$4\r\nMGET\r\n%b%b" % (count + 1, b"".join(keys), self._marker)
        try:
            self.reads.send(request, count)
        except CacheUnavailable as error:
            raise StoreUnavailable(f"redis: {error.reason}") from error

    def answers(self) -> list[IndexAnswer] | None:
        """One for each token, None while they are not there; raises StoreUnavailable."""
        try:
            values = self.reads.receive()
        except CacheUnavailable as error:
            raise StoreUnavailable(f"redis: {error.reason}") from error
        if values is None:
            return None
        marker, now_s = values[-1], self.monotonic()
        is_proven = self.proof.holds(marker, self.reads.generation, now_s)
        if not is_proven:
            self._refuted_at_s = self.proof.compared_at_s
        each = (iter(values[:-1]),) * KEYS_EACH
        return [
            IndexAnswer(record, session, epoch, blacklist, is_proven)
            for record, session, epoch, blacklist in zip(*each, strict=True)
        ]


def _bulk(text: str) -> bytes:
    """*text* as Redis reads it (RESP: a bulk string)."""
    data = text.encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)
