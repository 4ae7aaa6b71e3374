"""What reaches Flask is what a gateway in front would have read, and is counted in bounded words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: What an invented method is called from here on: each would be a metric of its own otherwise.
OTHER = "OTHER"


@dataclass(frozen=True, slots=True)
class PlainRequests:
    """
    Hands requests on under a known method and a path as it was sent.

    werkzeug reads ``//v1/me`` as ``/v1/me``: rules by prefix in a gateway would be sidestepped.
    """

    application: WSGIApplication

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application (PEP 3333)."""
        if environ["REQUEST_METHOD"] not in METHODS:
            environ["REQUEST_METHOD"] = OTHER
        if environ.get("PATH_INFO", "").startswith("//"):
            environ["PATH_INFO"] = "/." + environ["PATH_INFO"]
        return self.application(environ, start_response)
