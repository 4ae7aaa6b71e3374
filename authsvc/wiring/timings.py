"""Time limits and lives, as one value per process; tests pass another value."""

from __future__ import annotations

from dataclasses import dataclass, field

from authsvc.cache.redis.connections import Deadlines
from authsvc.domain.accounts.mails import MailTimings
from authsvc.domain.feed import FeedTimings
from authsvc.domain.passwords.lane import HashingTimings
from authsvc.mail import SmtpTimings
from authsvc.observability.health import HealthTimings
from authsvc.observability.trail import TrailTimings
from authsvc.store.copies.heartbeat import HeartbeatTimings
from authsvc.store.copies.marker import MarkerTimings
from authsvc.store.copies.users import CopyTimings
from authsvc.store.key_folder import FolderTimings
from authsvc.store.sql import SqlTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The time limits and lives of each part. They depend on each other, so they are not settings."""

    sql: SqlTimings = field(default_factory=SqlTimings)
    redis: Deadlines = field(default_factory=Deadlines)
    copies: CopyTimings = field(default_factory=CopyTimings)
    marker: MarkerTimings = field(default_factory=MarkerTimings)
    heartbeat: HeartbeatTimings = field(default_factory=HeartbeatTimings)
    keys: FolderTimings = field(default_factory=FolderTimings)
    hashing: HashingTimings = field(default_factory=HashingTimings)
    health: HealthTimings = field(default_factory=HealthTimings)
    trail: TrailTimings = field(default_factory=TrailTimings)
    feed: FeedTimings = field(default_factory=FeedTimings)
    mail: MailTimings = field(default_factory=MailTimings)
    smtp: SmtpTimings = field(default_factory=SmtpTimings)
