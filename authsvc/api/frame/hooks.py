"""For every request: an id, response headers, one line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Flask, Response, g, request

from authsvc.api.frame.context import request_id_of, resolve_client, services, user_agent_of
from authsvc.domain.audit import Origin, bind_origin
from authsvc.domain.ratelimits import policy_header, record_attempts, state_header, tightest
from authsvc.domain.values.limits import Attempt
from authsvc.observability.logs import bind_request
from authsvc.services import Services

log = logging.getLogger("authsvc.requests")

#: On every answer of a view.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def install(app: Flask) -> None:
    """Hook into every request of *app*."""
    app.before_request(_begin)
    app.after_request(_finish)


def _begin() -> None:
    g.began_s = time.perf_counter()
    g.request_id, g.attempts = begin(request.environ, services())


def _finish(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.update(limit_headers(g.attempts))
    route = request.url_rule.rule if request.url_rule else None
    log_answer(request.method, route, response.status_code, time.perf_counter() - g.began_s)
    return response


def begin(environ: Mapping[str, Any], found: Services) -> tuple[str, list[Attempt]]:
    """Bind what this thread works for; the request's id, and a list that will have the counted attempts."""
    request_id = request_id_of(environ)
    bind_request(request_id, found.tracing.trace_id(environ))
    ip = resolve_client(environ, found.http.trusted_proxies)
    bind_origin(Origin(request_id=request_id, client_ip=ip, user_agent=user_agent_of(environ)))
    return request_id, record_attempts()


def limit_headers(attempts: Sequence[Attempt]) -> dict[str, str]:
    """What an answer says of the limits that its request was counted for."""
    if not attempts:
        return {}
    attempt = tightest(attempts)
    return {"RateLimit-Policy": policy_header(attempt.limit), "RateLimit": state_header(attempt)}


def log_answer(method: str, route: str | None, status: int, took_s: float) -> None:
    """Write the line about one request."""
    log.info(
        "request.answered",
        extra={
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(took_s * 1000, 2),
        },
    )
