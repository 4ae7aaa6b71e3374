"""The settings by subject, each value in the unit that its name ends in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from authsvc.settings.kinds import LimitSetting, Secret
    from authsvc.settings.locations import Address, Network


class Environment(StrEnum):
    """Production refuses what development replaces by something embedded."""

    PRODUCTION = "production"
    DEVELOPMENT = "development"


class LogLevel(StrEnum):
    """The least severe record that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """For machines or for eyes."""

    JSON = "json"
    CONSOLE = "console"


class TracingMode(StrEnum):
    """Where spans go."""

    OFF = "off"
    OTLP = "otlp"


class RedisProtocol(Enum):
    """RESP 2 for servers and proxies that do not know ``HELLO``."""

    RESP2 = 2
    RESP3 = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Where the service listens, with how many worker processes, and whose word it takes."""

    host: str
    port: int
    metrics_port: int
    workers: int
    #: Hops whose ``X-Forwarded-For`` entry is believed; empty: the header is ignored.
    trusted_proxies: tuple[Network, ...]
    api_docs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    """The truth."""

    url: Secret

    @property
    def is_sqlite(self) -> bool:
        """True for the embedded database of development."""
        return self.url.reveal().startswith("sqlite:")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """The fast copy: by ``url``, by ``host``, by ``sentinels``, by ``cluster_nodes``, or in memory."""

    url: Secret | None
    host: str | None
    port: int
    username: str | None
    password: Secret | None
    db: int
    is_tls: bool
    sentinels: tuple[Address, ...]
    sentinel_service: str | None
    sentinel_password: Secret | None
    is_cluster: bool
    cluster_nodes: tuple[Address, ...]
    protocol: int

    @property
    def is_in_memory(self) -> bool:
        """True where no server is named: development alone."""
        return not (self.url or self.host or self.sentinels or self.cluster_nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Keys, lifetimes, breaker and locks of the cache; ``is_enabled`` is about user data alone."""

    is_enabled: bool
    is_warmup_enabled: bool
    ttl_s: int
    list_ttl_s: int
    stale_ttl_s: int
    key_prefix: str
    key_version: str
    max_key_length: int
    batch_size: int
    breaker_failure_threshold: int
    breaker_recovery_ms: int
    breaker_monitoring_ms: int
    breaker_half_open_max_calls: int
    lock_ttl_s: int
    lock_retry_delay_ms: int
    lock_max_retries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """Access tokens, and the secret under refresh tokens (None in development without one)."""

    issuer: str
    audience: str
    keys_dir: Path
    access_ttl_s: int
    secret: Secret | None
    leeway_s: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordSettings:
    """Policy and cost; ``pepper`` is None in development without one."""

    pepper: Secret | None
    min_length: int
    #: log2 of bcrypt's rounds.
    bcrypt_cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How long and how many; within ``refresh_grace_s`` the parent yields the same successor."""

    idle_ttl_s: int
    max_ttl_s: int
    max_per_user: int
    refresh_grace_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Attempts per window by rule; None is ``off``."""

    login_ip: LimitSetting | None
    login_account: LimitSetting | None
    login_device: LimitSetting | None
    register_ip: LimitSetting | None
    refresh: LimitSetting | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What is logged, and in which shape."""

    level: LogLevel
    format: LogFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingSettings:
    """Whether spans are made, and of how many of the requests that begin a trace here."""

    mode: TracingMode
    sample_percent: int
