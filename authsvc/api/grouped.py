"""
The busiest POST routes, answered for many requests at once and before Flask.

Only plain requests are: their whole meaning is in the path, the bearer token and a JSON body with a length.
Everything else about them, and every body that the schema does not take, is left to Flask untouched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from marshmallow import Schema, ValidationError

from authsvc.api.frame.bodies import MAX_BYTES
from authsvc.api.frame.errors import Problem, failure, refusal
from authsvc.api.frame.hooks import HEADERS, begin, limit_headers, log_answer
from authsvc.domain.errors import AuthError
from authsvc.domain.groups import Postponed, Steps, together
from authsvc.domain.values.jsontext import InvalidJson, parse
from authsvc.domain.values.limits import Attempt
from authsvc.domain.values.problems import MEDIA_TYPE
from authsvc.services import Services

T = TypeVar("T")


class Request(Protocol):
    """What a request says: header fields as in a WSGI environ, and a body that is JSON or empty."""

    path: str
    environ: Mapping[str, str]
    body: bytes
    #: When it had arrived (monotonic seconds).
    began_s: float


class Answer(NamedTuple):
    """An answer but for what every one begins with: its status, and all after the date."""

    status: str
    rest: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what its body is."""

    status: int
    body: bytes = b""
    media_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupedRoute(Generic[T]):
    """A view without its frame."""

    #: What the view is about, from the Authorization header and the body; None: Flask is to judge it.
    read: Callable[[str, bytes], T | None]
    act: Callable[[Services, T], Steps[Reply]]


@dataclass(slots=True)
class _Work:
    """A request that is being answered, in a context of its own."""

    request: Request
    context: Context
    request_id: str
    attempts: list[Attempt]
    steps: Steps[Reply]


@dataclass(frozen=True, slots=True)
class GroupedRoutes:
    """Answers plain POST requests on the paths of *routes*, those of one path at once."""

    services: Services
    routes: Mapping[str, GroupedRoute[Any]]
    _counts: dict[tuple[str, int], Callable[[float], None]] = field(default_factory=dict, init=False)

    @property
    def paths(self) -> Sequence[str]:
        """The paths."""
        return tuple(self.routes)

    @property
    def metrics_port(self) -> int:
        """The port where nothing is answered here."""
        return self.services.http.metrics_port

    def answer(self, requests: Sequence[Request]) -> list[Answer | None]:
        """The answer to each; None where Flask has to answer, because it is no plain one or has to wait."""
        works = [self._begin(request) for request in requests]
        group = [work for work in works if work is not None]
        outcomes = iter(together([(work.context.run, work.steps) for work in group]))
        return [None if work is None else self._answer(work, next(outcomes)) for work in works]

    def _begin(self, request: Request) -> _Work | None:
        route, environ = self.routes[request.path], request.environ
        # Answers to pages of other origins have more headers.
        if len(request.body) > MAX_BYTES or (self._is_shared and "HTTP_ORIGIN" in environ):
            return None
        meant = route.read(environ.get("HTTP_AUTHORIZATION", ""), request.body)
        if meant is None:
            return None
        context = copy_context()
        request_id, attempts = context.run(begin, environ, self.services)
        return _Work(request, context, request_id, attempts, route.act(self.services, meant))

    def _answer(self, work: _Work, outcome: Reply | Exception) -> Answer | None:
        if isinstance(outcome, Postponed):
            return None
        answer: Answer = work.context.run(self._told, work, outcome)
        return answer

    def _told(self, work: _Work, outcome: Reply | Exception) -> Answer:
        reply = _refusal(outcome, work.request_id) if isinstance(outcome, Exception) else outcome
        headers = {
            **(_of_body(reply) if reply.body else {}),
            **reply.headers,
            "X-Request-Id": work.request_id,
            **HEADERS,
            **limit_headers(work.attempts),
        }
        if not reply.body and reply.status != HTTPStatus.NO_CONTENT:
            headers["Content-Length"] = "0"
        if self._is_shared:
            headers["Vary"] = "Origin"
        self._note(work.request.path, reply.status, time.monotonic() - work.request.began_s)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        status = f"{reply.status} {HTTPStatus(reply.status).phrase.upper()}"
        return Answer(status, f"{head}\r\n".encode("latin-1") + reply.body)

    @property
    def _is_shared(self) -> bool:
        return bool(self.services.http.cors_origins)

    def _note(self, path: str, status: int, took_s: float) -> None:
        """Log and count the request as the hooks do."""
        log_answer("POST", path, status, took_s)
        count = self._counts.get((path, status))
        if count is None:
            count = self._counts[path, status] = self.services.metrics.count_of("POST", path, status)
        count(took_s)


def loaded(schema: Schema, body: bytes) -> Any:  # noqa: ANN401 - the schema says what
    """What *schema* makes of *body*; None where it does not take it."""
    try:
        return schema.load(parse(body))  # type: ignore[arg-type]  # whatever is no object is refused by it
    except (InvalidJson, ValidationError):
        return None


def _of_body(reply: Reply) -> dict[str, str]:
    return {"Content-Type": reply.media_type, "Content-Length": str(len(reply.body))}


def _refusal(error: Exception, request_id: str) -> Reply:
    problem: Problem = refusal(error) if isinstance(error, AuthError) else failure(error)
    return Reply(problem.status, problem.body(request_id), MEDIA_TYPE, problem.headers)
