"""The one place where concrete classes meet: settings in, services out."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from authsvc.cache.errors import CacheError, CacheUnavailable
from authsvc.domain.accounts.own_data import OwnDataExport
from authsvc.domain.audit import AuditBook
from authsvc.domain.authentication import Authentication, Verification
from authsvc.domain.batches import Batches
from authsvc.domain.clients import Acquaintances, ClientProof, ClientRegistry
from authsvc.domain.credentials import OwnAccount, PasswordProof
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.passwords.hasher import PasswordHasher, pepper_id
from authsvc.domain.passwords.lane import BoundedPasswords, HashingLane, LaneSize
from authsvc.domain.passwords.policy import PasswordPolicy
from authsvc.domain.preferences import PreferenceBook
from authsvc.domain.ratelimits import Limits, Rule
from authsvc.domain.revocations import Revocations
from authsvc.domain.sessions import RefreshTokens, SessionDirectory, SessionPolicy
from authsvc.domain.tokens.access import TokenReader, TokenSigner
from authsvc.domain.tokens.checks import TokenChecks
from authsvc.domain.tokens.devices import DeviceTokens
from authsvc.domain.tokens.introspection import Introspection
from authsvc.domain.users import UserDirectory, UserStore
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.limits import Limit
from authsvc.observability.audit import RecordedAudit
from authsvc.observability.health import Freshness, Health, LastAnswers, Probes
from authsvc.observability.metrics import Metrics, make_metrics
from authsvc.observability.trail import TrailWriter
from authsvc.services import Services
from authsvc.settings import RegistrationMode, Secret, Settings
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.clients import SqlClientStore
from authsvc.store.copies.admin import CacheAdmin
from authsvc.store.copies.index import IndexKeys
from authsvc.store.copies.users import CachedCredentialStore, CachedUserStore
from authsvc.store.key_folder import KeyFolder
from authsvc.store.mails import Notices
from authsvc.store.own_data import SqlOwnData
from authsvc.store.ratelimits import RedisRateLimiter
from authsvc.store.sessions import SqlSessionStore
from authsvc.store.transfers import SqlUserTransfers
from authsvc.store.users import SqlCredentialStore, SqlUserStore
from authsvc.wiring.cache_admin import cache_admin, starter
from authsvc.wiring.feed import revocation_feed
from authsvc.wiring.machine import available_cores
from authsvc.wiring.mail import MailRoom, mail_state, open_mail
from authsvc.wiring.parts import Parts
from authsvc.wiring.stores import Stores, open_stores
from authsvc.wiring.tracing import open_tracing

#: A job that has not begun by then is refused: longer, nobody waits for a login.
HASHING_DEADLINE_S = 2.0
HASHING_QUEUE_PER_THREAD = 8
#: So many wait also where their turn may come too late: 16 clients at one worker, on half its threads.
HASHING_WAITERS_PER_THREAD = 7
HASHING_NICENESS = 10
#: Wrong client secrets of one address.  Nobody with a right one meets it, so it is nothing to be set.
CLIENT_IP_LIMIT = Limit(name=Rule.CLIENT_IP.value, quota=100, window_s=900)


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def build(settings: Settings, *, clock: Clock = now, answers: LastAnswers | None = None) -> Services:
    """
    Everything for one process; connects to nothing until it is used or started.  Call after the fork.

    *answers* was made before it, for all workers; None: this process speaks for itself.
    """
    parts = _parts(settings, clock, answers or LastAnswers())
    directory = UserDirectory(
        store=parts.users,
        revocations=parts.revocations,
        audit=parts.audit,
        roles=parts.stores.profile.roles,
    )
    cache = cache_admin(settings, parts.stores, parts.users, parts.metrics)
    mail = open_mail(parts, _policy(parts), _devices(settings)) if settings.mail.is_on else None
    authentication = _authentication(parts, mail.recovery.addresses if mail else None)
    clients = SqlClientStore(parts.stores.database)
    checks = TokenChecks(
        reader=parts.reader,
        index=parts.stores.index,
        sessions=parts.sessions,
        observe=parts.metrics.token_check,
        clock=clock,
    )
    return Services(
        audit=AuditBook(SqlAuditTrail(parts.stores.database)),
        events=parts.audit,
        authentication=authentication,
        batches=_batches(parts, authentication),
        cache=cache,
        clients=ClientProof(
            store=clients, known=Acquaintances(time.monotonic), limits=parts.limits, audit=parts.audit
        ),
        client_registry=ClientRegistry(store=clients, audit=parts.audit, clock=clock),
        feed=revocation_feed(parts.stores, clock),
        introspection=_introspection(parts, authentication, checks),
        registration=settings.registration.mode,
        recovery=mail.recovery if mail else None,
        checks=checks,
        polled=parts.stores.polled,
        account=_account(parts, directory),
        users=directory,
        transfers=SqlUserTransfers(parts.stores.database, parts.stores.log, clock, pause=time.sleep),
        pepper_id=pepper_id(_reveal(settings.passwords.pepper)),
        own_data=OwnDataExport(
            store=SqlOwnData(parts.stores.database), limits=parts.limits, audit=parts.audit
        ),
        preferences=PreferenceBook(parts.users, parts.revocations),
        sessions=SessionDirectory(
            store=parts.sessions, revocations=parts.revocations, audit=parts.audit, clock=clock
        ),
        limits=parts.limits,
        ring=parts.ring,
        health=_health(parts, mail),
        metrics=parts.metrics,
        tracing=parts.tracing,
        trusted_proxies=settings.http.trusted_proxies,
        metrics_port=settings.http.metrics_port,
        cors_origins=frozenset(settings.http.cors_origins),
        has_docs=settings.http.api_docs,
        compare=parts.stores.heartbeat.beat,
        start=partial(_start, parts, mail, starter(settings, parts.stores, cache)),
        close=partial(_close, parts, mail, cache),
    )


def lane_size(workers: int, cores: int) -> LaneSize:
    """
    As many hashes at once as there are cores, over all workers together, but at least two in each.

    Connections land unevenly: with one thread each, a worker that gets few leaves its core idle.
    """
    threads = max(2, math.ceil(cores / workers))
    return LaneSize(
        threads=threads,
        queue_limit=HASHING_QUEUE_PER_THREAD * threads,
        always_wait=HASHING_WAITERS_PER_THREAD * threads,
        deadline_s=HASHING_DEADLINE_S,
        niceness=HASHING_NICENESS,
    )


def _parts(settings: Settings, clock: Clock, answers: LastAnswers) -> Parts:
    metrics = make_metrics()
    tracing = open_tracing(settings.tracing)
    stores = open_stores(settings, metrics, tracing, answers, clock)
    audit = _audit(settings, stores, metrics, clock)
    ring = KeyFolder(settings.tokens.keys_dir, time.monotonic, audit)
    notices = Notices(are_sent=settings.mail.is_on)
    sql_users = SqlUserStore(stores.database, stores.log, clock, notices)
    limits = Limits(_limits(settings), RedisRateLimiter(stores.redis, stores.keys), audit)
    lane = _lane(settings, metrics)
    hasher = PasswordHasher(_reveal(settings.passwords.pepper), settings.passwords.bcrypt_cost)
    passwords = BoundedPasswords(hasher, lane)
    return Parts(
        settings=settings,
        stores=stores,
        ring=ring,
        reader=TokenReader(stores.profile, ring),
        sessions=SqlSessionStore(stores.database, stores.log, clock),
        credentials=_credentials(settings, stores, clock, notices),
        users=_users(settings, stores, sql_users, metrics),
        revocations=Revocations(stores.index, stores.proof),
        audit=audit,
        limits=limits,
        lane=lane,
        proof=PasswordProof(passwords=passwords, limits=limits, audit=audit),
        metrics=metrics,
        tracing=tracing,
        answers=answers,
        clock=clock,
    )


def _audit(settings: Settings, stores: Stores, metrics: Metrics, clock: Clock) -> RecordedAudit:
    trail = SqlAuditTrail(stores.database)
    writer = TrailWriter(trail, on_unwritten=metrics.audit_unwritten)
    return RecordedAudit(metrics=metrics, key=_log_key(settings), writer=writer, clock=clock)


def _users(settings: Settings, stores: Stores, behind: UserStore, metrics: Metrics) -> UserStore:
    if not settings.cache.is_enabled:
        return behind
    return CachedUserStore(
        behind=behind,
        caches=stores.user_caches,
        on_operation=metrics.user_cache_operation,
        monotonic=time.monotonic,
    )


def _credentials(settings: Settings, stores: Stores, clock: Clock, notices: Notices) -> SqlCredentialStore:
    if not settings.cache.is_enabled:
        return SqlCredentialStore(stores.database, stores.log, clock, notices)
    return CachedCredentialStore(stores.database, stores.log, clock, notices, caches=stores.user_caches)


def _lane(settings: Settings, metrics: Metrics) -> HashingLane:
    def done(seconds: float) -> None:
        metrics.password_hash(seconds)
        metrics.password_hash_queue(lane.queue_depth)

    size = lane_size(settings.http.workers, available_cores())
    lane = HashingLane(size, clock=time.monotonic, on_done=done)
    return lane


def _authentication(parts: Parts, verification: Verification | None) -> Authentication:
    return Authentication(
        users=parts.users,
        credentials=parts.credentials,
        sessions=parts.sessions,
        session_policy=_session_policy(parts),
        password_policy=_policy(parts),
        proof=parts.proof,
        signer=TokenSigner(parts.stores.profile, parts.ring),
        reader=parts.reader,
        refresh_tokens=_refresh_tokens(parts),
        devices=_devices(parts.settings),
        issued=parts.stores.index,
        revocations=parts.revocations,
        limits=parts.limits,
        audit=parts.audit,
        clock=parts.clock,
        verification=verification,
        is_open=parts.settings.registration.mode is RegistrationMode.OPEN,
    )


def _session_policy(parts: Parts) -> SessionPolicy:
    sessions = parts.settings.sessions
    return SessionPolicy(
        idle_ttl_s=sessions.idle_ttl_s,
        max_ttl_s=sessions.max_ttl_s,
        max_per_user=sessions.max_per_user,
        grace_s=sessions.refresh_grace_s,
    )


def _refresh_tokens(parts: Parts) -> RefreshTokens:
    return RefreshTokens(_reveal(parts.settings.tokens.secret))


def _introspection(parts: Parts, authentication: Authentication, checks: TokenChecks) -> Introspection:
    return Introspection(
        checks=checks,
        sessions=parts.sessions,
        refresh_tokens=_refresh_tokens(parts),
        log_out=authentication.log_out,
        profile=parts.stores.profile,
        grace_s=parts.settings.sessions.refresh_grace_s,
        clock=parts.clock,
    )


def _batches(parts: Parts, authentication: Authentication) -> Batches:
    return Batches(
        authentication=authentication,
        credentials=parts.credentials,
        revocations=parts.revocations,
        audit=parts.audit,
        clock=parts.clock,
    )


def _account(parts: Parts, directory: UserDirectory) -> OwnAccount:
    return OwnAccount(
        credentials=parts.credentials,
        users=directory,
        proof=parts.proof,
        policy=_policy(parts),
        revocations=parts.revocations,
        devices=_devices(parts.settings),
        audit=parts.audit,
        clock=parts.clock,
    )


def _policy(parts: Parts) -> PasswordPolicy:
    return PasswordPolicy(min_length=parts.settings.passwords.min_length)


def _limits(settings: Settings) -> Mapping[Rule, Limit]:
    """The limits in force; one that is ``off`` is left out."""
    by_rule = {
        Rule.LOGIN_IP: settings.limits.login_ip,
        Rule.LOGIN_ACCOUNT: settings.limits.login_account,
        Rule.LOGIN_DEVICE: settings.limits.login_device,
        Rule.PASSWORD_SESSION: settings.limits.password_session,
        Rule.PASSWORD_ACCOUNT: settings.limits.password_account,
        Rule.REGISTER_IP: settings.limits.register_ip,
        Rule.REFRESH: settings.limits.refresh,
        Rule.MAIL_IP: settings.limits.mail_ip,
        Rule.MAIL_ADDRESS: settings.limits.mail_address,
        Rule.CODE_IP: settings.limits.code_ip,
        Rule.EXPORT: settings.limits.export,
    }
    in_force = {
        rule: Limit(name=rule.value, quota=limit.quota, window_s=limit.window_s)
        for rule, limit in by_rule.items()
        if limit is not None
    }
    return {**in_force, Rule.CLIENT_IP: CLIENT_IP_LIMIT}


def _health(parts: Parts, mail: MailRoom | None) -> Health:
    stores = parts.stores
    marker = IndexKeys(stores.keys).marker

    def look_at_redis() -> Freshness:
        try:
            (value,), generation = stores.redis.mget((marker,))
        except CacheUnavailable as error:
            raise StoreUnavailable(f"redis: {error.reason}") from error
        now_s = time.monotonic()
        return Freshness(
            is_proven=stores.proof.holds(value, generation, now_s),
            is_sql_answering=parts.answers.is_answering(now_s),
        )

    probes = Probes(
        redis=look_at_redis,
        sql=stores.database.ping,
        is_in_memory=parts.settings.redis.is_in_memory,
        is_cache_enabled=parts.settings.cache.is_enabled,
        totals=parts.metrics.cache_totals,
        details=partial(_details, parts, mail),
        has_keys=lambda: bool(parts.ring().keys),
    )
    return Health(
        probes=probes, clock=parts.clock, monotonic=time.monotonic, started=stores.heartbeat.has_begun
    )


def _details(parts: Parts, mail: MailRoom | None) -> dict[str, Any]:
    """What only an admin sees."""
    stores = parts.stores
    return {
        "breakers": {"redis": stores.redis.state.value, "database": stores.database.state.value},
        "pool": stores.database.pool_figures(),
        "keys": _key_count(stores),
        "revocations": {"known": stores.proof.known},
        "hashing_queue": parts.lane.queue_depth,
        "mail": mail_state(mail),
    }


def _key_count(stores: Stores) -> int | None:
    """How many keys Redis holds; None where it is away or does not tell."""
    try:
        count = stores.redis.call("DBSIZE")
    except CacheError:
        return None
    return count if isinstance(count, int) else None


def _start(parts: Parts, mail: MailRoom | None, begin: Callable[[], None]) -> None:
    parts.ring.announce()
    begin()
    if mail is not None:
        mail.thread.start()


def _close(parts: Parts, mail: MailRoom | None, cache: CacheAdmin) -> None:
    if mail is not None:
        mail.thread.close()
    cache.warming.close()
    parts.lane.close()
    parts.audit.writer.close()
    parts.stores.close()
    parts.tracing.close()


def _devices(settings: Settings) -> DeviceTokens:
    return DeviceTokens(hmac.digest(_reveal(settings.tokens.secret), b"authsvc device key 1", "sha256"))


def _log_key(settings: Settings) -> bytes:
    """The key of digests in the log: of no use for anything else, and the same in every process."""
    return hmac.digest(_reveal(settings.tokens.secret), b"authsvc log digest 1", "sha256")


def _reveal(secret: Secret | None) -> bytes:
    """The bytes of a secret that the settings guarantee; development makes its own before it gets here."""
    if secret is None:
        raise ValueError("a secret is missing: development makes its own with ensure_development_files()")
    return secret.reveal().encode()
