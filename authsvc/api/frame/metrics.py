"""The metrics port: the same processes serve it; the port of the request tells it apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from authsvc.api.frame.context import request_id_of
from authsvc.api.frame.errors import NOT_STORED, Problem, answer
from authsvc.observability.metrics import Metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


@dataclass(frozen=True, slots=True)
class MetricsPort:
    """Answers ``/metrics`` on *port*, and nothing else there; passes requests to other ports on."""

    application: WSGIApplication
    metrics: Metrics
    port: int

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application (PEP 3333); the server takes SERVER_PORT from the socket, not from a header."""
        if environ.get("SERVER_PORT") != str(self.port):
            return self.application(environ, start_response)
        request_id = request_id_of(environ)
        if environ.get("PATH_INFO") != "/metrics":
            return answer(Problem(status=404, code="not_found"), request_id, environ, start_response)
        body, media_type = self.metrics.exposition()
        own = [
            ("Content-Type", media_type),
            ("Content-Length", str(len(body))),
            ("X-Request-Id", request_id),
        ]
        start_response("200 OK", [*NOT_STORED, *own])
        return (b"" if environ["REQUEST_METHOD"] == "HEAD" else body,)
