"""
Monitoring: counts of this process, and state of the Redis servers.

It exports no metrics: callers show the values below. A figure that the server denies (INFO, by an ACL) or
lacks is None; this does not affect the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final, cast

from authsvc.cache.breaker import State
from authsvc.cache.errors import CacheError, CacheUnavailable
from authsvc.cache.events import CacheEvents
from authsvc.cache.filling.records import SERVED
from authsvc.cache.redis.client import CacheClient, each_server

#: Counts are kept in slices of this many seconds, for the longest window.
SLICE_S: Final = 5
WINDOWS_S: Final = (60, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts of this process since its start; ratios between 0 and 1, None without any lookup."""

    hits: int
    misses: int
    hit_ratio: float | None
    hit_ratio_1m: float | None
    hit_ratio_5m: float | None
    operations: int
    errors: int
    average_latency_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether Redis answers now, and how fast; *reason* is set if it does not."""

    is_connected: bool
    latency_ms: float | None
    breaker: State
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of one server; sizes in bytes, None if it does not report them."""

    used_bytes: int | None
    peak_bytes: int | None
    limit_bytes: int | None
    fragmentation_ratio: float | None
    policy: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyspace:
    """Keys of the whole database, including those of other services; counted by the server without a scan."""

    key_count: int | None
    expiring_count: int | None
    average_ttl_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All figures; *memory* has one item for each server."""

    health: Health
    stats: Stats
    memory: tuple[Memory, ...]
    keyspace: Keyspace


class Meter:
    """Counts the events of a client; *clock* is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = Lock()
        self._hits = self._misses = self._operations = self._errors = 0
        self._took_s = 0.0
        self._slices: deque[tuple[int, int, int]] = deque(maxlen=max(WINDOWS_S) // SLICE_S + 1)

    def events(self) -> CacheEvents:
        """Return callbacks that count here."""
        return CacheEvents(on_operation=self._operation, on_lookup=self._lookup)

    def stats(self) -> Stats:
        """Return all counts as of now."""
        with self._lock:
            minute, five = (self._ratio_within(window_s) for window_s in WINDOWS_S)
            return Stats(
                hits=self._hits,
                misses=self._misses,
                hit_ratio=_ratio(self._hits, self._misses),
                hit_ratio_1m=minute,
                hit_ratio_5m=five,
                operations=self._operations,
                errors=self._errors,
                average_latency_ms=self._took_s * 1000 / self._operations if self._operations else None,
            )

    def _operation(self, _name: str, seconds: float, outcome: str) -> None:
        with self._lock:
            self._operations += 1
            self._took_s += seconds
            self._errors += outcome != "ok"

    def _lookup(self, _space: str, outcome: str) -> None:
        is_hit = outcome in SERVED
        number = int(self._clock() // SLICE_S)
        with self._lock:
            self._hits += is_hit
            self._misses += not is_hit
            last = self._slices[-1] if self._slices else None
            if last is None or last[0] != number:
                self._slices.append((number, int(is_hit), int(not is_hit)))
            else:
                self._slices[-1] = (number, last[1] + is_hit, last[2] + (not is_hit))

    def _ratio_within(self, window_s: int) -> float | None:
        oldest = self._clock() // SLICE_S - window_s // SLICE_S
        recent = [one for one in self._slices if one[0] > oldest]
        return _ratio(sum(one[1] for one in recent), sum(one[2] for one in recent))


class Monitor:
    """Asks the servers behind *client*; *clock* is monotonic, in seconds."""

    def __init__(self, client: CacheClient, meter: Meter, clock: Callable[[], float]) -> None:
        self._client = client
        self._meter = meter
        self._clock = clock

    def health(self) -> Health:
        """Ping; never raises."""
        started_s = self._clock()
        try:
            for server in each_server(self._client):
                server.ping()
        except CacheError as error:
            reason = error.reason.value if isinstance(error, CacheUnavailable) else "misuse"
            return Health(is_connected=False, latency_ms=None, breaker=self._client.state, reason=reason)
        took_ms = (self._clock() - started_s) * 1000
        return Health(is_connected=True, latency_ms=took_ms, breaker=self._client.state)

    def memory(self) -> tuple[Memory, ...]:
        """Ask each server; raises CacheUnavailable."""
        return tuple(_memory(server.info("memory") or {}) for server in each_server(self._client))

    def keyspace(self) -> Keyspace:
        """Count the keys of all servers; raises CacheUnavailable."""
        servers = each_server(self._client)
        databases = [_database(server) for server in servers]
        return Keyspace(
            key_count=_sum([_key_count(server) for server in servers]),
            expiring_count=_sum([_whole(fields.get("expires")) for fields in databases]),
            average_ttl_s=_average_ttl_s(databases),
        )

    def key_count(self) -> int | None:
        """Number of keys on all servers; None if one is away or does not report it."""
        try:
            return _sum([_key_count(server) for server in each_server(self._client)])
        except CacheError:
            return None

    def snapshot(self) -> Snapshot:
        """Return all figures; None for those that an outage hides."""
        health = self.health()
        nothing = Keyspace(key_count=None, expiring_count=None, average_ttl_s=None)
        try:
            memory, keyspace = self.memory(), self.keyspace()
        except CacheUnavailable:
            memory, keyspace = (), nothing
        return Snapshot(health=health, stats=self._meter.stats(), memory=memory, keyspace=keyspace)


def joined(*listeners: CacheEvents) -> CacheEvents:
    """Return events that call all *listeners*, in order."""

    def operation(name: str, seconds: float, outcome: str) -> None:
        for listener in listeners:
            listener.on_operation(name, seconds, outcome)

    def lookup(space: str, outcome: str) -> None:
        for listener in listeners:
            listener.on_lookup(space, outcome)

    def fill(space: str, outcome: str) -> None:
        for listener in listeners:
            listener.on_fill(space, outcome)

    return CacheEvents(on_operation=operation, on_lookup=lookup, on_fill=fill)


def _memory(fields: dict[str, str]) -> Memory:
    return Memory(
        used_bytes=_whole(fields.get("used_memory")),
        peak_bytes=_whole(fields.get("used_memory_peak")),
        limit_bytes=_whole(fields.get("maxmemory")),
        fragmentation_ratio=_fraction(fields.get("mem_fragmentation_ratio")),
        policy=fields.get("maxmemory_policy"),
    )


def _key_count(server: CacheClient) -> int | None:
    try:
        return cast("int", server.call("DBSIZE"))
    except CacheUnavailable as error:
        if error.reason == "denied":
            return None
        raise


def _database(server: CacheClient) -> dict[str, str]:
    """Return the fields of ``dbN:keys=…,expires=…,avg_ttl=…``, of all databases the first with keys."""
    for value in (server.info("keyspace") or {}).values():
        return dict(field.split("=", 1) for field in value.split(",") if "=" in field)
    return {}


def _average_ttl_s(databases: list[dict[str, str]]) -> float | None:
    lives = [life for fields in databases if (life := _whole(fields.get("avg_ttl"))) is not None]
    return sum(lives) / len(lives) / 1000 if lives else None


def _sum(numbers: list[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _ratio(hits: int, misses: int) -> float | None:
    return hits / (hits + misses) if hits + misses else None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _fraction(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
