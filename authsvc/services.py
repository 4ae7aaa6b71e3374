"""Everything that a view may call, in one frozen record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from authsvc.domain.authentication import Authentication
from authsvc.domain.batches import Batches
from authsvc.domain.credentials import OwnAccount
from authsvc.domain.preferences import PreferenceBook
from authsvc.domain.ratelimits import Limits
from authsvc.domain.sessions import SessionDirectory
from authsvc.domain.tokens.checks import TokenChecks
from authsvc.domain.tokens.keys import KeyRing
from authsvc.domain.users import UserDirectory
from authsvc.observability.health import Health
from authsvc.observability.metrics import Metrics
from authsvc.store.copies.admin import CacheAdmin


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Made by wiring, one per process, after the fork."""

    authentication: Authentication
    checks: TokenChecks
    account: OwnAccount
    batches: Batches
    cache: CacheAdmin
    users: UserDirectory
    preferences: PreferenceBook
    sessions: SessionDirectory
    limits: Limits
    ring: Callable[[], KeyRing]
    health: Health
    metrics: Metrics
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    metrics_port: int
    has_docs: bool
    #: Compare Redis with SQL once, now; True if Redis is proven.
    compare: Callable[[], bool]
    #: Begin what runs in the background; once, in the process that serves.
    start: Callable[[], None]
    #: Stop it and let connections go.
    close: Callable[[], None]
