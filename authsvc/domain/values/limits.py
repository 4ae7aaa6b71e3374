"""A limit, and an attempt against it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """At most *quota* attempts in any *window_s* seconds; *name* is public (``login-ip``)."""

    name: str
    quota: int
    window_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """
    One attempt against one limit: counted, or refused.

    ``remaining`` attempts are left; ``reset_s`` (seconds, rounded up) until the next attempt is
    possible when refused, or until the oldest counted attempt leaves the window when allowed.
    ``receipt`` names the counted attempt, for ``RateLimiter.refund``; empty when refused.
    """

    limit: Limit
    subject: str
    allowed: bool
    remaining: int
    reset_s: int
    receipt: str = ""
