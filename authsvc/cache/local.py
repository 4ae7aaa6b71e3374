"""
A local cache in the process, in front of the one in Redis; for a few seconds, and only for display.

Invalidations are published to the other processes over a channel under the key prefix.  Nothing is cached
without a subscription, and everything is dropped when it ends: by a lost connection, or by a PING without an
answer (:data:`DEAF_AFTER_S`).  A record stays for seconds at
most.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar, cast

from redis.client import PubSub
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as DriverTimeoutError

from authsvc.cache.aside import Aside
from authsvc.cache.entry import MISSING, Missing
from authsvc.cache.keys import KeySpace
from authsvc.cache.redis.client import Command
from authsvc.cache.redis.connections import Pool

T = TypeVar("T")
#: A subscriber waits this long for a message, then checks whether it should stop, in seconds.
_WAIT_S: Final = 0.2
#: Pause before the next attempt to subscribe, in seconds.
_REST_S: Final = 0.5
#: After this many seconds without a message, a PING is sent every second.
_ASK_AFTER_S: Final = 1.0
#: A subscription without any message for this long (seconds) counts as broken.
DEAF_AFTER_S: Final = 2.5
_STRIPES: Final = 256


class _Subscription(PubSub):
    """The driver's subscription without its automatic reconnect, which would hide missed messages."""

    def _reconnect(self, conn: Any, error: Exception | None = None, *_: object) -> None:  # noqa: ANN401
        conn.disconnect()
        raise error or DriverConnectionError("the connection of the subscription has ended")


class Invalidations:
    """
    Notifies this process of invalidations by others; one per process, made after the fork.

    *pool* is its own, with a single connection, which the subscription occupies.
    """

    def __init__(self, pool: Pool, keys: KeySpace) -> None:
        self.channel = keys.channel
        self._pool = pool
        self._hearing: list[Callable[[str | None], None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cache-invalidations", daemon=True)
        #: Set while messages are being received.
        self.is_listening = threading.Event()

    def hear(self, on_dropped: Callable[[str | None], None]) -> None:
        """Call *on_dropped* with each dropped key, and with None if any key may have been dropped."""
        self._hearing.append(on_dropped)

    def commands(self, keys: Iterable[str]) -> list[Command]:
        """Return the commands that notify all processes; send them after those that drop the keys."""
        return [("PUBLISH", self.channel, key) for key in keys]

    def start(self) -> None:
        """Start to listen, on its own thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._pool.disconnect()

    def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(RedisError):  # the next round subscribes again
                self._listen()
            self.is_listening.clear()
            self._tell(None)
            self._stop.wait(_REST_S)

    def _listen(self) -> None:
        subscription = _Subscription(self._pool)
        try:
            subscription.subscribe(self.channel)
            self._receive(subscription)
        finally:
            subscription.close()

    def _receive(self, subscription: _Subscription) -> None:
        heard_at_s = asked_at_s = time.monotonic()
        while not self._stop.is_set():
            cast("Any", subscription.connection).finish_within(DEAF_AFTER_S)
            message = subscription.get_message(timeout=_WAIT_S)
            now_s = time.monotonic()
            if message is not None:
                heard_at_s = now_s
                self._take(cast("dict[str, object]", message))
            elif now_s - heard_at_s > DEAF_AFTER_S:
                raise DriverTimeoutError("the subscription is silent")
            elif now_s - max(heard_at_s, asked_at_s) > _ASK_AFTER_S:
                asked_at_s = now_s
                subscription.ping()

    def _take(self, message: dict[str, object]) -> None:
        if message["type"] == "subscribe":
            self._tell(None)
            self.is_listening.set()
        elif message["type"] == "message":
            self._tell(cast("bytes", message["data"]).decode(errors="replace"))

    def _tell(self, key: str | None) -> None:
        for on_dropped in self._hearing:
            on_dropped(key)


class Near(Generic[T]):
    """
    At most *max_entries* records of *aside* in this process, each for *ttl_s* seconds by *clock*.

    Raises ValueError for an *aside* whose records are not marked for display.
    """

    def __init__(
        self,
        aside: Aside[T],
        invalidations: Invalidations,
        *,
        ttl_s: float,
        max_entries: int,
        clock: Callable[[], float],
    ) -> None:
        if aside.records.display is None:
            raise ValueError("only what may be displayed stale is kept in the process")
        self._aside = aside
        self._invalidations = invalidations
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[T, float]] = OrderedDict()
        # Counts drops, to detect one during a read. One counter for all keys is enough.
        self._drops = [0] * _STRIPES
        invalidations.hear(self.forget)

    def get_or_load(self, ident: str, loader: Callable[[str], T | Missing]) -> T | Missing:
        """Return *ident* from this process, else from Redis, else from *loader*; see Aside.get_or_load."""
        key = self._aside.space.key(ident)
        stripe = hash(key) % _STRIPES
        with self._lock:
            kept, drops = self._kept(key), self._drops[stripe]
        if not isinstance(kept, Missing):
            self._aside.events.on_lookup(self._aside.space.name, "hit")
            return kept
        value = self._aside.get_or_load(ident, loader)
        if not isinstance(value, Missing):
            self._keep(key, value, stripe, drops)
        return value

    def drop(self, idents: Iterable[str]) -> None:
        """Invalidate *idents* here, in Redis and in the other processes; raises CacheUnavailable."""
        wanted = list(idents)
        commands = self.drop_commands(wanted)
        try:
            self._aside.client.pipeline(commands)
        finally:
            for ident in wanted:
                self.forget(self._aside.space.key(ident))

    def drop_commands(self, idents: Iterable[str]) -> list[Command]:
        """Return the commands of :meth:`drop`; this process is notified like the others."""
        wanted = list(idents)
        told = self._invalidations.commands(self._aside.space.key(ident) for ident in wanted)
        return [*self._aside.drop_commands(wanted), *told]

    def forget(self, key: str | None) -> None:
        """Forget the record under *key*; None: all."""
        with self._lock:
            if key is None:
                self._entries.clear()
                self._drops = [number + 1 for number in self._drops]
            else:
                self._entries.pop(key, None)
                self._drops[hash(key) % _STRIPES] += 1

    def __len__(self) -> int:
        """Return the number of cached records."""
        return len(self._entries)

    def _kept(self, key: str) -> T | Missing:
        kept = self._entries.get(key)
        if kept is None:
            return MISSING
        value, until_s = kept
        if self._clock() >= until_s:
            del self._entries[key]
            return MISSING
        self._entries.move_to_end(key)
        return value

    def _keep(self, key: str, value: T, stripe: int, drops: int) -> None:
        with self._lock:
            if self._drops[stripe] != drops or not self._invalidations.is_listening.is_set():
                return
            self._entries[key] = (value, self._clock() + self._ttl_s)
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
