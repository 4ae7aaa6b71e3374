"""The one place that connects concrete classes: takes settings, makes services."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from authsvc.domain.accounts.opening import SessionOpening
from authsvc.domain.accounts.own_data import OwnDataExport
from authsvc.domain.accounts.second_factor import SecondFactorsOff
from authsvc.domain.audit import AuditBook
from authsvc.domain.authentication import Authentication
from authsvc.domain.batches import Batches
from authsvc.domain.client_authentication import ClientProof, RecentClients, SecretUses
from authsvc.domain.clients import ClientRegistry
from authsvc.domain.credentials import OwnAccount
from authsvc.domain.feed import LogWatcher, RevocationFeed
from authsvc.domain.preferences import PreferenceBook
from authsvc.domain.sessions import RefreshTokens, SessionDirectory, SessionPolicy
from authsvc.domain.tokens.access import TokenSigner
from authsvc.domain.tokens.checks import TokenChecks
from authsvc.domain.tokens.introspection import Introspection
from authsvc.domain.tokens.machines import MachineTokens
from authsvc.domain.users import UserDirectory
from authsvc.domain.values.clocks import Clock
from authsvc.observability import logs
from authsvc.observability.health import Health, LastAnswers, Probes
from authsvc.services import PasskeyServices, SecondFactorServices, Services
from authsvc.settings import RegistrationMode, Settings, revealed
from authsvc.store.accounts.own_data import SqlOwnData
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.clients import SqlClientStore, SqlMachineTokenStore, SqlSecretStore
from authsvc.store.copies.admin import CacheAdmin
from authsvc.store.feed import SqlFeedLog
from authsvc.wiring.caching import cache_admin
from authsvc.wiring.parts import Parts, make_parts
from authsvc.wiring.timings import Timings

if TYPE_CHECKING:
    from authsvc.wiring.mail import Mailing


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def build(
    settings: Settings,
    *,
    clock: Clock = now,
    answers: LastAnswers | None = None,
    timings: Timings | None = None,
) -> Services:
    """
    All services, without a thread, a connection or a name of this process: those begin with ``start``.

    So a process may build them, and fork others that start them.
    *answers* was made before it, for all workers; None: this process speaks for itself.
    """
    parts = make_parts(settings, clock, answers or LastAnswers(), timings or Timings())
    stores = parts.stores
    mail = _mail(parts)
    cache = cache_admin(settings, stores.redis, stores.database, parts.users, parts.metrics)
    directory = _directory(parts)
    opening = _opening(parts)
    account = _account(parts, directory)
    second_factors = _second_factors(parts, opening, account)
    authentication = _authentication(parts, opening, mail, second_factors)
    checks = _checks(parts)
    machines = _machines(parts)
    return Services(
        account=account,
        audit=AuditBook(SqlAuditTrail(stores.database)),
        authentication=authentication,
        batches=_batches(parts, authentication),
        cache=cache,
        checks=checks,
        client_registry=_client_registry(parts),
        clients=_client_proof(parts),
        close=partial(_close, parts, mail, cache),
        compare=stores.heartbeat.beat,
        events=parts.audit,
        feed=_feed(parts),
        health=_health(parts, mail, cache),
        http=settings.http,
        introspection=_introspection(parts, authentication, checks, machines),
        limits=parts.limits,
        machines=machines if settings.machines.is_on else None,
        metrics=parts.metrics,
        own_data=_own_data(parts),
        passkeys=_passkeys(parts, second_factors, authentication),
        polled=stores.redis.polled,
        preferences=PreferenceBook(parts.users, parts.revocations),
        recovery=mail.services if mail else None,
        second_factors=second_factors,
        registration=settings.registration.mode,
        ring=parts.ring,
        sessions=_session_directory(parts),
        start=partial(_start, parts, mail, cache),
        tracing=parts.tracing,
        users=directory,
    )


def _mail(parts: Parts) -> Mailing | None:
    """Like the next two: what the settings switch off is not loaded."""
    if not parts.settings.mail.is_on:
        return None
    from authsvc.wiring.mail import open_mail

    return open_mail(parts)


def _second_factors(
    parts: Parts, opening: SessionOpening, account: OwnAccount
) -> SecondFactorServices | None:
    if not parts.settings.second_factors.is_on:
        return None
    from authsvc.wiring.second_factors import open_second_factors

    return open_second_factors(parts, opening, account)


def _passkeys(
    parts: Parts, second_factors: SecondFactorServices | None, authentication: Authentication
) -> PasskeyServices | None:
    if second_factors is None:
        return None
    from authsvc.wiring.second_factors import open_passkeys

    return open_passkeys(parts, second_factors, authentication)


def _directory(parts: Parts) -> UserDirectory:
    return UserDirectory(
        store=parts.users,
        revocations=parts.revocations,
        audit=parts.audit,
        roles=parts.stores.profile.roles,
    )


def _checks(parts: Parts) -> TokenChecks:
    return TokenChecks(
        reader=parts.reader,
        index=parts.stores.index,
        sessions=parts.sessions,
        machines=SqlMachineTokenStore(parts.stores.database, parts.stores.log),
        observe=parts.metrics.token_check,
        clock=parts.clock,
    )


def _session_directory(parts: Parts) -> SessionDirectory:
    return SessionDirectory(
        store=parts.sessions, revocations=parts.revocations, audit=parts.audit, clock=parts.clock
    )


def _client_registry(parts: Parts) -> ClientRegistry:
    stores = parts.stores
    return ClientRegistry(
        store=SqlClientStore(stores.database, stores.log),
        secrets=SqlSecretStore(stores.database, stores.log),
        revocations=parts.revocations,
        audit=parts.audit,
        clock=parts.clock,
    )


def _client_proof(parts: Parts) -> ClientProof:
    stores = parts.stores
    return ClientProof(
        store=SqlClientStore(stores.database, stores.log),
        uses=SecretUses(SqlSecretStore(stores.database, stores.log), parts.clock, time.monotonic),
        known=RecentClients(time.monotonic),
        limits=parts.limits,
        audit=parts.audit,
    )


def _feed(parts: Parts) -> RevocationFeed:
    log = SqlFeedLog(parts.stores.database, parts.stores.log, parts.clock)
    return RevocationFeed(log, LogWatcher(log, time.monotonic, parts.timings.feed), time.monotonic)


def _own_data(parts: Parts) -> OwnDataExport:
    return OwnDataExport(store=SqlOwnData(parts.stores.database), limits=parts.limits, audit=parts.audit)


def _opening(parts: Parts) -> SessionOpening:
    return SessionOpening(
        credentials=parts.credentials,
        policy=_session_policy(parts),
        signer=TokenSigner(parts.stores.profile, parts.ring),
        refresh_tokens=_refresh_tokens(parts),
        devices=parts.devices,
        issued=parts.stores.index,
        revocations=parts.revocations,
        audit=parts.audit,
        clock=parts.clock,
    )


def _authentication(
    parts: Parts,
    opening: SessionOpening,
    mail: Mailing | None,
    second_factors: SecondFactorServices | None,
) -> Authentication:
    return Authentication(
        users=parts.users,
        credentials=parts.credentials,
        sessions=parts.sessions,
        session_policy=_session_policy(parts),
        password_policy=parts.policy,
        proof=parts.proof,
        reader=parts.reader,
        refresh_tokens=opening.refresh_tokens,
        devices=opening.devices,
        opening=opening,
        second_step=second_factors.login if second_factors else SecondFactorsOff(),
        revocations=parts.revocations,
        limits=parts.limits,
        audit=parts.audit,
        clock=parts.clock,
        verification=mail.services.addresses if mail else None,
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
    return RefreshTokens(revealed(parts.settings.tokens.secret))


def _machines(parts: Parts) -> MachineTokens:
    stores = parts.stores
    return MachineTokens(
        signer=TokenSigner(stores.profile, parts.ring),
        store=SqlMachineTokenStore(stores.database, stores.log),
        issued=stores.index,
        revocations=parts.revocations,
        limits=parts.limits,
        audit=parts.audit,
        clock=parts.clock,
    )


def _introspection(
    parts: Parts, authentication: Authentication, checks: TokenChecks, machines: MachineTokens
) -> Introspection:
    return Introspection(
        checks=checks,
        machines=machines,
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
        policy=parts.policy,
        revocations=parts.revocations,
        devices=parts.devices,
        audit=parts.audit,
        clock=parts.clock,
    )


def _health(parts: Parts, mail: Mailing | None, cache: CacheAdmin) -> Health:
    stores = parts.stores

    def details() -> dict[str, Any]:
        return {
            "breakers": {"redis": stores.redis.client.state.value, "database": stores.database.state.value},
            "pool": stores.database.pool_figures(),
            "keys": cache.monitor.key_count(),
            "revocations": {"known": max(proof.known for proof in stores.redis.proofs.each)},
            "hashing_queue": parts.lane.queue_depth,
            "mail": mail.run.state() if mail else "off",
        }

    probes = Probes(
        proven_shards=stores.index.proven_shards,
        shards=len(stores.redis.names.each),
        sql=stores.database.ping,
        is_in_memory=parts.settings.redis.is_in_memory,
        is_cache_enabled=parts.settings.cache.is_enabled,
        totals=parts.metrics.cache_totals,
        details=details,
        has_keys=lambda: bool(parts.ring().keys),
    )
    return Health(
        probes=probes,
        answers=parts.answers,
        timings=parts.timings.health,
        clock=parts.clock,
        monotonic=time.monotonic,
        started=stores.heartbeat.has_begun,
    )


def _start(parts: Parts, mail: Mailing | None, cache: CacheAdmin) -> None:
    """
    Begin what only a process that serves may have, after the fork: files of metrics, and the threads.
    """
    parts.metrics.start()
    logs.count_drops(parts.metrics.log_dropped)
    parts.tracing.start()
    parts.ring.start()
    settings, heartbeat = parts.settings.cache, parts.stores.heartbeat
    if settings.is_enabled and settings.is_warmup_enabled:
        heartbeat.when_begun(cache.warming.start)
    heartbeat.start()
    if mail is not None:
        mail.thread.start()


def _close(parts: Parts, mail: Mailing | None, cache: CacheAdmin) -> None:
    if mail is not None:
        mail.thread.close()
    cache.warming.close()
    parts.lane.close()
    parts.audit.writer.close()
    parts.stores.close()
    parts.tracing.close()
