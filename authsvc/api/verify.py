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
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from authsvc.api.frame.context import request_id_from, request_id_of
from authsvc.api.frame.docs import VERIFY_ANY_PATH, VERIFY_MACHINE_PATH, VERIFY_PATH
from authsvc.api.frame.errors import NOT_STORED, Problem, answer, problem_of
from authsvc.api.frame.guards import required_bearer
from authsvc.domain.errors import AuthError, Forbidden, StoreUnavailable
from authsvc.domain.tokens.access import REMEMBERED, MachineToken, Token
from authsvc.domain.tokens.checks import PolledIndex, PolledKeys, PolledReads, TokenChecks
from authsvc.domain.tokens.claims import bearer_token
from authsvc.domain.tokens.demands import Admitted, Demand
from authsvc.domain.tokens.keys import KeyRing, KeySource
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
#: Stands for the request id in an answer that is made in advance; no header holds it.
_MARK = "\0"


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
        start_response("200 OK", _granted(token, admitted, request_id))
        return (b"",)

    def _check(self, environ: WSGIEnvironment) -> tuple[Token, Admitted]:
        token = self.checks.check_any(required_bearer(environ.get("HTTP_AUTHORIZATION")))
        path, query = check_path(environ["PATH_INFO"]), environ.get("QUERY_STRING", "")
        demand = demand_of(path, query, has_levels=self.has_levels, has_machines=self.has_machines)
        if demand is None:
            raise Forbidden
        demand.require(token, self.checks.clock().timestamp())
        return token, demand.admitted


class Prepared:
    """A token whose signature held, with all that an answer about it on one path needs."""

    __slots__ = ("before_id", "begins_s", "behind_id", "ends_s", "index_keys", "is_admitted", "keys", "token")

    def __init__(self, token: Token, path: str, index_keys: PolledKeys, window_s: tuple[int, int]) -> None:
        self.token = token
        self.keys = token.keys
        self.index_keys = index_keys
        self.begins_s, self.ends_s = window_s
        admitted = CHECK_PATHS[path]
        #: True if it is good for a check that asks for nothing more.
        self.is_admitted = Demand(admitted=admitted).is_met_by(token, self.begins_s)
        headers = "".join(f"{name}: {value}\r\n" for name, value in _granted(token, admitted, _MARK))
        before, _, behind = headers.partition(_MARK)
        #: The answer's head, but for how every answer begins, up to the request id and from it on.
        self.before_id, self.behind_id = before.encode("latin-1"), f"{behind}\r\n".encode("latin-1")


@dataclass(slots=True, kw_only=True)
class CheckLane:
    """
    The server's lane: checks that Redis proves to be good, many with one read, without waiting.

    It only answers yes; all other checks are answered by :class:`CheckAnswers`.
    """

    checks: TokenChecks
    index: PolledIndex
    ring: KeySource
    #: Decides about a trace, by the text of a ``traceparent``.
    sample: Callable[[str], bool]
    metrics_port: int
    has_levels: bool = False
    has_machines: bool = False
    paths: tuple[str, ...] = (VERIFY_PATH,)
    _recent: KeyRing | None = field(default=None, init=False)
    _now_s: float = field(default=0.0, init=False)
    #: By path, then by the whole header.
    _known: dict[str, dict[bytes, Prepared]] = field(init=False, repr=False)
    #: Remembers by position alone, in half the time.
    _demand_of: Callable[[str, str], Demand | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._known = {path: {} for path in self.paths}
        self._demand_of = lru_cache(maxsize=256)(
            partial(demand_of, has_levels=self.has_levels, has_machines=self.has_machines)
        )

    @property
    def reads(self) -> PolledReads:
        """What the loop watches."""
        return self.index.reads

    def open(self) -> bool:
        """Begin a round of the server's loop; True if there is something to be asked."""
        ring = self.ring.recent()
        if ring is not None and ring is not self._recent:
            for known in self._known.values():
                known.clear()
            self._recent = ring
        self._now_s = self.checks.clock().timestamp()
        return ring is not None and self.index.is_open()

    def prepare(self, authorization: bytes, path: str, query: str) -> Prepared | None:
        """The check of a token that is known, in time, and has what is asked for."""
        known = self._known[path].get(authorization) or self._learn(authorization, path)
        if known is None or not known.begins_s <= self._now_s < known.ends_s:
            return None
        if not query:
            return known if known.is_admitted else None
        demand = self._demand_of(path, query)
        return known if demand is not None and demand.is_met_by(known.token, self._now_s) else None

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

    def _learn(self, authorization: bytes, path: str) -> Prepared | None:
        """A token whose signature is remembered, by the whole header that it is in."""
        text = _plain_bearer(authorization)
        token = self.checks.reader.recall(text, self._recent) if text and self._recent else None
        if token is None:
            return None
        remembered = self._known[path]
        while len(remembered) >= REMEMBERED:
            del remembered[next(iter(remembered))]
        window_s = self.checks.reader.window_s(token)
        known = remembered[authorization] = Prepared(token, path, self.index.keys_of(token.keys), window_s)
        return known


def _plain_bearer(authorization: bytes) -> str | None:
    """The token in a header with exactly one space: other spellings are left to the threads."""
    text = bearer_token(authorization.decode("latin-1"))
    return text if text and len(authorization) == len("Bearer ") + len(text) else None


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


def _granted(token: Token, admitted: Admitted, request_id: str) -> list[tuple[str, str]]:
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
