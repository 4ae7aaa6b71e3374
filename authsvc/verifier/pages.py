"""One answer of the revocation feed. An item that is not understood is an error, never skipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from authsvc.domain.values.identifiers import is_id
from authsvc.verifier.known import News, Until

T = TypeVar("T")

_SUBJECTS = {"session": "session_id", "token": "token_id", "user": "user_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """
    A part of the feed.

    Nothing is missing from it that was revoked before the request was sent plus ``waited_s`` (seconds,
    negative for before), unless ``has_more``.
    """

    news: tuple[News, ...]
    cursor: str
    is_reset: bool
    has_more: bool
    waited_s: float
    retry_after_s: float


def read_page(body: bytes, now: Until) -> Page:
    """*body*, received *now*; raises ValueError for anything but a page."""
    try:
        document = json.loads(body)
        return Page(
            news=tuple(_news(item, now) for item in document["items"]),
            cursor=_typed(document["cursor"], str),
            is_reset=_typed(document["reset"], bool),
            has_more=_typed(document["has_more"], bool),
            waited_s=_typed(document["waited_ms"], int) / 1000,
            retry_after_s=_typed(document["retry_after_ms"] or 0, int) / 1000,
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a page of the feed") from error


def _news(item: Mapping[str, Any], now: Until) -> News:
    kind = item["kind"]
    subject = item[_SUBJECTS[kind]]
    if not is_id(subject):
        raise ValueError("not an identifier")
    until_s = datetime.fromisoformat(item["until"]).timestamp()
    return News(
        kind=kind,
        subject=subject,
        epoch=_typed(item["epoch"], int) if kind == "user" else 0,
        until=Until(until_s, now.monotonic_s + until_s - now.wall_s),
    )


def _typed(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(kind.__name__)
    return value
