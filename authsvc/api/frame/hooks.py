"""For every request: an id, response headers, one line in the log."""

from __future__ import annotations

import logging
import time

from flask import Flask, Response, g, request

from authsvc.api.frame.context import client_ip, request_id_of, services, user_agent
from authsvc.domain.audit import Origin, bind_origin
from authsvc.domain.ratelimits import policy_header, record_attempts, state_header, tightest
from authsvc.observability.logs import bind_request

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
    g.request_id = request_id_of(request.environ)
    g.attempts = record_attempts()
    bind_request(g.request_id, services().tracing.trace_id(request.environ))
    bind_origin(Origin(request_id=g.request_id, client_ip=client_ip(), user_agent=user_agent()))


def _finish(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if g.attempts:
        attempt = tightest(g.attempts)
        response.headers["RateLimit-Policy"] = policy_header(attempt.limit)
        response.headers["RateLimit"] = state_header(attempt)
    route = request.url_rule.rule if request.url_rule else None
    log_answer(request.method, route, response.status_code, time.perf_counter() - g.began_s)
    return response


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
