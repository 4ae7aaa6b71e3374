"""A service on a port of this machine that says what a test wants, and counts what it is asked."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from authsvc.verifier.transport import Answer
from tests.processes import HOST
from tests.unit.verifier.samples import jwks, page

JWKS, FEED, INTROSPECTION = "/.well-known/jwks.json", "/v1/revocations", "/v1/oauth2/introspect"


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the answer for its path."""

    protocol_version = "HTTP/1.1"
    server: FakeService

    def do_GET(self) -> None:
        """Answer, and count."""
        length = int(self.headers.get("Content-Length", "0"))
        self.server.note(self, self.rfile.read(length).decode())
        answer = self.server.answers[urlsplit(self.path).path](self)
        if answer is None:  # the handler has written what it wanted, or nothing
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | dict(answer.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    do_POST = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class FakeService(ThreadingHTTPServer):
    """A context manager; ``answers`` maps paths to what they answer, None where they write it themselves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[str] = []
        self.connections = 0
        self.over = threading.Event()
        self.news: list[dict[str, Any]] = []
        self.answers: dict[str, Callable[[Any], Answer | None]] = {
            JWKS: lambda _: Answer(200, {"Cache-Control": "max-age=300"}, jwks()),
            FEED: self._feed,
            INTROSPECTION: lambda _: Answer(200, {}, json.dumps({"active": False}).encode()),
        }
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.server_address[1]}"

    def note(self, handler: Handler, body: str) -> None:
        """Count a request."""
        self.asked[urlsplit(handler.path).path] += 1
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        self.bodies.append(body)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count a connection."""
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, *_: Any) -> None:
        """Clients go away here, that is what is tested."""

    def _feed(self, _handler: Handler) -> Answer:
        """Everything that there is, at once and again and again: repeating is harmless."""
        return page(*self.news, retry_after_ms=20)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
        self._thread.join()
