"""One request over a connection of its own, timed; a connection that breaks is an answer, too."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage
from typing import TYPE_CHECKING, Any

from tests.processes import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.rig import Service

#: Longer than anybody waits: whoever has not been answered by then never will be.
PATIENCE_S = 25.0
#: The status of what was never answered.
BROKEN = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; *body* is its JSON, None where there is none; ``BROKEN`` is the status of no answer."""

    status: int
    seconds: float
    body: Any
    headers: HTTPMessage

    @property
    def retry_after(self) -> str | None:
        """When to come back, in seconds."""
        return self.headers.get("Retry-After")


def ask(
    service: Service,
    method: str,
    path: str,
    *,
    token: str | None = None,
    json: object = None,
    headers: Mapping[str, str] | None = None,
    patience_s: float = PATIENCE_S,
) -> Answer:
    """One request; the kernel deals its connection to any worker."""
    sent = {"Connection": "close", **(headers or {})}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    data = None
    if json is not None:
        sent["Content-Type"] = "application/json"
        data = _encoded(json)
    connection = HTTPConnection(HOST, service.port, timeout=patience_s)
    began = time.monotonic()
    try:
        connection.request(method, path, body=data, headers=sent)
        response = connection.getresponse()
        raw = response.read()
    except (OSError, HTTPException):
        return Answer(BROKEN, time.monotonic() - began, None, HTTPMessage())
    finally:
        connection.close()
    return Answer(response.status, time.monotonic() - began, _decoded(raw), response.headers)


def _encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def _decoded(raw: bytes) -> Any:
    return json.loads(raw) if raw else None
