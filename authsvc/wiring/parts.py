"""What several services share: the stores, the users, the keys, the limits, the audit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from authsvc.domain.credentials import PasswordProof
from authsvc.domain.passwords.hasher import PasswordHasher
from authsvc.domain.passwords.lane import BoundedPasswords, HashingLane, LaneSize
from authsvc.domain.passwords.policy import PasswordPolicy
from authsvc.domain.ratelimits import CLIENT_IP_LIMIT, Limits, Rule
from authsvc.domain.revocations import Revocations
from authsvc.domain.tokens.access import TokenReader
from authsvc.domain.tokens.derived import KeyPurpose, derived_key
from authsvc.domain.tokens.devices import DeviceTokens
from authsvc.domain.users import UserStore
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.limits import Limit
from authsvc.observability.audit import RecordedAudit
from authsvc.observability.health import LastAnswers
from authsvc.observability.metrics import Metrics, make_metrics
from authsvc.observability.tracing import Tracing, open_tracing
from authsvc.observability.trail import TrailWriter
from authsvc.settings import Settings, available_cores, revealed
from authsvc.store.accounts.credentials import SqlCredentialStore
from authsvc.store.accounts.mails import Notices
from authsvc.store.accounts.users import SqlUserStore
from authsvc.store.audit import SqlAuditTrail
from authsvc.store.copies.users import CachedCredentialStore
from authsvc.store.key_folder import KeyFolder
from authsvc.store.ratelimits import RedisRateLimiter
from authsvc.store.sessions import SqlSessionStore
from authsvc.wiring.caching import cached_users
from authsvc.wiring.stores import Stores, open_stores
from authsvc.wiring.timings import Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What several services share; made once for a process, before the services."""

    settings: Settings
    stores: Stores
    ring: KeyFolder
    reader: TokenReader
    sessions: SqlSessionStore
    credentials: SqlCredentialStore
    users: UserStore
    revocations: Revocations
    audit: RecordedAudit
    limits: Limits
    lane: HashingLane
    proof: PasswordProof
    policy: PasswordPolicy
    devices: DeviceTokens
    metrics: Metrics
    tracing: Tracing
    answers: LastAnswers
    clock: Clock
    timings: Timings


def make_parts(settings: Settings, clock: Clock, answers: LastAnswers, timings: Timings) -> Parts:
    """All parts of one process; opens no connection."""
    metrics = make_metrics()
    tracing = open_tracing(settings.tracing, now_ns=time.time_ns)
    stores = open_stores(settings, timings, metrics, tracing, answers, clock)
    audit = _audit(settings, timings, stores, metrics, clock)
    ring = KeyFolder(settings.tokens.keys_dir, time.monotonic, audit, timings.keys)
    notices = Notices(are_sent=settings.mail.is_on)
    sql_users = SqlUserStore(stores.database, stores.log, clock, notices)
    limits = Limits(_limits(settings), RedisRateLimiter(stores.redis.client, stores.redis.keys), audit)
    lane = _lane(settings, timings, metrics)
    hasher = PasswordHasher(revealed(settings.passwords.pepper), settings.passwords.bcrypt_cost)
    return Parts(
        settings=settings,
        stores=stores,
        ring=ring,
        reader=TokenReader(stores.profile, ring),
        sessions=SqlSessionStore(stores.database, stores.log, clock),
        credentials=_credentials(settings, stores, clock, notices),
        users=cached_users(settings, timings, stores.redis, sql_users, metrics),
        revocations=Revocations(stores.index, stores.redis.proofs),
        audit=audit,
        limits=limits,
        lane=lane,
        proof=PasswordProof(passwords=BoundedPasswords(hasher, lane), limits=limits, audit=audit),
        policy=PasswordPolicy(min_length=settings.passwords.min_length),
        devices=DeviceTokens(_derived(settings, KeyPurpose.DEVICE_TOKENS)),
        metrics=metrics,
        tracing=tracing,
        answers=answers,
        clock=clock,
        timings=timings,
    )


def _derived(settings: Settings, purpose: KeyPurpose) -> bytes:
    return derived_key(revealed(settings.tokens.secret), purpose)


def _audit(
    settings: Settings, timings: Timings, stores: Stores, metrics: Metrics, clock: Clock
) -> RecordedAudit:
    trail = SqlAuditTrail(stores.database)
    writer = TrailWriter(trail, on_unwritten=metrics.audit_unwritten, timings=timings.trail)
    return RecordedAudit(
        metrics=metrics, key=_derived(settings, KeyPurpose.LOG_DIGESTS), writer=writer, clock=clock
    )


def _credentials(settings: Settings, stores: Stores, clock: Clock, notices: Notices) -> SqlCredentialStore:
    if not settings.cache.is_enabled:
        return SqlCredentialStore(stores.database, stores.log, clock, notices)
    return CachedCredentialStore(stores.database, stores.log, clock, notices, caches=stores.redis.user_caches)


def _lane(settings: Settings, timings: Timings, metrics: Metrics) -> HashingLane:
    def done(seconds: float) -> None:
        metrics.password_hash(seconds)
        metrics.password_hash_queue(lane.queue_depth)

    size = LaneSize.shared_by(settings.http.workers, cores=available_cores(), timings=timings.hashing)
    lane = HashingLane(size, clock=time.monotonic, on_done=done)
    return lane


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
        Rule.TOKEN_CLIENT: settings.limits.token_client,
        Rule.SECOND_FACTOR: settings.limits.second_factor,
    }
    in_force = {
        rule: Limit(name=rule.value, quota=limit.quota, window_s=limit.window_s)
        for rule, limit in by_rule.items()
        if limit is not None
    }
    return {**in_force, Rule.CLIENT_IP: CLIENT_IP_LIMIT}
