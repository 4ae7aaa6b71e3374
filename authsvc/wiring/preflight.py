"""What must be true before production starts: both stores answer, the schema fits, keys are there."""

from __future__ import annotations

import time
from collections.abc import Iterator

from authsvc.cache.breaker import CircuitBreaker
from authsvc.cache.client import CacheClient, Command
from authsvc.cache.errors import CacheError, CacheUnavailable, Reason
from authsvc.cache.keys import KeySpace
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.tokens.keys import KeyRefused
from authsvc.observability.tracing import is_installed
from authsvc.settings import Problem, Settings, TracingMode
from authsvc.store.key_folder import read_key
from authsvc.store.migrations import NEEDED_REVISION, current_revision
from authsvc.wiring.stores import open_database, open_pools


def problems(settings: Settings) -> tuple[Problem, ...]:
    """Everything that stands in the way of serving; connects, within a few seconds, and tells no secret."""
    return (*local_problems(settings), *_database(settings), *_redis(settings))


def local_problems(settings: Settings) -> tuple[Problem, ...]:
    """What is wrong with the signing keys, and what is asked for and not installed; connects to nothing."""
    return (*_keys(settings), *_tracing(settings))


def database_problems(settings: Settings) -> tuple[Problem, ...]:
    """What is wrong with the database: it cannot be reached, or its schema is not the one needed."""
    return tuple(_database(settings))


def _keys(settings: Settings) -> Iterator[Problem]:
    files = sorted(settings.tokens.keys_dir.glob("*.pem"))
    if not files:
        yield Problem(
            name="JWT_KEYS_DIR", message="holds no .pem file: make one with `authsvc keys generate`"
        )
    for file in files:
        try:
            read_key(file)
        except (KeyRefused, OSError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            yield Problem(name="JWT_KEYS_DIR", message=f"{file.name}: {cause}")


def _tracing(settings: Settings) -> Iterator[Problem]:
    if settings.tracing.mode is TracingMode.OTLP and not is_installed():
        yield Problem(name="TRACING", message="otlp needs OpenTelemetry: install requirements/otel.txt")


def _database(settings: Settings) -> Iterator[Problem]:
    database = open_database(settings)
    try:
        with database.read() as connection:
            revision = current_revision(connection)
    except StoreUnavailable as error:
        yield Problem(name="DATABASE_URL", message=f"cannot be reached ({error.store})")
        return
    finally:
        database.close()
    if revision != NEEDED_REVISION:
        have = f"revision {revision}" if revision else "no schema"
        yield Problem(
            name="DATABASE_URL",
            message=f"has {have}, revision {NEEDED_REVISION} is needed: run `authsvc db upgrade`",
        )


def _redis(settings: Settings) -> Iterator[Problem]:
    pool, _ = open_pools(settings.redis, size=1)
    client = CacheClient(pool, breaker=CircuitBreaker(clock=time.monotonic), clock=time.monotonic)
    name = _redis_name(settings)
    keys = KeySpace(settings.cache.key_prefix, settings.cache.key_version)
    try:
        yield from (Problem(name=name, message=message) for message in _redis_messages(client, keys))
    finally:
        client.close()


def _redis_name(settings: Settings) -> str:
    """The variable that Redis was named by."""
    if settings.redis.url:
        return "REDIS_URL"
    return "REDIS_SENTINELS" if settings.redis.sentinels else "REDIS_HOST"


def _redis_messages(client: CacheClient, keys: KeySpace) -> Iterator[str]:
    try:
        client.ping()
        policy = (client.info("memory") or {}).get("maxmemory_policy", "noeviction")
    except CacheError as error:
        yield f"cannot be used ({error})"
        return
    if policy != "noeviction":
        yield f"evicts keys (maxmemory-policy {policy}): revocations would be lost; set noeviction"
    if not _may_write(client, keys.key("preflight")):
        yield f"denies its user keys or scripts under {keys.root}: see its ACL"


def _may_write(client: CacheClient, key: str) -> bool:
    """False where an ACL is in the way; a server that is full or read-only for now is no wrong setting."""
    steps: list[Command] = [
        ("SET", key, "1", "PX", 1000),
        ("EVAL", "return redis.call('DEL', KEYS[1])", 1, key),
    ]
    try:
        client.pipeline(steps)
    except CacheUnavailable as error:
        return error.reason is not Reason.DENIED
    return True
