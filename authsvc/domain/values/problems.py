"""Problem details: the body of all errors (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

MEDIA_TYPE: Final = "application/problem+json"


def problem_body(
    status: int,
    code: str,
    *,
    kind: str = "",
    detail: str = "",
    request_id: str = "",
    errors: Mapping[str, Sequence[str]] | None = None,
    members: Mapping[str, object] | None = None,
) -> bytes:
    """
    The body of an error; *kind* is its ``type``, by default derived from *code*.  Empty members are left out.
    *members* are further members of this error. Nothing here may be copied from the request.
    """
    told = {
        "type": kind or f"urn:authsvc:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "errors": errors,
    }
    present = {name: value for name, value in told.items() if value}
    return json.dumps({**present, **(members or {})}).encode() + b"\n"
