"""Request bodies: read strictly and within limits, then checked by a schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, ParamSpec, TypeVar
from urllib.parse import parse_qsl

from flask import Request
from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow import Schema, ValidationError
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import (
    BadRequest,
    RequestEntityTooLarge,
    UnprocessableEntity,
    UnsupportedMediaType,
)

from authsvc.api.frame.errors import NotJson, ProblemView, Shape
from authsvc.domain.values.jsontext import InvalidJson, Json, parse
from authsvc.domain.values.problems import MEDIA_TYPE

P = ParamSpec("P")
R = TypeVar("R")

MAX_BYTES = 64 * 1024
#: Bytes that are read: one more than allowed, because werkzeug silently cuts a chunked body at its limit.
READ_BYTES = MAX_BYTES + 1
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
FORM = "application/x-www-form-urlencoded"
#: Largest number of parameters of a form; real ones have a few.
MAX_PARAMETERS = 32
_PROBLEM = ProblemView()


class Body(Shape):
    """A JSON object in a request; unknown members are refused."""

    #: Accepted media types.
    media_types: ClassVar[tuple[str, ...]] = (JSON,)


class Encoded(UnsupportedMediaType):
    """The body is compressed; the answer says that no content coding is accepted (RFC 9110 §15.5.16)."""

    def get_headers(self, *args: Any, **options: Any) -> list[tuple[str, str]]:
        """Return the headers with ``Accept-Encoding``."""
        return [*super().get_headers(*args, **options), ("Accept-Encoding", "identity")]


class StrictParser(FlaskParser):
    """webargs with strict JSON (RFC 8259): UTF-8 alone, no duplicate names, no NaN, limited depth."""

    #: The schema decides about unknown names everywhere; webargs would drop those of a query.
    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {}  # noqa: RUF012 - as webargs declares it

    def load_json(self, req: Request, schema: Schema) -> Any:
        """The decoded body; raises 400, 413 or 415 if it cannot be read."""
        return read_json(req, getattr(schema, "media_types", (JSON,)))


class Blueprint(SmorestBlueprint):
    """A blueprint whose views read bodies with the strict parser; set the parser before declaring views."""

    ARGUMENTS_PARSER = StrictParser()

    def arguments(
        self, schema: type[Schema], **options: Any
    ) -> Callable[[Callable[..., R]], Callable[..., R]]:
        """Have the parser load *schema* from the request; the schema is made once, not for each request."""
        read: Callable[[Callable[..., R]], Callable[..., R]] = super().arguments(schema(), **options)
        return read

    def doc(self, **described: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Add *described* to the description of a view."""
        return _describing(super().doc(**described))

    def alt_response(self, *args: Any, **described: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Document another answer of a view."""
        return _describing(super().alt_response(*args, **described))

    def refuses(self, status: int, codes: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Document that a view may answer *status* with the problem codes *codes*."""
        return self.alt_response(status, schema=_PROBLEM, content_type=MEDIA_TYPE, description=codes)


def _describing(decorate: Callable[[Any], Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """*decorate*, which only describes a view, without the call that it would add to every request."""

    def describe(view: Callable[P, R]) -> Callable[P, R]:
        view._apidoc = decorate(view)._apidoc  # type: ignore[attr-defined]  # noqa: SLF001 - where flask-smorest looks
        return view

    return describe


def json_body(value: object) -> bytes:
    """Return *value* as Flask writes it, for answers that do not come from Flask."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def read_json(req: Request, media_types: tuple[str, ...] = (JSON,)) -> Json:
    """Decode the body of *req*; raises 413 beyond MAX_BYTES, 415 for another type or charset, else 400."""
    data = _read(req, media_types)
    try:
        return parse(data)
    except InvalidJson as error:
        raise NotJson(str(error)) from error


def read_form(req: Request) -> dict[str, str]:
    """
    The parameters in the body of *req* (RFC 6749 §3.2): one without a value counts as left out.

    Raises 413 beyond MAX_BYTES, 415 for another type or charset, 400 for a parameter that comes twice, for
    too many of them and for what is not UTF-8.
    """
    data = _read(req, (FORM,))
    try:
        pairs = parse_qsl(
            data.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except ValueError as error:
        raise BadRequest from error
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise BadRequest
    return {name: value for name, value in parameters.items() if value}


def _read(req: Request, media_types: tuple[str, ...]) -> bytes:
    """The body of *req*; raises 413 beyond MAX_BYTES, 415 for another type, charset or coding."""
    if req.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Encoded
    data = req.get_data(cache=True)
    if len(data) > MAX_BYTES:
        raise RequestEntityTooLarge
    charset = req.mimetype_params.get("charset", "utf-8").lower()
    if (data or req.mimetype) and (req.mimetype not in media_types or charset not in {"utf-8", "utf8"}):
        raise UnsupportedMediaType
    return data


def load(schema: Schema, data: Json) -> Any:
    """*data*, loaded by *schema*; raises 422 with the messages for each field."""
    try:
        return schema.load(data)  # type: ignore[arg-type]  # whatever is no object is refused by it
    except ValidationError as error:
        refusal = UnprocessableEntity()
        refusal.data = {"messages": error.messages}  # type: ignore[attr-defined]  # as webargs does
        raise refusal from error
