"""Field types that several schemas share."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, ClassVar

from marshmallow import fields, validate

from authsvc.api.frame.errors import Shape
from authsvc.domain.values.clocks import rfc3339
from authsvc.domain.values.identifiers import canonical_id

#: A UTC offset whose ``+`` was not escaped: in a query it is decoded as a space.
_LOST_PLUS = re.compile(r" (?=[0-9]{2}:[0-9]{2}\Z)")


#: Decimal digits without sign, space or leading zero; for seconds with three digits behind the point.
_WHOLE = re.compile(r"0|[1-9][0-9]{0,8}")
_SECONDS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3})?")


class View(Shape):
    """An answer. All fields are always present, except those that *sometimes* names."""

    sometimes: ClassVar[frozenset[str]] = frozenset()

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """Mark the field as required in the description."""
        field_obj.required = field_name not in self.sometimes


class Whole(fields.Integer):
    """A whole number in a query, from *least* to *most*."""

    def __init__(self, least: int, most: int, **options: Any) -> None:
        super().__init__(validate=validate.Range(least, most), **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if not isinstance(value, str) or not _WHOLE.fullmatch(value):
            raise self.make_error("invalid")
        return int(value)


class Seconds(fields.Float):
    """Seconds in a query, *most* at most, to the millisecond."""

    def __init__(self, most: float, **options: Any) -> None:
        super().__init__(validate=validate.Range(0, most), **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float:
        if not isinstance(value, str) or not _SECONDS.fullmatch(value):
            raise self.make_error("invalid")
        return float(value)


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
