"""Introspection of a token (RFC 7662), used if the known revocations are too old."""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from authsvc.verifier.claims import CommonClaims
from authsvc.verifier.errors import Unavailable
from authsvc.verifier.transport import Connection, Origin, TransportError

PATH: Final = "/v1/oauth2/introspect"


class Introspection:
    """Introspects tokens, with at most *places* requests at a time, each within *deadline_s* seconds."""

    def __init__(self, origin: Origin, *, places: int, deadline_s: float) -> None:
        self._origin = origin
        self._deadline_s = deadline_s
        self._places = threading.BoundedSemaphore(places)
        self._idle: list[Connection] = []

    def is_active(self, token: str, claims: CommonClaims) -> bool:
        """
        Whether *token*, which has *claims*, is valid now.

        Raises:
            Unavailable: too many requests, no answer, or an invalid one.
        """
        if not self._places.acquire(timeout=self._deadline_s):
            raise Unavailable("introspection: too many at once")
        try:
            return self._ask(token, claims)
        except (TransportError, ValueError) as error:
            raise Unavailable(f"introspection: {error}") from error
        finally:
            self._places.release()

    def close(self) -> None:
        """Close idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _connection(self) -> Connection:
        """A connection that is idle, else a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            return Connection(self._origin)

    def _ask(self, token: str, claims: CommonClaims) -> bool:
        form = urlencode({"token": token, "token_type_hint": "access_token"})
        connection = self._connection()
        answer = connection.request("POST", PATH, body=form, deadline_s=self._deadline_s)
        self._idle.append(connection)
        if answer.status != HTTPStatus.OK:
            raise TransportError(f"status {answer.status}")
        found = json.loads(answer.body)
        is_active = found.get("active") if isinstance(found, dict) else None
        if not isinstance(is_active, bool):
            raise TransportError("not an introspection")
        return is_active and found.get("jti") == claims.token_id
