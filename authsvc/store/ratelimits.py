"""Rate limits in Redis, exact: at most the quota in any window, by the clock of Redis."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import Final, cast

from authsvc.cache import CacheClient, CacheError, CacheUnavailable, KeySpace, Script
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.limits import Attempt, Limit

_log = logging.getLogger(__name__)

#: Random bytes that identify one attempt among those of its key.
RECEIPT_BYTES: Final = 8

_ATTEMPT: Final = Script.load("authsvc.store", "ratelimit_attempt")
_MICROSECONDS: Final = 1_000_000


class RedisRateLimiter:
    """Keys ``auth:rate-limit:<rule>:<subject>``, gone a window after the last attempt; one round trip."""

    def __init__(self, client: CacheClient, keys: KeySpace) -> None:
        self._client = client
        self._keys = keys

    def attempts(self, asked: Sequence[tuple[Limit, str]]) -> list[Attempt | StoreUnavailable]:
        """Count one attempt of each subject unless its limit is exhausted; raises StoreUnavailable."""
        receipts = [secrets.token_urlsafe(RECEIPT_BYTES) for _ in asked]
        commands = [
            _ATTEMPT.command([self._key(limit, subject)], [limit.quota, limit.window_s * 1000, receipt])
            for (limit, subject), receipt in zip(asked, receipts, strict=True)
        ]
        try:
            replies = self._client.pipeline_each(commands).values
        except CacheUnavailable as error:
            raise StoreUnavailable("redis") from error
        return [
            _read(limit, subject, receipt, reply)
            for (limit, subject), receipt, reply in zip(asked, receipts, replies, strict=True)
        ]

    def refund(self, attempt: Attempt) -> None:
        """Uncount *attempt*, once; if that fails, it expires by itself."""
        if not attempt.receipt:
            return
        try:
            self._client.call("ZREM", self._key(attempt.limit, attempt.subject), attempt.receipt)
        except CacheUnavailable as error:
            # The request has succeeded: the caller has one attempt less for a window, but gets the answer.
            _log.warning("limit.refund_lost", extra={"rule": attempt.limit.name, "reason": error.reason})

    def _key(self, limit: Limit, subject: str) -> str:
        return self._keys.space("auth:rate-limit", ttl_s=limit.window_s).key(limit.name, subject)


def _read(limit: Limit, subject: str, receipt: str, reply: object) -> Attempt | StoreUnavailable:
    if isinstance(reply, CacheError):
        return StoreUnavailable("redis")
    counted, remaining, reset_us = cast("list[int]", reply)
    return Attempt(
        limit=limit,
        subject=subject,
        allowed=bool(counted),
        remaining=remaining,
        reset_s=-(-reset_us // _MICROSECONDS),
        receipt=receipt if counted else "",
    )
