"""
Forward-auth for gateways: the hot path, answered before Flask.

nginx ``auth_request`` and Traefik ForwardAuth send GET, Envoy ext_authz the original method and path
below ours: any method and any sub-path is a check.  No routing, no schema, no body is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from authsvc.api.frame.context import request_id_of
from authsvc.api.frame.docs import VERIFY_PATH
from authsvc.api.frame.errors import MEDIA_TYPE, Problem, problem_of
from authsvc.api.frame.guards import bearer_token
from authsvc.domain.errors import AuthError
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.tokens.checks import TokenChecks, require_roles
from authsvc.observability.logs import bind_request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

_REASONS = {
    401: "401 Unauthorized",
    403: "403 Forbidden",
    500: "500 Internal Server Error",
    503: "503 Service Unavailable",
}
_COMMON = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]


@dataclass(frozen=True, slots=True)
class ForwardAuth:
    """Has checks answered by *answer*, and everything else by *application*; WSGI (PEP 3333), like both."""

    answer: WSGIApplication
    application: WSGIApplication

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Look at the path alone."""
        path: str = environ.get("PATH_INFO", "")
        is_check = path.startswith(VERIFY_PATH) and path[len(VERIFY_PATH) : len(VERIFY_PATH) + 1] in {"", "/"}
        return (self.answer if is_check else self.application)(environ, start_response)


@dataclass(frozen=True, slots=True)
class CheckAnswers:
    """Answers checks, whatever their method and the path behind ours."""

    checks: TokenChecks
    trace_id: Callable[[Mapping[str, Any]], str]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application (PEP 3333)."""
        request_id = request_id_of(environ)
        bind_request(request_id, self.trace_id(environ))
        try:
            token = self._check(environ)
        except AuthError as error:
            return _refuse(problem_of(error), request_id, environ, start_response)
        except Exception:
            # The edge: a gateway takes a 500 for a denial, and the log has the cause.
            log.exception("verify.crashed")
            return _refuse(Problem(status=500, code="internal_error"), request_id, environ, start_response)
        start_response("200 OK", _granted(token, request_id))
        return (b"",)

    def _check(self, environ: WSGIEnvironment) -> AccessToken:
        token = self.checks.check(bearer_token(environ.get("HTTP_AUTHORIZATION")))
        query: str = environ.get("QUERY_STRING", "")
        if query:
            require_roles(token, frozenset(parse_qs(query, keep_blank_values=True).get("role", ())))
        return token


def _granted(token: AccessToken, request_id: str) -> list[tuple[str, str]]:
    """Who is asking, for the service behind the gateway."""
    return [
        ("X-Auth-User-Id", token.user_id),
        ("X-Auth-Session-Id", token.session_id),
        ("X-Auth-Roles", ",".join(token.roles)),
        ("X-Request-Id", request_id),
        ("Content-Length", "0"),
        *_COMMON,
    ]


def _refuse(
    problem: Problem, request_id: str, environ: WSGIEnvironment, start_response: StartResponse
) -> tuple[bytes]:
    body = problem.body(request_id)
    headers = [
        ("Content-Type", MEDIA_TYPE),
        ("Content-Length", str(len(body))),
        ("X-Request-Id", request_id),
        *problem.headers.items(),
        *_COMMON,
    ]
    start_response(_REASONS[problem.status], headers)
    return (b"" if environ.get("REQUEST_METHOD") == "HEAD" else body,)
