"""A service that verifies tokens by itself: ``verified_application.py PORT``, with its options on stdin."""

from __future__ import annotations

import json
import sys
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from authsvc.verifier import Options, Verifier, VerifierError, WhenStale, refusal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Threaded(ThreadingMixIn, WSGIServer):
    """A thread for each request."""

    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        """Bind without asking for the name of the machine."""
        self.allow_reuse_address = True
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", int(self.server_address[1])
        self.setup_environ()


def application(verifier: Verifier) -> Any:
    """Who is asking, and at ``/lag`` how old what is known is."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/lag":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(min(verifier.lag_s, 1e9)).encode()]
        try:
            claims = verifier.authenticate(environ.get("HTTP_AUTHORIZATION"))
        except VerifierError as error:
            refused = refusal(error)
            start_response(f"{refused.status} Refused", list(refused.headers))
            return [refused.body]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [claims.user_id.encode()]

    return answer


def main(port: str) -> None:
    """Serve until killed."""
    given = json.load(sys.stdin)
    options = Options(**given | {"when_stale": WhenStale(given.get("when_stale", "refuse"))})
    server = Threaded(("127.0.0.1", int(port)), Quiet)
    server.set_app(application(Verifier(options)))
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
