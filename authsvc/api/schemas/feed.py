"""Schemas of the revocation feed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from marshmallow import RAISE, fields, post_load, validate

from authsvc.api.frame.errors import Shape
from authsvc.api.schemas.kinds import Seconds, Time, View, Whole
from authsvc.domain.feed import MAX_PAGE, MAX_WAIT_S, FeedAnswer, FeedQuery
from authsvc.domain.revocations import Revocation

DEFAULT_LIMIT = 500
#: Longer than any cursor of ours.
CURSOR_LENGTH = 100


class FeedParameters(Shape):
    """The cursor, the time to wait, the size of the page."""

    class Meta:
        """An unknown parameter is an error, not ignored."""

        unknown = RAISE

    after = fields.String(validate=validate.Length(max=CURSOR_LENGTH))
    wait = Seconds(MAX_WAIT_S, load_default=0.0, metadata={"description": "Seconds to wait for news."})
    limit = Whole(1, MAX_PAGE, load_default=DEFAULT_LIMIT)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> FeedQuery:
        """The value for the domain."""
        return FeedQuery(after=data.get("after"), wait_s=data["wait"], limit=data["limit"])


class FeedItem(View):
    """One revocation, and when the last token it concerns expires."""

    sometimes = frozenset({"session_id", "user_id", "epoch", "token_id"})

    kind = fields.String(validate=validate.OneOf(("session", "user", "token")))
    session_id = fields.String()
    user_id = fields.String()
    epoch = fields.Integer(metadata={"description": "Tokens of the user with a lower epoch are revoked."})
    token_id = fields.String()
    until = Time()


class FeedView(View):
    """One page of the feed."""

    items = fields.List(fields.Nested(FeedItem))
    cursor = fields.String()
    reset = fields.Boolean()
    has_more = fields.Boolean()
    waited_ms = fields.Integer()
    retry_after_ms = fields.Integer(allow_none=True)


def shown(answer: FeedAnswer) -> dict[str, object]:
    """*answer* with the members of FeedView."""
    retry_after_s = answer.retry_after_s
    return {
        "items": [item for entry in answer.entries for item in _items(entry)],
        "cursor": answer.cursor.text(),
        "reset": answer.is_reset,
        "has_more": answer.has_more,
        # Rounded down: a reader must not assume that its data is newer than it is.
        "waited_ms": math.floor(answer.waited_s * 1000),
        "retry_after_ms": None if retry_after_s is None else round(retry_after_s * 1000),
    }


def _items(entry: Revocation) -> Iterator[dict[str, object]]:
    """The items of *entry*; a token whose session is listed needs no item of its own."""
    if entry.session_id is not None:
        yield {"kind": "session", "session_id": entry.session_id, "until": entry.expires_at}
    elif entry.token_id is not None:
        yield {"kind": "token", "token_id": entry.token_id, "until": entry.expires_at}
    if entry.epoch is not None:
        yield {"kind": "user", "user_id": entry.user_id, "epoch": entry.epoch, "until": entry.expires_at}
