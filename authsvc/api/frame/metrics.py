"""The metrics port: the same process, told apart by the port that a request came in on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from authsvc.observability.metrics import Metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


@dataclass(frozen=True, slots=True)
class MetricsPort:
    """Answers ``/metrics`` on *port*, where there is nothing else, and hands all other ports on."""

    application: WSGIApplication
    metrics: Metrics
    port: int

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application (PEP 3333); the server takes SERVER_PORT from the socket, not from a header."""
        if environ.get("SERVER_PORT") != str(self.port):
            return self.application(environ, start_response)
        if environ.get("PATH_INFO") != "/metrics":
            start_response("404 Not Found", [("Content-Length", "0")])
            return (b"",)
        body, media_type = self.metrics.exposition()
        start_response("200 OK", [("Content-Type", media_type), ("Content-Length", str(len(body)))])
        return (body,)
