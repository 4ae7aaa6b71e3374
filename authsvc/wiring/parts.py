"""What several services share."""

from __future__ import annotations

from dataclasses import dataclass

from authsvc.domain.credentials import PasswordProof
from authsvc.domain.passwords.lane import HashingLane
from authsvc.domain.ratelimits import Limits
from authsvc.domain.revocations import Revocations
from authsvc.domain.tokens.access import TokenReader
from authsvc.domain.users import UserStore
from authsvc.domain.values.clocks import Clock
from authsvc.observability.audit import RecordedAudit
from authsvc.observability.health import LastAnswers
from authsvc.observability.metrics import Metrics
from authsvc.observability.tracing import Tracing
from authsvc.settings import Settings
from authsvc.store.key_folder import KeyFolder
from authsvc.store.sessions import SqlSessionStore
from authsvc.store.users import SqlCredentialStore
from authsvc.wiring.stores import Stores


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Made once for a process, before the services."""

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
    metrics: Metrics
    tracing: Tracing
    answers: LastAnswers
    clock: Clock
