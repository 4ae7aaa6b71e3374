"""The variables by subject, in the order of the settings page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from authsvc.settings import variables as v

if TYPE_CHECKING:
    from authsvc.settings.variables import Variable


@dataclass(frozen=True, slots=True)
class Section:
    """Variables of one subject."""

    title: str
    variables: tuple[Variable[object], ...]


SECTIONS = (
    Section(
        "Service",
        (
            v.ENVIRONMENT,
            v.HOST,
            v.PORT,
            v.METRICS_PORT,
            v.WEB_CONCURRENCY,
            v.TRUSTED_PROXIES,
            v.API_DOCS,
            v.LOG_LEVEL,
            v.LOG_FORMAT,
            v.TRACING,
            v.TRACING_SAMPLE_PERCENT,
        ),
    ),
    Section("Database", (v.DATABASE_URL,)),
    Section(
        "Redis",
        (
            v.REDIS_URL,
            v.REDIS_HOST,
            v.REDIS_PORT,
            v.REDIS_USERNAME,
            v.REDIS_PASSWORD,
            v.REDIS_DB,
            v.REDIS_TLS,
            v.REDIS_PROTOCOL,
            v.REDIS_SENTINELS,
            v.REDIS_SENTINEL_SERVICE,
            v.REDIS_SENTINEL_PASSWORD,
            v.REDIS_CLUSTER_ENABLED,
            v.REDIS_CLUSTER_NODES,
            v.REVOCATION_MAX_STALENESS,
        ),
    ),
    Section(
        "Tokens and keys",
        (
            v.JWT_ISSUER,
            v.JWT_AUDIENCE,
            v.JWT_KEYS_DIR,
            v.REDIS_AUTH_TOKEN_TTL,
            v.TOKEN_SECRET,
        ),
    ),
    Section(
        "Passwords",
        (
            v.PASSWORD_PEPPER,
            v.PASSWORD_MIN_LENGTH,
            v.BCRYPT_COST,
        ),
    ),
    Section(
        "Sessions",
        (
            v.SESSION_IDLE_TTL,
            v.SESSION_MAX_TTL,
            v.SESSION_MAX_PER_USER,
            v.REFRESH_GRACE_SECONDS,
        ),
    ),
    Section(
        "Limits",
        (
            v.RATE_LIMIT_LOGIN_IP,
            v.RATE_LIMIT_LOGIN_ACCOUNT,
            v.RATE_LIMIT_LOGIN_DEVICE,
            v.RATE_LIMIT_REGISTER_IP,
            v.RATE_LIMIT_REFRESH,
        ),
    ),
    Section(
        "Cache",
        (
            v.REDIS_CACHE_TTL,
            v.CACHE_ENABLED,
            v.CACHE_LIST_TTL,
            v.CACHE_KEY_PREFIX,
            v.CACHE_KEY_VERSION,
            v.CACHE_MAX_KEY_LENGTH,
            v.CACHE_STALE_TTL,
            v.CACHE_BATCH_SIZE,
            v.CACHE_WARMUP_ENABLED,
            v.CACHE_CB_FAILURE_THRESHOLD,
            v.CACHE_CB_RECOVERY_TIMEOUT,
            v.CACHE_CB_MONITORING_PERIOD,
            v.CACHE_CB_HALF_OPEN_MAX_CALLS,
            v.CACHE_LOCK_DEFAULT_TTL,
            v.CACHE_LOCK_RETRY_DELAY,
            v.CACHE_LOCK_MAX_RETRIES,
        ),
    ),
)

VARIABLES = tuple(variable for section in SECTIONS for variable in section.variables)


def all_names() -> frozenset[str]:
    """Every name that the environment may carry, the ``_FILE`` forms of secrets included."""
    return frozenset(name for variable in VARIABLES for name in variable.names)
