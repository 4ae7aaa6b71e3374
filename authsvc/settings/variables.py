"""The table of variables: name, kind, default, purpose.  ``docs/settings.md`` is made from it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from authsvc.settings.groups import Environment, LogFormat, LogLevel, RedisProtocol, TracingMode
from authsvc.settings.kinds import choice, hidden, limit, matching, port, switch, whole
from authsvc.settings.locations import (
    addresses,
    database_url,
    directory,
    host,
    issuer,
    networks,
    redis_url,
)

if TYPE_CHECKING:
    from authsvc.settings.kinds import Kind

T_co = TypeVar("T_co", covariant=True)

DAY_S = 86_400
YEAR_S = 365 * DAY_S
MIN_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Variable(Generic[T_co]):
    """One environment variable; the defaults are texts that go through the same parser."""

    name: str
    kind: Kind[T_co]
    about: str
    _: KW_ONLY
    default: str | None = None
    #: Where development differs.
    development: str | None = None
    #: Missing in production is a problem.
    is_required: bool = False
    #: False: parsed and checked, then refused, until the service knows what to do with it.
    is_supported: bool = True
    #: What happens without it, where no text could say so.
    otherwise: str = ""

    @property
    def file_name(self) -> str:
        """The variable that names a file with the value, for secrets."""
        return f"{self.name}_FILE"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the value may come by."""
        return (self.name, self.file_name) if self.kind.is_secret else (self.name,)

    @property
    def may_be_empty(self) -> bool:
        """True where the empty text is a value, not a slip in a template."""
        return self.default == ""

    def default_in(self, *, is_development: bool) -> str:
        """The default's text; a variable without one is read in another way."""
        if is_development and self.development is not None:
            return self.development
        if self.default is None:
            raise LookupError(self.name)
        return self.default


_PLAIN = matching(r"[A-Za-z0-9._-]{1,64}", "1 to 64 of the characters `A-Z a-z 0-9 . _ -`")
_PRINTABLE = matching(r"[!-~]{1,256}", "1 to 256 printable ASCII characters without spaces")
_STRONG = hidden(f"at least {MIN_SECRET_BYTES} random bytes, as from `openssl rand -base64 48`")

ENVIRONMENT = Variable(
    "AUTHSVC_ENV",
    choice(Environment),
    "Development embeds what is missing and is never the default",
    default="production",
)
HOST = Variable(
    "HOST",
    host(),
    "Address to listen on",
    default="0.0.0.0",  # noqa: S104 - a container listens on all of its own interfaces
    development="127.0.0.1",
)
PORT = Variable("PORT", port(), "Public port", default="8080")
METRICS_PORT = Variable("METRICS_PORT", port(), "Port of `/metrics`; never the public one", default="9464")
WEB_CONCURRENCY = Variable(
    "WEB_CONCURRENCY",
    whole(1, 256),
    "Worker processes; on a shared node, set it to the CPUs that the service may use",
    otherwise="the number of CPUs, at least 2 (development: 1)",
)
TRUSTED_PROXIES = Variable(
    "TRUSTED_PROXIES",
    networks(),
    "Proxies whose `X-Forwarded-For` is believed, walked from the right; without any it is ignored",
    default="",
)
API_DOCS = Variable("API_DOCS", switch(), "Serve `/openapi.json` and `/docs`", default="on")

DATABASE_URL = Variable(
    "DATABASE_URL",
    database_url(),
    "The database that holds the truth; SQLite in development alone",
    is_required=True,
    otherwise="development: the file `.authsvc/dev.sqlite3`",
)

REDIS_URL = Variable(
    "REDIS_URL",
    redis_url(),
    "The Redis server, in one variable instead of six",
    otherwise="this or `REDIS_HOST` is required; development: in memory",
)
REDIS_HOST = Variable("REDIS_HOST", host(), "The Redis server", otherwise="see `REDIS_URL`")
REDIS_PORT = Variable("REDIS_PORT", port(), "Its port", default="6379")
REDIS_USERNAME = Variable("REDIS_USERNAME", _PRINTABLE, "Its ACL user")
REDIS_PASSWORD = Variable("REDIS_PASSWORD", hidden("a password"), "That user's password")
REDIS_DB = Variable("REDIS_DB", whole(0, 9_999), "Database number", default="0")
REDIS_TLS = Variable("REDIS_TLS", switch(), "Connect with TLS", default="false")
REDIS_PROTOCOL = Variable(
    "REDIS_PROTOCOL",
    choice(RedisProtocol),
    "RESP version; 2 for servers and proxies that do not know `HELLO`",
    default="3",
)
REDIS_SENTINELS = Variable(
    "REDIS_SENTINELS",
    addresses(),
    "Sentinels to ask for the primary",
)
REDIS_SENTINEL_SERVICE = Variable("REDIS_SENTINEL_SERVICE", _PLAIN, "The primary's name")
REDIS_SENTINEL_PASSWORD = Variable(
    "REDIS_SENTINEL_PASSWORD", hidden("a password"), "Password of the Sentinels themselves"
)
REDIS_CLUSTER_ENABLED = Variable(
    "REDIS_CLUSTER_ENABLED",
    switch(),
    "The server is a Redis Cluster",
    default="false",
)
REDIS_CLUSTER_NODES = Variable("REDIS_CLUSTER_NODES", addresses(), "Nodes to start from", is_supported=False)
REVOCATION_MAX_STALENESS = Variable(
    "REVOCATION_MAX_STALENESS",
    whole(1, DAY_S),
    "Seconds for which Redis is trusted while the database is unreachable:"
    " the worst case of a revocation under a partition",
    default="300",
)

REDIS_CACHE_TTL = Variable(
    "REDIS_CACHE_TTL", whole(1, 30 * DAY_S), "Seconds a user stays cached", default="3600"
)
CACHE_ENABLED = Variable(
    "CACHE_ENABLED", switch(), "Cache user data; token checks do not depend on it", default="true"
)
CACHE_LIST_TTL = Variable(
    "CACHE_LIST_TTL", whole(1, DAY_S), "Seconds a page of the admin list stays", default="300"
)
CACHE_KEY_PREFIX = Variable("CACHE_KEY_PREFIX", _PLAIN, "First part of every Redis key", default="authsvc")
CACHE_KEY_VERSION = Variable("CACHE_KEY_VERSION", _PLAIN, "Second part of every Redis key", default="v1")
CACHE_MAX_KEY_LENGTH = Variable(
    "CACHE_MAX_KEY_LENGTH",
    whole(64, 4_096),
    "Characters of a key; a part that would exceed it becomes its SHA-256",
    default="250",
)
CACHE_STALE_TTL = Variable(
    "CACHE_STALE_TTL",
    whole(0, DAY_S),
    "Seconds that display fields may be served stale; nothing that the service caches may be, today",
    default="60",
)
CACHE_BATCH_SIZE = Variable(
    "CACHE_BATCH_SIZE", whole(1, 10_000), "Keys per step of a bulk operation", default="100"
)
CACHE_WARMUP_ENABLED = Variable("CACHE_WARMUP_ENABLED", switch(), "Run the warmers at start", default="true")
CACHE_CB_FAILURE_THRESHOLD = Variable(
    "CACHE_CB_FAILURE_THRESHOLD",
    whole(1, 1_000),
    "Failures within the monitoring period that open the circuit breaker",
    default="5",
)
CACHE_CB_RECOVERY_TIMEOUT = Variable(
    "CACHE_CB_RECOVERY_TIMEOUT", whole(1, 600_000), "Milliseconds that it stays open", default="2000"
)
CACHE_CB_MONITORING_PERIOD = Variable(
    "CACHE_CB_MONITORING_PERIOD",
    whole(1, 3_600_000),
    "Milliseconds over which failures are counted",
    default="10000",
)
CACHE_CB_HALF_OPEN_MAX_CALLS = Variable(
    "CACHE_CB_HALF_OPEN_MAX_CALLS",
    whole(1, 100),
    "Calls that may probe a half-open breaker at once",
    default="3",
)
CACHE_LOCK_DEFAULT_TTL = Variable(
    "CACHE_LOCK_DEFAULT_TTL", whole(1, 3_600), "Seconds until a lock expires", default="30"
)
CACHE_LOCK_RETRY_DELAY = Variable(
    "CACHE_LOCK_RETRY_DELAY", whole(1, 60_000), "Milliseconds between attempts to take a lock", default="100"
)
CACHE_LOCK_MAX_RETRIES = Variable(
    "CACHE_LOCK_MAX_RETRIES", whole(0, 1_000), "Further attempts to take a lock", default="3"
)

JWT_ISSUER = Variable(
    "JWT_ISSUER",
    issuer(),
    "`iss` of every token: the URL that clients know the service by",
    is_required=True,
    otherwise="development: `http://127.0.0.1:<PORT>`",
)
JWT_AUDIENCE = Variable(
    "JWT_AUDIENCE",
    _PRINTABLE,
    "`aud` of every token, and the only one that is accepted",
    is_required=True,
    otherwise="development: `authsvc-dev`",
)
JWT_KEYS_DIR = Variable(
    "JWT_KEYS_DIR",
    directory(),
    "Folder of PEM files: all verify and are published, the newest that is old enough signs",
    is_required=True,
    otherwise="development: `.authsvc/keys`",
)
REDIS_AUTH_TOKEN_TTL = Variable(
    "REDIS_AUTH_TOKEN_TTL", whole(1, YEAR_S), "Seconds an access token lives", default="3600"
)
TOKEN_SECRET = Variable(
    "TOKEN_SECRET",
    _STRONG,
    "Authenticates refresh tokens; changing it ends every session",
    is_required=True,
    otherwise="development: made on first start",
)

PASSWORD_PEPPER = Variable(
    "PASSWORD_PEPPER",
    _STRONG,
    "Keys every password hash; whoever loses it loses every password",
    is_required=True,
    otherwise="development: made on first start",
)
PASSWORD_MIN_LENGTH = Variable(
    "PASSWORD_MIN_LENGTH", whole(8, 256), "Code points of a new password", default="15"
)
BCRYPT_COST = Variable(
    "BCRYPT_COST", whole(4, 15), "Log2 of bcrypt's rounds; production refuses less than 10", default="12"
)

SESSION_IDLE_TTL = Variable(
    "SESSION_IDLE_TTL", whole(1, YEAR_S), "Seconds a session lives without login or refresh", default="604800"
)
SESSION_MAX_TTL = Variable(
    "SESSION_MAX_TTL", whole(1, YEAR_S), "Seconds a session lives at most", default="2592000"
)
SESSION_MAX_PER_USER = Variable(
    "SESSION_MAX_PER_USER",
    whole(1, 1_000_000),
    "Live sessions of one user; the one unused for longest gives way",
    default="10",
)
REFRESH_GRACE_SECONDS = Variable(
    "REFRESH_GRACE_SECONDS",
    whole(0, 3_600),
    "Seconds in which the refresh token just used yields the same successor again",
    default="10",
)

RATE_LIMIT_LOGIN_IP = Variable(
    "RATE_LIMIT_LOGIN_IP", limit(), "Login attempts of one address", default="100/15minutes"
)
RATE_LIMIT_LOGIN_ACCOUNT = Variable(
    "RATE_LIMIT_LOGIN_ACCOUNT", limit(), "Failed logins of one account", default="10/15minutes"
)
RATE_LIMIT_LOGIN_DEVICE = Variable(
    "RATE_LIMIT_LOGIN_DEVICE",
    limit(),
    "Failed logins of one device that logged in before (`off`: it counts as a stranger)",
    default="5/15minutes",
)
RATE_LIMIT_REGISTER_IP = Variable(
    "RATE_LIMIT_REGISTER_IP", limit(), "Registrations of one address", default="20/hour"
)
RATE_LIMIT_REFRESH = Variable("RATE_LIMIT_REFRESH", limit(), "Refreshes of one session", default="60/minute")

TRACING = Variable(
    "TRACING",
    choice(TracingMode),
    "Spans for OpenTelemetry: `otlp` sends them where `OTEL_EXPORTER_OTLP_ENDPOINT` says (extra `otel`)",
    default="off",
)
TRACING_SAMPLE_PERCENT = Variable(
    "TRACING_SAMPLE_PERCENT",
    whole(0, 100),
    "Of the requests whose caller has not decided it, how many are traced",
    default="100",
)

LOG_LEVEL = Variable("LOG_LEVEL", choice(LogLevel), "The least severe record that is written", default="info")
LOG_FORMAT = Variable(
    "LOG_FORMAT", choice(LogFormat), "Shape of the log", default="json", development="console"
)
