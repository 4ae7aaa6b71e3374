"""
Locks across processes, to avoid double work. Correctness must not depend on them: a lock can be lost.

The lock itself is redis-py's: its owner-checked scripts for release and extend, its unconditional time to
live.  An adapter in place of its ``Redis`` object sends its commands through this library's client: breaker,
deadlines and errors are the same as everywhere.  Scripts are sent as text, because a loaded
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
    """An acquired lock; it expires after its time to live."""

    name: str
    _lock: RedisLock
    _ttl_s: float

    def renew(self) -> bool:
        """Restart its time to live; False if it was lost.  Raises CacheUnavailable."""
        return self.extend(self._ttl_s)

    def extend(self, ttl_s: float) -> bool:
        """Let it live *ttl_s* seconds from now; False if it was lost.  Raises CacheUnavailable."""
        try:
            return self._lock.extend(ttl_s, replace_ttl=True)
        except LockError:
            return False

    def is_owned(self) -> bool:
        """Return whether this holder still has it.  Raises CacheUnavailable."""
        return bool(self._lock.owned())

    def release(self) -> bool:
        """Release it; False if it was lost before.  Raises CacheUnavailable."""
        try:
            self._lock.release()
        except LockError:
            return False
        return True


class Locks:
    """
    Locks ``lock:<name>`` of *keys*.

    A lock lives *ttl_s* seconds. A caller retries at most *max_retries* times, every *retry_delay_s* seconds.
    ``active`` is the number of locks that this process holds.
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
        """Return the lock, or None if another holder kept it; raises CacheUnavailable."""
        life_s = self._ttl_s if ttl_s is None else ttl_s
        lock = _Lock(
            self._commands,
            self._keys.key("lock", name),
            timeout=life_s,
            sleep=self._retry_delay_s,
            # Add half a delay, so that a short pause does not prevent the last attempt.
            blocking_timeout=self._retry_delay_s * (self._max_retries + 0.5),
            thread_local=False,
        )
        is_ours = lock.acquire(blocking=waits and self._max_retries > 0)
        return Held(name, lock, life_s) if is_ours else None

    @contextmanager
    def holding(self, name: str, *, ttl_s: float | None = None, waits: bool = True) -> Iterator[Held | None]:
        """
        Hold the lock within the block; yields None if it is taken. A lock that cannot be released expires.
        """
        held = self.acquire(name, ttl_s=ttl_s, waits=waits)
        if held is None:
            yield None
            return
        self._count(1)
        try:
            yield held
        finally:
            self._count(-1)
            with suppress(CacheUnavailable):  # the client counts the error; the lock expires by itself
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
    """The part of a ``Redis`` object that redis-py's Lock uses."""

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
    """A script that redis-py's Lock stores on its class; each call passes its client."""

    script: Script

    def __call__(self, *, keys: Sequence[str], args: Sequence[Argument], client: _Commands) -> Reply:
        return client.run_script(self.script, keys, args)
