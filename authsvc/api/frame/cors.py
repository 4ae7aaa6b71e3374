"""CORS (Fetch standard): which origins may read answers; no cookies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from authsvc.api.frame.context import DEVICE_HEADER, request_id_of
from authsvc.api.frame.plain import METHODS

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Public documents: every origin may read them.
WELL_KNOWN = "/.well-known/"
#: How long a browser may remember the answer to a preflight (seconds).
MAX_AGE_S = 600

_REQUEST_HEADERS = ("Authorization", "Content-Type", "If-Match", "X-Request-Id", DEVICE_HEADER)
_RESPONSE_HEADERS = (
    *("ETag", "Location", "Retry-After", "RateLimit", "RateLimit-Policy"),
    *("WWW-Authenticate", "X-Request-Id", DEVICE_HEADER),
)
_PREFLIGHT = [
    ("Access-Control-Allow-Methods", ", ".join(sorted(METHODS - {"OPTIONS"}))),
    ("Access-Control-Allow-Headers", ", ".join(_REQUEST_HEADERS)),
    ("Access-Control-Max-Age", str(MAX_AGE_S)),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
]
_EXPOSED = ("Access-Control-Expose-Headers", ", ".join(_RESPONSE_HEADERS))
_VARY = ("Vary", "Origin")


@dataclass(frozen=True, slots=True)
class CrossOrigin:
    """
    Adds the headers of CORS to what *application* answers, and answers preflights.

    *origins* are compared exactly.  Token checks must bypass this: a gateway that forwards an ``OPTIONS``
    request would take the 204 for success.
    """

    application: WSGIApplication
    origins: frozenset[str]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application (PEP 3333)."""
        headers = self._headers(environ)
        is_allowed = headers not in ([], [_VARY])
        if is_allowed and _is_preflight(environ):
            identified = ("X-Request-Id", request_id_of(environ))
            start_response("204 No Content", [*headers, *_PREFLIGHT, identified])
            return ()

        def start(
            status: str, own: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
        ) -> Callable[[bytes], object]:
            return start_response(status, [*own, *headers], exc_info)

        return self.application(environ, start if headers else start_response)

    def _headers(self, environ: WSGIEnvironment) -> list[tuple[str, str]]:
        """The CORS headers of every answer to this request."""
        if environ.get("PATH_INFO", "").startswith(WELL_KNOWN):
            is_read = environ["REQUEST_METHOD"] in {"GET", "HEAD"} or _is_preflight(environ)
            return [("Access-Control-Allow-Origin", "*"), _EXPOSED] if is_read else []
        origin = environ.get("HTTP_ORIGIN")
        if origin in self.origins:
            return [("Access-Control-Allow-Origin", origin), _EXPOSED, _VARY]
        return [_VARY] if self.origins else []


def _is_preflight(environ: WSGIEnvironment) -> bool:
    return (
        environ["REQUEST_METHOD"] == "OPTIONS"
        and "HTTP_ORIGIN" in environ
        and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
    )
