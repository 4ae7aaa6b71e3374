"""Give Flask the same path that a gateway sees, and only known methods, which bounds the metric labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: Replaces unknown methods: otherwise each would become a metric label.
OTHER = "OTHER"


@dataclass(frozen=True, slots=True)
class PlainRequests:
    """
    Passes requests on with a known method and with the path as it was sent.

    werkzeug reads ``//v1/me`` as ``/v1/me``: a gateway's rules by path prefix could be bypassed.
    """

    application: WSGIApplication

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application (PEP 3333)."""
        if environ["REQUEST_METHOD"] not in METHODS:
            environ["REQUEST_METHOD"] = OTHER
        if environ.get("PATH_INFO", "").startswith("//"):
            environ["PATH_INFO"] = "/." + environ["PATH_INFO"]
        return self.application(environ, start_response)
