"""
Forward-auth for gateways: the hot path, answered before Flask.

nginx ``auth_request`` and Traefik ForwardAuth send GET, Envoy ext_authz the original method and path
below ours: any method and any sub-path is a check.  No routing, no schema, no body is read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

from authsvc.api.frame.context import request_id_from, request_id_of
from authsvc.api.frame.docs import VERIFY_PATH
from authsvc.api.frame.errors import NOT_STORED, Problem, answer, problem_of
from authsvc.api.frame.guards import required_bearer
from authsvc.domain.errors import AuthError, Forbidden, StoreUnavailable
from authsvc.domain.tokens.access import REMEMBERED, AccessToken
from authsvc.domain.tokens.checks import PolledIndex, PolledReads, TokenChecks, require_level, require_roles
from authsvc.domain.tokens.claims import bearer_token
from authsvc.domain.tokens.keys import KeyRing, KeySource
from authsvc.domain.values.levels import Acr, Requirement
from authsvc.observability.logs import bind_request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

_ACRS = frozenset(Acr)
#: Seconds, in one spelling.
_AGE = re.compile(r"0|[1-9][0-9]{0,8}")
#: Stands for the request id in an answer that is made in advance; no header holds it.
_MARK = "\0"


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
    #: False while tokens say nothing of levels.
    has_levels: bool = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application (PEP 3333)."""
        request_id = request_id_of(environ)
        bind_request(request_id, self.trace_id(environ))
        try:
            token = self._check(environ)
        except AuthError as error:
            return answer(problem_of(error), request_id, environ, start_response)
        except Exception:
            # The edge: a gateway takes a 500 for a denial, and the log has the cause.
            log.exception("verify.crashed")
            return answer(Problem(status=500, code="internal_error"), request_id, environ, start_response)
        start_response("200 OK", _granted(token, request_id))
        return (b"",)

    def _check(self, environ: WSGIEnvironment) -> AccessToken:
        token = self.checks.check(required_bearer(environ.get("HTTP_AUTHORIZATION")))
        query: str = environ.get("QUERY_STRING", "")
        if query:
            wanted = wanted_by(query)
            if wanted is None or not (self.has_levels or wanted.level.is_nothing):
                raise Forbidden
            require_roles(token, wanted.roles)
            require_level(token, wanted.level, self.checks.clock())
        return token


class Prepared:
    """A token whose signature held, with all that an answer about it needs."""

    __slots__ = ("before_id", "begins_s", "behind_id", "ends_s", "index_keys", "keys", "level", "roles")

    def __init__(self, token: AccessToken, index_keys: bytes, window_s: tuple[int, int]) -> None:
        self.keys = token.keys
        self.roles = frozenset[str](token.roles)
        self.level = token.level
        self.index_keys = index_keys
        self.begins_s, self.ends_s = window_s
        headers = "".join(f"{name}: {value}\r\n" for name, value in _granted(token, _MARK))
        before, _, behind = headers.partition(_MARK)
        #: The answer's head, but for how every answer begins, up to the request id and from it on.
        self.before_id, self.behind_id = before.encode("latin-1"), f"{behind}\r\n".encode("latin-1")


@dataclass(slots=True, kw_only=True)
class CheckLane:
    """
    The server's lane: checks that Redis proves to be good, many with one read, without waiting.

    It says yes or nothing: whatever else a check may be is for :class:`CheckAnswers`.
    """

    checks: TokenChecks
    index: PolledIndex
    ring: KeySource
    #: Decides about a trace, by the text of a ``traceparent``.
    sample: Callable[[str], bool]
    metrics_port: int
    has_levels: bool = False
    path: str = VERIFY_PATH
    _recent: KeyRing | None = field(default=None, init=False)
    _now_s: float = field(default=0.0, init=False)
    _known: dict[bytes, Prepared] = field(default_factory=dict, init=False, repr=False)

    @property
    def reads(self) -> PolledReads:
        """What the loop watches."""
        return self.index.reads

    def open(self) -> bool:
        """Begin a round of the server's loop; True if there is something to be asked."""
        ring = self.ring.recent()
        if ring is not None and ring is not self._recent:
            self._known.clear()
            self._recent = ring
        self._now_s = self.checks.clock().timestamp()
        return ring is not None and self.index.is_open()

    def is_sampled(self, traceparent: bytes) -> bool:
        """Decide whether the check is to be traced."""
        return self.sample(traceparent.decode("latin-1"))

    def prepare(self, authorization: bytes, query: str) -> Prepared | None:
        """The check of a token that is known, in time, and has the roles and the level that are wanted."""
        known = self._known.get(authorization) or self._learn(authorization)
        if known is None or not known.begins_s <= self._now_s < known.ends_s:
            return None
        return known if not query or self._has_wanted(known, query) else None

    def _has_wanted(self, known: Prepared, query: str) -> bool:
        wanted = wanted_by(query)
        if wanted is None or not wanted.roles <= known.roles:
            return False
        return wanted.level.is_nothing or (
            self.has_levels and wanted.level.is_met_by(known.level, self._now_s)
        )

    def request_id(self, given: bytes) -> bytes:
        """The client's id if it is sane, else a new one."""
        return request_id_from(given.decode("latin-1")).encode("ascii")

    def ask(self, checks: Sequence[Prepared]) -> bool:
        """Begin to ask about all *checks*; False if that cannot be."""
        try:
            self.index.ask([check.index_keys for check in checks])
        except StoreUnavailable:
            return False
        return True

    def answers(self, checks: Sequence[Prepared]) -> list[bool] | None:
        """For each of *checks*, True if it is proven to be good; None while the answer is not there."""
        try:
            answers = self.index.answers()
        except StoreUnavailable:
            return [False] * len(checks)
        if answers is None:
            return None
        return self.checks.settle([check.keys for check in checks], answers)

    def upkeep(self) -> None:
        """Load new signing keys before a check needs them; may block."""
        self.ring.refresh()

    def _learn(self, authorization: bytes) -> Prepared | None:
        """A token whose signature is remembered, by the whole header that it is in."""
        text = _plain_bearer(authorization)
        token = self.checks.reader.recall(text, self._recent) if text and self._recent else None
        if token is None:
            return None
        while len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        known = Prepared(token, self.index.keys_of(token.keys), self.checks.reader.window_s(token))
        self._known[authorization] = known
        return known


def _plain_bearer(authorization: bytes) -> str | None:
    """The token in a header with one space and nothing else: of other spellings there is no end."""
    text = bearer_token(authorization.decode("latin-1"))
    return text if text and len(authorization) == len("Bearer ") + len(text) else None


class Wanted(NamedTuple):
    """What a check asks for beyond a good token."""

    roles: frozenset[str]
    level: Requirement


@lru_cache(maxsize=256)
def wanted_by(query: str) -> Wanted | None:
    """All that the query string asks for, the strictest where repeated; None if there is no such level."""
    asked = parse_qs(query, keep_blank_values=True)
    classes, ages = asked.get("acr", []), asked.get("max_age", [])
    if not all(map(_ACRS.__contains__, classes)) or not all(map(_AGE.fullmatch, ages)):
        return None
    strongest = max(map(Acr, classes), key=lambda acr: acr.rank, default=None)
    level = Requirement(acr=strongest, max_age_s=min(map(int, ages), default=None))
    return Wanted(frozenset(asked.get("role", ())), level)


def _granted(token: AccessToken, request_id: str) -> list[tuple[str, str]]:
    """Who is asking, for the service behind the gateway."""
    return [
        ("X-Auth-User-Id", token.user_id),
        ("X-Auth-Session-Id", token.session_id),
        ("X-Auth-Roles", ",".join(token.roles)),
        ("X-Request-Id", request_id),
        ("Content-Length", "0"),
        *NOT_STORED,
    ]
