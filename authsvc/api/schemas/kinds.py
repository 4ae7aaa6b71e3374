"""Kinds of values that several shapes share: how each is read, written and described."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from marshmallow import fields

from authsvc.domain.values.clocks import rfc3339
from authsvc.domain.values.identifiers import canonical_id

#: An offset whose plus was sent as it is: in a query that means a space.
_LOST_PLUS = re.compile(r" (?=[0-9]{2}:[0-9]{2}\Z)")


class Identifier(fields.UUID):
    """A UUID in either case, loaded as text in lower case."""

    default_error_messages = {"invalid_uuid": "Not an id."}  # noqa: RUF012 - as marshmallow declares it

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        found = canonical_id(value) if isinstance(value, str) else None
        if found is None:
            raise self.make_error("invalid_uuid")
        return found


class Time(fields.AwareDateTime):
    """A time as every answer writes it."""

    def _serialize(self, value: datetime | None, *_: Any, **__: Any) -> str | None:
        return None if value is None else rfc3339(value)


class TimeInQuery(fields.AwareDateTime):
    """A time with a zone, also one whose ``+`` was not escaped."""

    def _deserialize(self, value: Any, *rest: Any, **more: Any) -> datetime:
        return super()._deserialize(_LOST_PLUS.sub("+", value), *rest, **more)
