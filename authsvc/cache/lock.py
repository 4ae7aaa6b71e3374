"""
Locks across processes: they save work, and nothing may be wrong when one of them is lost.

The lock itself is redis-py's: its owner-checked scripts for release and extend, its unconditional time to
live.  It gets an adapter in place of a ``Redis`` object, which sends its commands through this library's
client: breaker, deadlines and errors are the same as everywhere.  Scripts are sent as text, because a loaded
script is lost in a failover.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock as ThreadLock

from redis.exceptions import LockError
from redis.lock import Lock as RedisLock

from authsvc.cache.errors import CacheUnavailable
from authsvc.cache.events import ignore
from authsvc.cache.keys import KeySpace
from authsvc.cache.redis.client import CacheClient, Script
from authsvc.cache.redis.connections import Argument, Reply


@dataclass(frozen=True, slots=True)
class Held:
    """A lock that was got; it ends by itself after its time to live."""

    name: str
    _lock: RedisLock
    _ttl_s: float

    def renew(self) -> bool:
        """Let it live as long again as at first; False if it was lost.  Raises CacheUnavailable."""
        return self.extend(self._ttl_s)

    def extend(self, ttl_s: float) -> bool:
        """Let it live *ttl_s* seconds from now; False if it was lost.  Raises CacheUnavailable."""
        try:
            return self._lock.extend(ttl_s, replace_ttl=True)
        except LockError:
            return False

    def is_owned(self) -> bool:
        """Return whether it is still ours.  Raises CacheUnavailable."""
        return bool(self._lock.owned())

    def release(self) -> bool:
        """Give it back; False if it was lost before.  Raises CacheUnavailable."""
        try:
            self._lock.release()
        except LockError:
            return False
        return True


class Locks:
    """
    Locks ``lock:<name>`` of *keys*.

    A lock lives *ttl_s* seconds; who does not get it asks again at most *max_retries* times, *retry_delay_s*
    seconds apart.  ``active`` is the number that this process holds.
    """

    def __init__(
        self,
        client: CacheClient,
        keys: KeySpace,
        *,
        ttl_s: float = 30,
        retry_delay_s: float = 0.1,
        max_retries: int = 3,
        on_active: Callable[[int], None] = ignore,
    ) -> None:
        self.active = 0
        self._commands = _Commands(client)
        self._keys = keys
        self._ttl_s = ttl_s
        self._retry_delay_s = retry_delay_s
        self._max_retries = max_retries
        self._on_active = on_active
        self._counting = ThreadLock()

    def acquire(self, name: str, *, ttl_s: float | None = None, waits: bool = True) -> Held | None:
        """Return the lock, or None if others kept it; raises CacheUnavailable."""
        life_s = self._ttl_s if ttl_s is None else ttl_s
        lock = _Lock(
            self._commands,
            self._keys.key("lock", name),
            timeout=life_s,
            sleep=self._retry_delay_s,
            # Half a delay more, so that a small delay does not cost the last try.
            blocking_timeout=self._retry_delay_s * (self._max_retries + 0.5),
            thread_local=False,
        )
        is_ours = lock.acquire(blocking=waits and self._max_retries > 0)
        return Held(name, lock, life_s) if is_ours else None

    @contextmanager
    def holding(self, name: str, *, ttl_s: float | None = None, waits: bool = True) -> Iterator[Held | None]:
        """Hold the lock for a while, or None; what cannot be given back ends by itself."""
        held = self.acquire(name, ttl_s=ttl_s, waits=waits)
        if held is None:
            yield None
            return
        self._count(1)
        try:
            yield held
        finally:
            self._count(-1)
            with suppress(CacheUnavailable):  # counted by the client; the lock's own life bounds the harm
                held.release()

    def _count(self, by: int) -> None:
        with self._counting:
            self.active += by
            active = self.active
        self._on_active(active)


class _Lock(RedisLock):
    """Keeps its scripts apart from those of redis-py's own clients in the same process."""

    lua_release = None
    lua_extend = None
    lua_reacquire = None


class _Commands:
    """What redis-py's Lock uses of a ``Redis`` object."""

    def __init__(self, client: CacheClient) -> None:
        self._client = client

    def set(self, name: str, value: Argument, *, nx: bool, px: int) -> bool:
        """Set *name* for *px* milliseconds."""
        only_free = ("NX",) if nx else ()
        return self._client.call("SET", name, value, *only_free, "PX", px) is not None

    def get(self, name: str) -> Reply:
        """Return the value of *name*."""
        return self._client.call("GET", name)

    def register_script(self, text: str) -> _Registered:
        """Return the script as the Lock calls it."""
        return _Registered(Script(text))

    def run_script(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Reply:
        """Run *script* here."""
        return self._client.call(*script.command(keys, args))


@dataclass(frozen=True, slots=True)
class _Registered:
    """A script that redis-py's Lock keeps on its class; each call brings the client it is meant for."""

    script: Script

    def __call__(self, *, keys: Sequence[str], args: Sequence[Argument], client: _Commands) -> Reply:
        return client.run_script(self.script, keys, args)
