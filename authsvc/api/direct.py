"""
The busiest POST routes, answered before Flask, whose share of them was a quarter of the CPU.

Only plain requests are: their whole meaning is in the path, the bearer token and a JSON body with a length.
Everything else about them, and every body that the schema does not take, is left to Flask untouched.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from marshmallow import Schema, ValidationError

from authsvc.api.frame.bodies import JSON, MAX_BYTES
from authsvc.api.frame.errors import Problem, failure, refusal
from authsvc.api.frame.hooks import HEADERS, begin, limit_headers, log_answer
from authsvc.domain.errors import AuthError
from authsvc.domain.values.jsontext import InvalidJson, parse
from authsvc.domain.values.problems import MEDIA_TYPE
from authsvc.services import Services

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

T = TypeVar("T")

#: With one of these a request is not a plain one.
_ODD = ("HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what its body is."""

    status: int
    body: bytes = b""
    media_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DirectRoute(Generic[T]):
    """A view without its frame."""

    #: What the view is about, from the Authorization header and the body; None: Flask is to judge it.
    read: Callable[[str, bytes], T | None]
    act: Callable[[Services, T], Reply]


@dataclass(frozen=True, slots=True)
class DirectRoutes:
    """Answers plain POST requests on the paths of *routes*; *application* answers all others."""

    application: WSGIApplication
    services: Services
    routes: Mapping[str, DirectRoute[Any]]
    _counts: dict[tuple[str, int], Callable[[float], None]] = field(default_factory=dict, init=False)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI application (PEP 3333)."""
        path: str = environ.get("PATH_INFO", "")
        route = self.routes.get(path) if environ["REQUEST_METHOD"] == "POST" else None
        meant = _meant(route, environ) if route else None
        if route is None or meant is None:
            return self.application(environ, start_response)
        began_s = time.perf_counter()
        request_id, attempts = begin(environ, self.services)
        reply = self._reply(route, meant, request_id)
        headers = {
            **(_of_body(reply) if reply.body else {}),
            **reply.headers,
            "X-Request-Id": request_id,
            **HEADERS,
            **limit_headers(attempts),
        }
        if not reply.body and reply.status != HTTPStatus.NO_CONTENT:
            headers["Content-Length"] = "0"
        self._note(path, reply.status, time.perf_counter() - began_s)
        start_response(f"{reply.status} {HTTPStatus(reply.status).phrase.upper()}", list(headers.items()))
        return (reply.body,) if reply.body else ()

    def _reply(self, route: DirectRoute[T], meant: T, request_id: str) -> Reply:
        try:
            return route.act(self.services, meant)
        except AuthError as error:
            return _told(refusal(error), request_id)
        except Exception as error:  # noqa: BLE001 - any error becomes an answer, and is logged
            return _told(failure(error), request_id)

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


def _meant(route: DirectRoute[T], environ: WSGIEnvironment) -> T | None:
    """What a plain request is about; None for any other, whose body can still be read."""
    if any(name in environ for name in _ODD):
        return None
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or len(length) > len(str(MAX_BYTES)) or int(length) > MAX_BYTES:
        return None
    body = b""
    if int(length):
        if environ.get("CONTENT_TYPE") != JSON:
            return None
        try:
            body = environ["wsgi.input"].read(int(length))
        except OSError:  # broken off; Flask will find the same
            return None
        environ["wsgi.input"] = io.BytesIO(body)
    return route.read(environ.get("HTTP_AUTHORIZATION", ""), body)


def _of_body(reply: Reply) -> dict[str, str]:
    return {"Content-Type": reply.media_type, "Content-Length": str(len(reply.body))}


def _told(problem: Problem, request_id: str) -> Reply:
    return Reply(problem.status, problem.body(request_id), MEDIA_TYPE, problem.headers)
