"""Settings: everything the operator decides, in one frozen value."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from authsvc.settings import cautions, checks
from authsvc.settings import variables as v
from authsvc.settings.development import DATABASE_URL, KEYS_DIR
from authsvc.settings.groups import (
    CacheSettings,
    DatabaseSettings,
    Environment,
    HttpSettings,
    LimitSettings,
    LogSettings,
    PasswordSettings,
    RedisSettings,
    SessionSettings,
    TokenSettings,
    TracingSettings,
)
from authsvc.settings.kinds import Secret
from authsvc.settings.problems import SettingsError
from authsvc.settings.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from authsvc.settings.problems import Problem

MIN_PRODUCTION_WORKERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What :meth:`from_env` read; ``warnings`` are for the log of the start."""

    environment: Environment
    http: HttpSettings
    database: DatabaseSettings
    redis: RedisSettings
    #: All trust in Redis ends so long after the last comparison with SQL.
    revocation_max_staleness_s: int
    cache: CacheSettings
    tokens: TokenSettings
    passwords: PasswordSettings
    sessions: SessionSettings
    limits: LimitSettings
    log: LogSettings
    tracing: TracingSettings
    warnings: tuple[str, ...] = ()

    @property
    def is_development(self) -> bool:
        """True where what is missing may be embedded."""
        return self.environment is Environment.DEVELOPMENT

    @classmethod
    def from_env(cls, env: Mapping[str, str], *, cpu_count: int | None = None) -> Settings:
        """
        Read, check and freeze *env*; *cpu_count* (default: this machine's) sets the workers.

        Touches the file system for ``<NAME>_FILE`` and the key folder, nothing else.

        Raises:
            SettingsError: something is missing, wrong, weak or contradictory; names all of it.
        """
        reader = Reader(env)
        draft = _draft(reader, cpu_count or os.cpu_count() or 1)
        problems = (*reader.problems, *_problems(draft, reader), *checks.unknown_names(env))
        if problems:
            raise SettingsError(problems)
        return replace(draft, warnings=tuple(_warnings(draft, reader)))


def _draft(reader: Reader, cpu_count: int) -> Settings:
    """Everything read, with stand-ins where a variable has a problem."""
    http = _http(reader, cpu_count)
    return Settings(
        environment=reader.environment,
        http=http,
        database=DatabaseSettings(url=reader.value_or(v.DATABASE_URL, Secret(DATABASE_URL))),
        redis=_redis(reader),
        revocation_max_staleness_s=reader.value(v.REVOCATION_MAX_STALENESS),
        cache=_cache(reader),
        tokens=_tokens(reader, http.port),
        passwords=_passwords(reader),
        sessions=_sessions(reader),
        limits=_limits(reader),
        log=LogSettings(level=reader.value(v.LOG_LEVEL), format=reader.value(v.LOG_FORMAT)),
        tracing=TracingSettings(
            mode=reader.value(v.TRACING), sample_percent=reader.value(v.TRACING_SAMPLE_PERCENT)
        ),
    )


def _problems(draft: Settings, reader: Reader) -> Iterator[Problem]:
    yield from checks.http_problems(draft.http, reader)
    yield from checks.redis_problems(draft.redis, draft.http, reader)
    yield from checks.lifetime_problems(draft.tokens, draft.sessions, reader)
    yield from checks.key_folder_problems(draft.tokens, reader)
    if not draft.is_development:
        yield from checks.production_problems(draft.database, draft.passwords, reader)
        yield from cautions.weak_secrets(_secrets(draft))


def _warnings(draft: Settings, reader: Reader) -> Iterator[str]:
    yield from cautions.http_cautions(draft.http)
    yield from cautions.issuer_cautions(draft.tokens)
    yield from cautions.limit_cautions(draft.limits)
    yield from checks.ignored_names(reader.env)
    if draft.is_development:
        yield from cautions.redis_cautions(draft.redis, reader)
        yield from map(str, cautions.weak_secrets(_secrets(draft)))


def _secrets(draft: Settings) -> dict[v.Variable[Secret], Secret | None]:
    return {
        v.TOKEN_SECRET: draft.tokens.secret,
        v.PASSWORD_PEPPER: draft.passwords.pepper,
        v.REDIS_PASSWORD: draft.redis.password,
        v.REDIS_SENTINEL_PASSWORD: draft.redis.sentinel_password,
    }


def _http(reader: Reader, cpu_count: int) -> HttpSettings:
    workers = 1 if reader.is_development else max(MIN_PRODUCTION_WORKERS, cpu_count)
    return HttpSettings(
        host=reader.value(v.HOST),
        port=reader.value(v.PORT),
        metrics_port=reader.value(v.METRICS_PORT),
        workers=reader.value_or(v.WEB_CONCURRENCY, workers),
        trusted_proxies=reader.value(v.TRUSTED_PROXIES),
        api_docs=reader.value(v.API_DOCS),
    )


def _redis(reader: Reader) -> RedisSettings:
    return RedisSettings(
        url=reader.optional(v.REDIS_URL),
        host=reader.optional(v.REDIS_HOST),
        port=reader.value(v.REDIS_PORT),
        username=reader.optional(v.REDIS_USERNAME),
        password=reader.optional(v.REDIS_PASSWORD),
        db=reader.value(v.REDIS_DB),
        is_tls=reader.value(v.REDIS_TLS),
        sentinels=reader.value_or(v.REDIS_SENTINELS, ()),
        sentinel_service=reader.optional(v.REDIS_SENTINEL_SERVICE),
        sentinel_password=reader.optional(v.REDIS_SENTINEL_PASSWORD),
        is_cluster=reader.value(v.REDIS_CLUSTER_ENABLED),
        cluster_nodes=reader.value_or(v.REDIS_CLUSTER_NODES, ()),
        protocol=reader.value(v.REDIS_PROTOCOL).value,
    )


def _cache(reader: Reader) -> CacheSettings:
    return CacheSettings(
        is_enabled=reader.value(v.CACHE_ENABLED),
        is_warmup_enabled=reader.value(v.CACHE_WARMUP_ENABLED),
        ttl_s=reader.value(v.REDIS_CACHE_TTL),
        list_ttl_s=reader.value(v.CACHE_LIST_TTL),
        stale_ttl_s=reader.value(v.CACHE_STALE_TTL),
        key_prefix=reader.value(v.CACHE_KEY_PREFIX),
        key_version=reader.value(v.CACHE_KEY_VERSION),
        max_key_length=reader.value(v.CACHE_MAX_KEY_LENGTH),
        batch_size=reader.value(v.CACHE_BATCH_SIZE),
        breaker_failure_threshold=reader.value(v.CACHE_CB_FAILURE_THRESHOLD),
        breaker_recovery_ms=reader.value(v.CACHE_CB_RECOVERY_TIMEOUT),
        breaker_monitoring_ms=reader.value(v.CACHE_CB_MONITORING_PERIOD),
        breaker_half_open_max_calls=reader.value(v.CACHE_CB_HALF_OPEN_MAX_CALLS),
        lock_ttl_s=reader.value(v.CACHE_LOCK_DEFAULT_TTL),
        lock_retry_delay_ms=reader.value(v.CACHE_LOCK_RETRY_DELAY),
        lock_max_retries=reader.value(v.CACHE_LOCK_MAX_RETRIES),
    )


def _tokens(reader: Reader, port: int) -> TokenSettings:
    return TokenSettings(
        issuer=reader.value_or(v.JWT_ISSUER, f"http://127.0.0.1:{port}"),
        audience=reader.value_or(v.JWT_AUDIENCE, "authsvc-dev"),
        keys_dir=reader.value_or(v.JWT_KEYS_DIR, KEYS_DIR),
        access_ttl_s=reader.value(v.REDIS_AUTH_TOKEN_TTL),
        secret=reader.optional(v.TOKEN_SECRET),
    )


def _passwords(reader: Reader) -> PasswordSettings:
    return PasswordSettings(
        pepper=reader.optional(v.PASSWORD_PEPPER),
        min_length=reader.value(v.PASSWORD_MIN_LENGTH),
        bcrypt_cost=reader.value(v.BCRYPT_COST),
    )


def _sessions(reader: Reader) -> SessionSettings:
    return SessionSettings(
        idle_ttl_s=reader.value(v.SESSION_IDLE_TTL),
        max_ttl_s=reader.value(v.SESSION_MAX_TTL),
        max_per_user=reader.value(v.SESSION_MAX_PER_USER),
        refresh_grace_s=reader.value(v.REFRESH_GRACE_SECONDS),
    )


def _limits(reader: Reader) -> LimitSettings:
    return LimitSettings(
        login_ip=reader.value(v.RATE_LIMIT_LOGIN_IP),
        login_account=reader.value(v.RATE_LIMIT_LOGIN_ACCOUNT),
        login_device=reader.value(v.RATE_LIMIT_LOGIN_DEVICE),
        register_ip=reader.value(v.RATE_LIMIT_REGISTER_IP),
        refresh=reader.value(v.RATE_LIMIT_REFRESH),
    )
