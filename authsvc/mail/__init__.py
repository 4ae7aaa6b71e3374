"""Mail: templates, transports, and the thread that sends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpTimings:
    """Time limits for the relay (seconds)."""

    connect_s: float = 5.0
    #: For each reply, and for a whole mail.
    reply_s: float = 10.0
    total_s: float = 30.0
    #: For the reply to QUIT: the mail is accepted by then.
    goodbye_s: float = 1.0
