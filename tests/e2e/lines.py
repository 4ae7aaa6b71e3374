"""Kept-alive connections to a service, each to the worker that the caller chose."""

from __future__ import annotations

import json
import select
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

from tests.processes import HOST
from tests.rig import HOPELESS_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.rig import Service

NO_BODY = object()


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, with the names of its headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body; None where there is none."""
        return json.loads(self.body) if self.body else None

    @property
    def code(self) -> str:
        """The stable code of a refusal; empty for everything else."""
        return str(self.json["code"]) if self.status >= 400 and self.body else ""

    def __str__(self) -> str:
        return f"{self.status} {self.code}".strip()


class Line:
    """
    One connection to one worker of *service*; what one asks over it, that worker answers.

    It is opened while the other workers are frozen, and again if the server closes it in good order.
    """

    def __init__(self, service: Service, position: int) -> None:
        self._service = service
        self._position = position
        self._connection = HTTPConnection(HOST, service.port, timeout=HOPELESS_S)
        self._open()

    def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: object = NO_BODY,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request as *token*, with *body* as JSON."""
        self.keep_open()
        fields = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = None if body is NO_BODY else json.dumps(body)
        if data is not None:
            fields["Content-Type"] = "application/json"
        self._connection.request(method, path, body=data, headers=fields | dict(headers or {}))
        answer = self._connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())

    def verify(self, token: str) -> Reply:
        """What a gateway is told about *token*."""
        return self.ask("GET", "/v1/auth/verify", token=token)

    def refresh(self, token: str) -> Reply:
        """Trade a refresh token."""
        return self.ask("POST", "/v1/auth/refresh", body={"refresh_token": token})

    def log_in(self, email: str, password: str) -> Reply:
        """Log in."""
        return self.ask("POST", "/v1/auth/login", body={"email": email, "password": password})

    def keep_open(self) -> None:
        """Open it anew if the server closed it, as it does after 75 s of silence; not for two at once."""
        sock = self._connection.sock
        if sock is None or select.select([sock], [], [], 0)[0]:
            self._connection.close()
            self._open()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _open(self) -> None:
        self._service.from_worker(self._position, self._greet)

    def _greet(self) -> None:
        self._connection.connect()
        self._connection.request("GET", "/v1/health/live")
        self._connection.getresponse().read()


@contextmanager
def open_lines(service: Service, *, each: int = 1) -> Iterator[list[Line]]:
    """*each* lines to every worker: neighbours in the list lead to different workers."""
    lines = [Line(service, position) for _ in range(each) for position in range(len(service.workers()))]
    try:
        yield lines
    finally:
        for line in lines:
            line.close()
