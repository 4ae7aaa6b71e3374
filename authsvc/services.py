"""Everything that a view may call, in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from authsvc.domain.accounts.addresses import Addresses
    from authsvc.domain.accounts.challenges import ChallengeTexts
    from authsvc.domain.accounts.factors import FactorBook, TotpEnrolments
    from authsvc.domain.accounts.own_data import OwnDataExport
    from authsvc.domain.accounts.passkeys import PasskeyBook, PasskeyLogin
    from authsvc.domain.accounts.recovery import Recovery
    from authsvc.domain.accounts.second_factor import SecondFactors, SecondLogin
    from authsvc.domain.accounts.step_up import Freshness, StepUps
    from authsvc.domain.audit import AuditBook, AuditLog
    from authsvc.domain.authentication import Authentication
    from authsvc.domain.batches import Batches
    from authsvc.domain.client_authentication import ClientProof
    from authsvc.domain.clients import ClientRegistry
    from authsvc.domain.credentials import OwnAccount
    from authsvc.domain.feed import RevocationFeed
    from authsvc.domain.preferences import PreferenceBook
    from authsvc.domain.ratelimits import Limits
    from authsvc.domain.sessions import SessionDirectory
    from authsvc.domain.tokens.checks import PolledIndex, TokenChecks
    from authsvc.domain.tokens.introspection import Introspection
    from authsvc.domain.tokens.keys import KeySource
    from authsvc.domain.tokens.machines import MachineTokens
    from authsvc.domain.users import UserDirectory
    from authsvc.domain.values.levels import Requirement
    from authsvc.observability.health import Health
    from authsvc.observability.metrics import Metrics
    from authsvc.observability.tracing import Tracing
    from authsvc.settings import HttpSettings, RegistrationMode
    from authsvc.store.copies.admin import CacheAdmin


@dataclass(frozen=True, slots=True)
class RecoveryServices:
    """Services that send mails; None unless mails are configured."""

    recovery: Recovery
    addresses: Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactorServices:
    """Second-factor services; None unless SECOND_FACTORS is on."""

    factors: FactorBook
    enrolments: TotpEnrolments
    #: Verifies second factors, for a login and for a step-up.
    second: SecondFactors
    login: SecondLogin
    challenges: ChallengeTexts
    step_ups: StepUps
    freshness: Freshness
    #: Operations of admins.
    admin_level: Requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyServices:
    """Passkey services; None unless second factors are on and WEBAUTHN_RP_ID is set."""

    book: PasskeyBook
    login: PasskeyLogin


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """All services of a process; wiring makes them, maybe in the process that forks the serving ones."""

    audit: AuditBook
    events: AuditLog
    authentication: Authentication
    checks: TokenChecks
    #: Redis reads of the check lane; None without one.
    polled: PolledIndex | None
    account: OwnAccount
    batches: Batches
    cache: CacheAdmin
    clients: ClientProof
    client_registry: ClientRegistry
    feed: RevocationFeed
    introspection: Introspection
    registration: RegistrationMode
    #: Issues tokens to clients; None where MACHINES is off.
    machines: MachineTokens | None
    #: None where MAIL_TRANSPORT is off.
    recovery: RecoveryServices | None
    #: None where SECOND_FACTORS is off.
    second_factors: SecondFactorServices | None
    #: None where there is no WEBAUTHN_RP_ID.
    passkeys: PasskeyServices | None
    users: UserDirectory
    own_data: OwnDataExport
    preferences: PreferenceBook
    sessions: SessionDirectory
    limits: Limits
    ring: KeySource
    health: Health
    metrics: Metrics
    tracing: Tracing
    http: HttpSettings
    #: Compare Redis with SQL once, now; True if Redis is proven.
    compare: Callable[[], bool]
    #: Start the background threads; called once in each process that serves requests, after the fork.
    start: Callable[[], None]
    #: Stop the background threads and close all connections.
    close: Callable[[], None]
