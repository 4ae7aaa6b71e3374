"""
Every setting, declared once: its field holds the variable's name, what it accepts, its default and its use.

The reader, the checks, ``authsvc config check`` and ``docs/settings.md`` walk these fields, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, cast

from authsvc.settings import kinds, locations
from authsvc.settings.declaration import ReadSoFar, optional, setting
from authsvc.settings.development import DEVELOPMENT_DIR

if TYPE_CHECKING:
    from pathlib import Path

    from authsvc.settings.kinds import LimitSetting, Secret
    from authsvc.settings.locations import Address, Network

DAY_S = 86_400
YEAR_S = 365 * DAY_S
MIN_PRODUCTION_WORKERS = 2
MIN_SECRET_BYTES = 32

_PLAIN = kinds.matching(r"[A-Za-z0-9._-]{1,64}", "1 to 64 of the characters `A-Z a-z 0-9 . _ -`")
_PRINTABLE = kinds.matching(r"[!-~]{1,256}", "1 to 256 printable ASCII characters without spaces")
_STRONG = kinds.hidden(f"at least {MIN_SECRET_BYTES} random bytes, as from `openssl rand -base64 48`")


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


class MailTransport(StrEnum):
    """Where mails go."""

    OFF = "off"
    SMTP = "smtp"
    FILE = "file"


class SmtpTls(StrEnum):
    """How the connection to the relay is encrypted."""

    STARTTLS = "starttls"
    IMPLICIT = "implicit"
    NONE = "none"


class EmailVerification(StrEnum):
    """Whether somebody with an address that is not proven may log in."""

    OPTIONAL = "optional"
    REQUIRED = "required"


class RegistrationMode(StrEnum):
    """Who can make an account, and when it exists."""

    OPEN = "open"
    QUIET = "quiet"
    INVITED = "invited"
    OFF = "off"


class TracingMode(StrEnum):
    """Where spans go."""

    OFF = "off"
    OTLP = "otlp"


def _workers(known: ReadSoFar) -> int:
    return 1 if known.is_development else max(MIN_PRODUCTION_WORKERS, known.cpu_count)


def _own_address(known: ReadSoFar) -> str:
    return f"http://127.0.0.1:{known.read['PORT']}"


def _account_limit(known: ReadSoFar, *, times: int) -> LimitSetting | None:
    limit = cast("LimitSetting | None", known.read["RATE_LIMIT_LOGIN_ACCOUNT"])
    return replace(limit, quota=limit.quota * times) if limit else None


def _none(_: ReadSoFar) -> tuple[Address, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Where the service listens, with how many worker processes, and whose word it takes."""

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
        "Answer token checks in the main loop of each worker, many with one read of Redis; off: in threads",
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
    """The truth."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """The fast copy: by ``url``, by ``host``, by ``sentinels``, by ``cluster_nodes``, or in memory."""

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
    username: str | None = optional("REDIS_USERNAME", _PRINTABLE, "Its ACL user")
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
        "REDIS_SENTINEL_USERNAME", _PRINTABLE, "ACL user of the Sentinels themselves"
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
        "Nodes to start from",
        is_supported=False,
        computed=_none,
    )
    #: All trust in Redis ends so long after the last comparison with SQL.
    max_staleness_s: int = setting(
        "REVOCATION_MAX_STALENESS",
        kinds.whole(1, DAY_S),
        "Seconds for which Redis is trusted while the database is unreachable:"
        " the worst case of a revocation under a partition",
        default="300",
    )

    @property
    def has_tls(self) -> bool:
        """True where the connection is encrypted, however the server is named."""
        return self.url.reveal().startswith("rediss://") if self.url else self.is_tls

    @property
    def is_in_memory(self) -> bool:
        """True where no server is named: development alone."""
        return not (self.url or self.host or self.sentinels or self.cluster_nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """Access tokens, and the secret under refresh tokens (None in development without one)."""

    title: ClassVar = "Tokens and keys"

    issuer: str = setting(
        "JWT_ISSUER",
        locations.issuer(),
        "`iss` of every token: the URL that clients know the service by",
        is_required=True,
        otherwise="development: `http://127.0.0.1:<PORT>`",
        computed=_own_address,
    )
    audience: str = setting(
        "JWT_AUDIENCE",
        _PRINTABLE,
        "`aud` of every token, and the only one that is accepted",
        is_required=True,
        development="authsvc-dev",
    )
    keys_dir: Path = setting(
        "JWT_KEYS_DIR",
        locations.directory(),
        "Folder of PEM files: all verify and are published, the newest that is old enough signs",
        is_required=True,
        development=f"{DEVELOPMENT_DIR}/keys",
    )
    access_ttl_s: int = setting(
        "REDIS_AUTH_TOKEN_TTL", kinds.whole(1, YEAR_S), "Seconds an access token lives", default="3600"
    )
    roles: tuple[str, ...] = setting(
        "ROLES",
        kinds.role_names(),
        "Roles beside `user` and `admin`, which there always are; one that is taken out is in no new token",
        default="",
    )
    secret: Secret | None = optional(
        "TOKEN_SECRET",
        _STRONG,
        "Authenticates refresh tokens; changing it ends every session",
        is_required=True,
        otherwise="development: made on first start",
    )
    has_client_id: bool = setting(
        "JWT_CLIENT_ID_CLAIM",
        kinds.switch(),
        "Tokens carry `client_id`, as RFC 9068 requires; `off` only while version 0.1.0 reads them, too",
        default="on",
    )
    #: Clocks of other services may differ from ours by so much.
    leeway_s: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordSettings:
    """Policy and cost; ``pepper`` is None in development without one."""

    title: ClassVar = "Passwords"

    pepper: Secret | None = optional(
        "PASSWORD_PEPPER",
        _STRONG,
        "Keys every password hash; whoever loses it loses every password",
        is_required=True,
        otherwise="development: made on first start",
    )
    min_length: int = setting(
        "PASSWORD_MIN_LENGTH", kinds.whole(8, 256), "Code points of a new password", default="15"
    )
    bcrypt_cost: int = setting(
        "BCRYPT_COST",
        kinds.whole(4, 15),
        "Log2 of bcrypt's rounds; production refuses less than 10",
        default="12",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How long and how many; within ``refresh_grace_s`` the parent yields the same successor."""

    title: ClassVar = "Sessions"

    idle_ttl_s: int = setting(
        "SESSION_IDLE_TTL",
        kinds.whole(1, YEAR_S),
        "Seconds a session lives without login or refresh",
        default="604800",
    )
    max_ttl_s: int = setting(
        "SESSION_MAX_TTL", kinds.whole(1, YEAR_S), "Seconds a session lives at most", default="2592000"
    )
    max_per_user: int = setting(
        "SESSION_MAX_PER_USER",
        kinds.whole(1, 1_000_000),
        "Live sessions of one user; the one unused for longest gives way",
        default="10",
    )
    refresh_grace_s: int = setting(
        "REFRESH_GRACE_SECONDS",
        kinds.whole(0, 3_600),
        "Seconds in which the refresh token just used yields the same successor again",
        default="10",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Attempts per window by rule; None is ``off``."""

    title: ClassVar = "Limits"

    login_ip: LimitSetting | None = setting(
        "RATE_LIMIT_LOGIN_IP", kinds.limit(), "Login attempts of one address", default="100/15minutes"
    )
    login_account: LimitSetting | None = setting(
        "RATE_LIMIT_LOGIN_ACCOUNT", kinds.limit(), "Failed logins of one account", default="10/15minutes"
    )
    login_device: LimitSetting | None = setting(
        "RATE_LIMIT_LOGIN_DEVICE",
        kinds.limit(),
        "Failed logins of one device that logged in before (`off`: it counts as a stranger)",
        default="5/15minutes",
    )
    password_session: LimitSetting | None = setting(
        "RATE_LIMIT_PASSWORD_SESSION",
        kinds.limit(),
        "Wrong current passwords of one session, for a change of password or the end of the account",
        otherwise="that of `RATE_LIMIT_LOGIN_ACCOUNT`",
        computed=lambda known: _account_limit(known, times=1),
    )
    password_account: LimitSetting | None = setting(
        "RATE_LIMIT_PASSWORD_ACCOUNT",
        kinds.limit(),
        "The same of all sessions of one account together",
        otherwise="twice as many as `RATE_LIMIT_LOGIN_ACCOUNT`: no session alone can use them up",
        computed=lambda known: _account_limit(known, times=2),
    )
    register_ip: LimitSetting | None = setting(
        "RATE_LIMIT_REGISTER_IP", kinds.limit(), "Registrations of one address", default="20/hour"
    )
    refresh: LimitSetting | None = setting(
        "RATE_LIMIT_REFRESH", kinds.limit(), "Refreshes of one session", default="60/minute"
    )
    mail_ip: LimitSetting | None = setting(
        "RATE_LIMIT_MAIL_IP", kinds.limit(), "Mails that one caller asks for", default="20/hour"
    )
    mail_address: LimitSetting | None = setting(
        "RATE_LIMIT_MAIL_ADDRESS",
        kinds.limit(),
        "Mails that anybody asked for, to one address; beyond it none is sent, and nobody is told",
        default="5/hour",
    )
    code_ip: LimitSetting | None = setting(
        "RATE_LIMIT_CODE_IP", kinds.limit(), "Wrong codes and links of one caller", default="50/15minutes"
    )
    export: LimitSetting | None = setting(
        "RATE_LIMIT_EXPORT", kinds.limit(), "Exports of one account's data", default="5/day"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """Whether mails are sent, by which relay, from whom, and where their links lead."""

    title: ClassVar = "Mail"

    transport: MailTransport = setting(
        "MAIL_TRANSPORT",
        kinds.choice(MailTransport),
        "How mails leave; `file` writes them to `.authsvc/mail/`, in development alone",
        default="off",
        development="file",
    )
    from_address: str | None = optional(
        "MAIL_FROM",
        locations.mailbox(),
        "Address that mails come from; needed for `smtp`",
        development="authsvc@example.com",
    )
    from_name: str = setting(
        "MAIL_FROM_NAME",
        kinds.matching(
            r"[A-Za-z0-9][A-Za-z0-9 ._&+'-]{0,99}", "1 to 100 letters, digits, spaces, `. _ & + ' -`"
        ),
        "Name beside it, and in the texts",
        default="authsvc",
    )
    reply_to: str | None = optional("MAIL_REPLY_TO", locations.mailbox(), "Address that answers go to")
    smtp_host: str | None = optional("SMTP_HOST", locations.host(), "The relay; needed for `smtp`")
    smtp_port: int = setting("SMTP_PORT", kinds.port(), "Its port", default="587")
    smtp_tls: SmtpTls = setting(
        "SMTP_TLS",
        kinds.choice(SmtpTls),
        "Encryption; chain and name are verified. `none` is refused with a user name",
        default="starttls",
    )
    smtp_username: str | None = optional("SMTP_USERNAME", _PRINTABLE, "User at the relay")
    smtp_password: Secret | None = optional(
        "SMTP_PASSWORD", kinds.hidden("a password"), "That user's password"
    )
    smtp_ca_file: Path | None = optional(
        "SMTP_CA_FILE",
        locations.absolute("file"),
        "PEM file of the authorities to trust",
    )
    max_per_minute: int = setting(
        "MAIL_MAX_PER_MINUTE", kinds.whole(1, 100_000), "Mails that one worker sends at most", default="120"
    )
    templates_dir: Path | None = optional(
        "MAIL_TEMPLATES_DIR",
        locations.absolute("directory"),
        "Folder of templates that replace single ones",
    )
    link_url: str | None = optional(
        "LINK_URL",
        locations.link_url(),
        "Where the pages of the application are that links in mails lead to",
        otherwise="none: mails carry codes alone",
    )

    @property
    def is_on(self) -> bool:
        """True where mails leave at all."""
        return self.transport is not MailTransport.OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationSettings:
    """Who may register, and whether an address must be proven."""

    title: ClassVar = "Registration"

    mode: RegistrationMode = setting(
        "REGISTRATION",
        kinds.choice(RegistrationMode),
        "`quiet`: no account before its address is proven; `invited`: admins invite;"
        " `off`: command line, batch and import alone. `quiet` and `invited` need mail",
        default="open",
    )
    email_verification: EmailVerification = setting(
        "EMAIL_VERIFICATION",
        kinds.choice(EmailVerification),
        "`required`: no login before the address is proven; needs mail",
        default="optional",
    )


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
