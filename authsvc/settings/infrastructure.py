"""
Settings of the infrastructure: ports, logs, traces, database, Redis, cache.  A setting is one field.

The field holds the variable's name, what it accepts, its default and its use.  The reader, the checks,
``authsvc config check`` and ``docs/settings.md`` walk these fields in the order of ``Settings``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from authsvc.settings import kinds, locations
from authsvc.settings.declaration import ReadSoFar, optional, setting
from authsvc.settings.development import DEVELOPMENT_DIR

if TYPE_CHECKING:
    from pathlib import Path

    from authsvc.settings.kinds import Secret
    from authsvc.settings.locations import Address, Network

DAY_S = 86_400
MIN_PRODUCTION_WORKERS = 2

_PLAIN = kinds.matching(r"[A-Za-z0-9._-]{1,64}", "1 to 64 of the characters `A-Z a-z 0-9 . _ -`")


class LogLevel(StrEnum):
    """The least severe record that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """For programs or for people."""

    JSON = "json"
    CONSOLE = "console"


class TracingMode(StrEnum):
    """Where spans go."""

    OFF = "off"
    OTLP = "otlp"


def _workers(known: ReadSoFar) -> int:
    return 1 if known.is_development else max(MIN_PRODUCTION_WORKERS, known.cpu_count)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Where the service listens, with how many worker processes, and which proxies it trusts."""

    title: ClassVar = "Service"

    host: str = setting(
        "HOST",
        locations.host(),
        "Address to listen on",
        default="0.0.0.0",  # noqa: S104 - a container listens on all of its own interfaces
        development="127.0.0.1",
    )
    port: int = setting("PORT", kinds.port(), "Public port", default="8080")
    metrics_port: int = setting(
        "METRICS_PORT", kinds.port(), "Port of `/metrics`; never the public one", default="9464"
    )
    workers: int = setting(
        "WEB_CONCURRENCY",
        kinds.whole(1, 256),
        "Worker processes; on a shared node, set it to the CPUs that the service may use",
        otherwise="the number of CPUs, at least 2 (development: 1)",
        computed=_workers,
    )
    trusted_proxies: tuple[Network, ...] = setting(
        "TRUSTED_PROXIES",
        locations.networks(),
        "Proxies whose `X-Forwarded-For` is believed, walked from the right; without any it is ignored",
        default="",
    )
    cors_origins: tuple[str, ...] = setting(
        "CORS_ORIGINS",
        locations.origins(),
        "Origins whose pages may call, compared letter by letter; `/.well-known/` is open to all",
        default="",
    )
    figures_dir: Path | None = optional(
        "PROMETHEUS_MULTIPROC_DIR",
        locations.absolute("directory"),
        "Folder of the workers' metrics, best in memory; those of an earlier run are removed at start",
        otherwise="a folder of its own in `/dev/shm` or `/tmp`",
    )
    api_docs: bool = setting("API_DOCS", kinds.switch(), "Serve `/openapi.json` and `/docs`", default="on")
    check_lane: bool = setting(
        "CHECK_LANE",
        kinds.switch(),
        "Answer token checks and `GET /v1/me` in the main loop of each worker; off: in threads",
        default="on",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What is logged, and in which shape."""

    title: ClassVar = "Logs"

    level: LogLevel = setting(
        "LOG_LEVEL", kinds.choice(LogLevel), "The least severe record that is written", default="info"
    )
    format: LogFormat = setting(
        "LOG_FORMAT", kinds.choice(LogFormat), "Shape of the log", default="json", development="console"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingSettings:
    """Whether spans are made, and of how many of the requests that begin a trace here."""

    title: ClassVar = "Traces"

    mode: TracingMode = setting(
        "TRACING",
        kinds.choice(TracingMode),
        "Spans for OpenTelemetry: `otlp` sends them where `OTEL_EXPORTER_OTLP_ENDPOINT` says (extra `otel`)",
        default="off",
    )
    sample_percent: int = setting(
        "TRACING_SAMPLE_PERCENT",
        kinds.whole(0, 100),
        "Of the requests whose caller has not decided it, how many are traced",
        default="100",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    """The database, which is authoritative."""

    title: ClassVar = "Database"

    url: Secret = setting(
        "DATABASE_URL",
        locations.database_url(),
        "The database that holds the truth; SQLite in development alone",
        is_required=True,
        development=f"sqlite:///{DEVELOPMENT_DIR}/dev.sqlite3",
    )

    @property
    def is_sqlite(self) -> bool:
        """True for the embedded database of development."""
        return self.url.reveal().startswith("sqlite:")


def _none(_: ReadSoFar) -> tuple[Address, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """Redis: by ``url``, by ``host``, by ``sentinels``, by ``cluster_nodes``, or in memory."""

    title: ClassVar = "Redis"

    url: Secret | None = optional(
        "REDIS_URL",
        locations.redis_url(),
        "The Redis server, in one variable instead of six",
        otherwise="this or `REDIS_HOST` is required; development: in memory",
    )
    host: str | None = optional(
        "REDIS_HOST", locations.host(), "The Redis server", otherwise="see `REDIS_URL`"
    )
    port: int = setting("REDIS_PORT", kinds.port(), "Its port", default="6379")
    username: str | None = optional("REDIS_USERNAME", kinds.printable(), "Its ACL user")
    password: Secret | None = optional("REDIS_PASSWORD", kinds.hidden("a password"), "That user's password")
    db: int = setting("REDIS_DB", kinds.whole(0, 9_999), "Database number", default="0")
    is_tls: bool = setting("REDIS_TLS", kinds.switch(), "Connect with TLS", default="false")
    ca_file: Path | None = optional(
        "REDIS_CA_FILE",
        locations.absolute("file"),
        "PEM file of the CAs that TLS to Redis and Sentinels believes, in place of the system's",
    )
    protocol: int = setting(
        "REDIS_PROTOCOL",
        kinds.whole(2, 3),
        "RESP version; 2 for servers and proxies that do not know `HELLO`",
        default="3",
    )
    sentinels: tuple[Address, ...] = setting(
        "REDIS_SENTINELS", locations.addresses(), "Sentinels to ask for the primary", computed=_none
    )
    sentinel_service: str | None = optional("REDIS_SENTINEL_SERVICE", _PLAIN, "The primary's name")
    sentinel_username: str | None = optional(
        "REDIS_SENTINEL_USERNAME", kinds.printable(), "ACL user of the Sentinels themselves"
    )
    sentinel_password: Secret | None = optional(
        "REDIS_SENTINEL_PASSWORD", kinds.hidden("a password"), "Password of the Sentinels themselves"
    )
    is_cluster: bool = setting(
        "REDIS_CLUSTER_ENABLED", kinds.switch(), "The server is a Redis Cluster", default="false"
    )
    cluster_nodes: tuple[Address, ...] = setting(
        "REDIS_CLUSTER_NODES",
        locations.addresses(),
        "Nodes to start from; `REDIS_USERNAME`, `REDIS_PASSWORD`, `REDIS_TLS` are for all of them",
        computed=_none,
    )
    #: How long after the last comparison with SQL Redis is trusted (seconds).
    max_staleness_s: int = setting(
        "REVOCATION_MAX_STALENESS",
        kinds.whole(1, DAY_S),
        "Seconds for which Redis is trusted while the database is unreachable:"
        " the worst case of a revocation under a partition",
        default="300",
    )

    @property
    def has_tls(self) -> bool:
        """True if the connection is encrypted."""
        return self.url.reveal().startswith("rediss://") if self.url else self.is_tls

    @property
    def is_in_memory(self) -> bool:
        """True if no server is named, which only development allows."""
        return not (self.url or self.host or self.sentinels or self.cluster_nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Keys, lifetimes, breaker and locks of the cache; ``is_enabled`` is about user data alone."""

    title: ClassVar = "Cache"

    ttl_s: int = setting(
        "REDIS_CACHE_TTL", kinds.whole(1, 30 * DAY_S), "Seconds a user stays cached", default="3600"
    )
    is_enabled: bool = setting(
        "CACHE_ENABLED", kinds.switch(), "Cache user data; token checks do not depend on it", default="true"
    )
    is_warmup_enabled: bool = setting(
        "CACHE_WARMUP_ENABLED", kinds.switch(), "Run the warmers at start", default="true"
    )
    list_ttl_s: int = setting(
        "CACHE_LIST_TTL", kinds.whole(1, DAY_S), "Seconds a page of the admin list stays", default="300"
    )
    key_prefix: str = setting("CACHE_KEY_PREFIX", _PLAIN, "First part of every Redis key", default="authsvc")
    key_version: str = setting("CACHE_KEY_VERSION", _PLAIN, "Second part of every Redis key", default="v1")
    max_key_length: int = setting(
        "CACHE_MAX_KEY_LENGTH",
        kinds.whole(64, 4_096),
        "Characters of a key; a part that would exceed it becomes its SHA-256",
        default="250",
    )
    batch_size: int = setting(
        "CACHE_BATCH_SIZE", kinds.whole(1, 10_000), "Keys per step of a bulk operation", default="100"
    )
    breaker_failure_threshold: int = setting(
        "CACHE_CB_FAILURE_THRESHOLD",
        kinds.whole(1, 1_000),
        "Failures within the monitoring period that open the circuit breaker",
        default="5",
    )
    breaker_recovery_ms: int = setting(
        "CACHE_CB_RECOVERY_TIMEOUT",
        kinds.whole(1, 600_000),
        "Milliseconds that it stays open",
        default="2000",
    )
    breaker_monitoring_ms: int = setting(
        "CACHE_CB_MONITORING_PERIOD",
        kinds.whole(1, 3_600_000),
        "Milliseconds over which failures are counted",
        default="10000",
    )
    breaker_half_open_max_calls: int = setting(
        "CACHE_CB_HALF_OPEN_MAX_CALLS",
        kinds.whole(1, 100),
        "Calls that may probe a half-open breaker at once",
        default="3",
    )
    lock_ttl_s: int = setting(
        "CACHE_LOCK_DEFAULT_TTL", kinds.whole(1, 3_600), "Seconds until a lock expires", default="30"
    )
    lock_retry_delay_ms: int = setting(
        "CACHE_LOCK_RETRY_DELAY",
        kinds.whole(1, 60_000),
        "Milliseconds between attempts to take a lock",
        default="100",
    )
    lock_max_retries: int = setting(
        "CACHE_LOCK_MAX_RETRIES", kinds.whole(0, 1_000), "Further attempts to take a lock", default="3"
    )
