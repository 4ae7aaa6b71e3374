"""
Forward-auth for gateways: the hot path, answered before Flask.

nginx ``auth_request`` and Traefik ForwardAuth send GET, Envoy ext_authz the original method and path
below ours: any method and any sub-path is a check.  No routing, no schema, no body is read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from authsvc.api.frame.context import request_id_of
from authsvc.api.frame.docs import VERIFY_ANY_PATH, VERIFY_MACHINE_PATH, VERIFY_PATH
from authsvc.api.frame.errors import NOT_STORED, Problem, answer, problem_of
from authsvc.api.frame.guards import required_bearer
from authsvc.domain.errors import AuthError, Forbidden
from authsvc.domain.tokens.access import MachineToken, Token
from authsvc.domain.tokens.checks import TokenChecks
from authsvc.domain.tokens.demands import Admitted, Demand
from authsvc.domain.values.levels import Acr, Requirement
from authsvc.observability.logs import bind_request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

#: Where gateways ask, and whose tokens are let in there.
CHECK_PATHS = {
    VERIFY_PATH: Admitted.PEOPLE,
    VERIFY_MACHINE_PATH: Admitted.MACHINES,
    VERIFY_ANY_PATH: Admitted.BOTH,
}
_OF_PEOPLE = ("X-Auth-User-Id", "X-Auth-Session-Id", "X-Auth-Roles")
_OF_MACHINES = ("X-Auth-Client-Id", "X-Auth-Scopes")
_ACRS = frozenset(Acr)
#: Whole seconds, without sign and leading zeros.
_AGE = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class ForwardAuth:
    """Has checks answered by *answers*, by their paths, and all else by *application*; WSGI (PEP 3333)."""

    answers: Mapping[str, WSGIApplication]
    application: WSGIApplication

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Look at the path alone."""
        path: str = environ.get("PATH_INFO", "")
        answers = self.answers.get(check_path(path)) if path.startswith(VERIFY_PATH) else None
        return (answers or self.application)(environ, start_response)


def check_path(path: str) -> str:
    """*path* without the sub-path that a gateway appended, if it is that of a check."""
    end = path.find("/", len(VERIFY_PATH))
    return path if end < 0 else path[:end]


@dataclass(frozen=True, slots=True)
class CheckAnswers:
    """Answers checks, whatever their method and the path behind ours."""

    checks: TokenChecks
    trace_id: Callable[[Mapping[str, Any]], str]
    #: False while tokens say nothing of levels.
    has_levels: bool = False
    #: False while there are no tokens with scopes: the parameter means nothing then.
    has_machines: bool = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application (PEP 3333)."""
        request_id = request_id_of(environ)
        bind_request(request_id, self.trace_id(environ))
        try:
            token, admitted = self._check(environ)
        except AuthError as error:
            return answer(problem_of(error), request_id, environ, start_response)
        except Exception:
            # Any other error: a gateway treats a 500 as a denial, and the log has the cause.
            log.exception("verify.crashed")
            return answer(Problem(status=500, code="internal_error"), request_id, environ, start_response)
        start_response("200 OK", granted(token, admitted, request_id))
        return (b"",)

    def _check(self, environ: WSGIEnvironment) -> tuple[Token, Admitted]:
        token = self.checks.check_any(required_bearer(environ.get("HTTP_AUTHORIZATION")))
        path, query = check_path(environ["PATH_INFO"]), environ.get("QUERY_STRING", "")
        demand = demand_of(path, query, has_levels=self.has_levels, has_machines=self.has_machines)
        if demand is None:
            raise Forbidden
        demand.require(token, self.checks.clock().timestamp())
        return token, demand.admitted


@lru_cache(maxsize=256)
def demand_of(path: str, query: str, *, has_levels: bool, has_machines: bool) -> Demand | None:
    """All that a check on *path* asks for, the strictest where repeated; None if there is no such level."""
    asked = parse_qs(query, keep_blank_values=True)
    classes, ages = asked.get("acr", []), asked.get("max_age", [])
    if not all(map(_ACRS.__contains__, classes)) or not all(map(_AGE.fullmatch, ages)):
        return None
    strongest = max(map(Acr, classes), key=lambda acr: acr.rank, default=None)
    return Demand(
        admitted=CHECK_PATHS[path],
        roles=frozenset(asked.get("role", ())),
        # One that is no scope is in no token.
        scopes=frozenset(asked.get("scope", ()) if has_machines else ()),
        level=Requirement(acr=strongest, max_age_s=min(map(int, ages), default=None)),
        has_levels=has_levels,
    )


def granted(token: Token, admitted: Admitted, request_id: str) -> list[tuple[str, str]]:
    """Who is asking, for the service behind the gateway."""
    return [
        *_identity(token, admitted),
        ("X-Request-Id", request_id),
        ("Content-Length", "0"),
        *NOT_STORED,
    ]


def _identity(token: Token, admitted: Admitted) -> list[tuple[str, str]]:
    """
    The headers that name the caller.

    Where machines are let in, those of the other kind are there and empty: so they replace what the client
    sent under their names, also where a gateway only overwrites.
    """
    if isinstance(token, MachineToken):
        person = dict.fromkeys(_OF_PEOPLE, "")
        return [
            *person.items(),
            ("X-Auth-Client-Id", token.client_id),
            ("X-Auth-Scopes", ",".join(token.scopes)),
        ]
    values = (token.user_id, token.session_id, ",".join(token.roles))
    machine = () if admitted is Admitted.PEOPLE else _OF_MACHINES
    return [*zip(_OF_PEOPLE, values, strict=True), *dict.fromkeys(machine, "").items()]
