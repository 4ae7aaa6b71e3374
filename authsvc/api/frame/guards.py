"""Who may call a view: ``public``, ``requires("user")``, ``requires("admin")``; how often: ``limited``."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import ParamSpec, TypeVar

from flask import g, request
from werkzeug.exceptions import HTTPException

from authsvc.api.frame.context import client_ip, services
from authsvc.domain.errors import (
    AuthError,
    HashingBusy,
    Invalid,
    StoreUnavailable,
    TokenInvalid,
    TokenMissing,
)
from authsvc.domain.ratelimits import Rule, ip_subject
from authsvc.domain.tokens.checks import require_roles
from authsvc.domain.users import Role
from authsvc.observability.metrics import Metrics

P = ParamSpec("P")
R = TypeVar("R")

_BEARER = re.compile(r"bearer(?: +(?P<token>.*))?", re.IGNORECASE | re.DOTALL)


def bearer_token(header: str | None) -> str:
    """
    The token in an ``Authorization`` header (RFC 6750 §2.1).

    Raises:
        TokenMissing: no header, another scheme, or a scheme without a token.
    """
    found = _BEARER.fullmatch((header or "").strip(" "))
    if found is None or not found["token"]:
        raise TokenMissing
    return found["token"]


def public(view: Callable[P, R]) -> Callable[P, R]:
    """Declare that anybody may call *view*."""
    view.__access__ = "public"  # type: ignore[attr-defined]
    return view


def requires(role: Role) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare that a bearer token with *role* is needed; the view finds the caller in ``identity()``."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            token = services().checks.check(bearer_token(request.headers.get("Authorization")))
            require_roles(token, frozenset((role,)))
            g.identity = token
            return view(*args, **kwargs)

        guarded.__access__ = role  # type: ignore[attr-defined]
        _document(guarded)
        return guarded

    return decorate


def _document(view: Callable[..., object]) -> None:
    """Say in the OpenAPI description that *view* wants a token."""
    described = deepcopy(getattr(view, "_apidoc", {}))
    described["manual_doc"] = {"security": [{"bearer": []}], **described.get("manual_doc", {})}
    view._apidoc = described  # type: ignore[attr-defined]  # noqa: SLF001 - where flask-smorest looks


def limited(rule: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Count one attempt by address before the view; give it back where the view judged nothing."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            limits = services().limits
            verdict = limits.take(rule, ip_subject(client_ip()))
            try:
                return view(*args, **kwargs)
            except (HTTPException, Invalid, HashingBusy, StoreUnavailable):
                limits.refund(verdict)
                raise

        return counted

    return decorate


def counted(result: Callable[[Metrics], Callable[[str], None]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Count how the view ended: ``ok``, the code of its refusal, or ``malformed`` for a body it never saw."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def observed(*args: P.args, **kwargs: P.kwargs) -> R:
            count = result(services().metrics)
            try:
                answer = view(*args, **kwargs)
            except AuthError as error:
                count(error.code)
                raise
            except HTTPException:
                count("malformed")
                raise
            count("ok")
            return answer

        return observed

    return decorate


def optional_bearer() -> str | None:
    """The presented token for a view that takes other proof, too; raises TokenInvalid for another scheme."""
    header = request.headers.get("Authorization")
    if header is None:
        return None
    try:
        return bearer_token(header)
    except TokenMissing as error:
        raise TokenInvalid("another scheme") from error
