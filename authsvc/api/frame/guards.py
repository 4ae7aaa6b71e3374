"""
Guards of views. Who may call: ``public``, ``requires``, ``fresh``, ``requires_client``. How often:
``limited``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from typing import ParamSpec, TypeVar

from flask import g, request
from werkzeug.exceptions import HTTPException

from authsvc.api.frame.basic import basic_credentials
from authsvc.api.frame.context import client_ip, identity, services
from authsvc.api.frame.errors import OAUTH_PREFIX
from authsvc.domain.audit import bind_actor
from authsvc.domain.clients import Right
from authsvc.domain.errors import (
    AuthError,
    Forbidden,
    HashingBusy,
    Invalid,
    RightMissing,
    StoreUnavailable,
    TokenInvalid,
    TokenMissing,
)
from authsvc.domain.ratelimits import OnOutage, Rule, ip_subject
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.tokens.checks import require_level, require_roles
from authsvc.domain.tokens.claims import bearer_token
from authsvc.domain.users import Role
from authsvc.observability.metrics import Metrics

P = ParamSpec("P")
R = TypeVar("R")


def required_bearer(header: str | None) -> str:
    """
    The token in an ``Authorization`` header.

    Raises:
        TokenMissing: no header, another scheme, or a scheme without a token.
    """
    text = bearer_token(header)
    if text is None:
        raise TokenMissing
    return text


def public(view: Callable[P, R]) -> Callable[P, R]:
    """Declare that *view* needs no authentication."""
    view.__access__ = "public"  # type: ignore[attr-defined]
    return view


def requires(role: Role, *, reads_user: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Declare that the view needs a bearer token with *role*; the caller is in ``identity()``.

    With *reads_user*, the cached user is read together with the token and is in ``own_user()``, if there was
    one.
    """

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            text = required_bearer(request.headers.get("Authorization"))
            if reads_user:
                token, g.own_user = services().checks.check_with_user(text)
            else:
                token = services().checks.check(text)
            require_roles(token, frozenset((role,)))
            if role == "admin":
                _require_admin_level(token)
            g.identity = token
            bind_actor(token.user_id)
            return view(*args, **kwargs)

        guarded.__access__ = role  # type: ignore[attr-defined]
        _document(guarded, "bearer")
        return guarded

    return decorate


def _require_admin_level(token: AccessToken) -> None:
    """Raise StepUpRequired unless *token* has the level that ADMIN_ACR demands of admins."""
    found = services().second_factors
    if found is not None:
        require_level(token, found.admin_level, services().checks.clock())


def fresh(*, of_everybody: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Declare, below ``requires``, that the caller must have authenticated recently.

    Without *of_everybody* this holds only for callers who have a second factor. It has no effect while
    SECOND_FACTORS is off.
    """

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            found = services().second_factors
            if found is not None:
                found.freshness.require(identity(), of_everybody=of_everybody)
            return view(*args, **kwargs)

        guarded.__fresh__ = "always" if of_everybody else "with a factor"  # type: ignore[attr-defined]
        return guarded

    return decorate


def requires_client(right: Right | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare that the view needs a registered client with *right*, by its secret; it is in ``caller()``."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            credentials = basic_credentials(request.headers.get("Authorization"))
            g.client = services().clients.authenticate(credentials, client_ip=client_ip())
            bind_actor(g.client.client.id)
            if right is not None and not g.client.client.has(right):
                raise RightMissing if request.path.startswith(OAUTH_PREFIX) else Forbidden
            return view(*args, **kwargs)

        guarded.__access__ = "client"  # type: ignore[attr-defined]
        _document(guarded, "client")
        return guarded

    return decorate


def _document(view: Callable[..., object], scheme: str) -> None:
    """Describe in OpenAPI that *view* needs the security scheme *scheme*."""
    described = deepcopy(getattr(view, "_apidoc", {}))
    described["manual_doc"] = {"security": [{scheme: []}], **described.get("manual_doc", {})}
    view._apidoc = described  # type: ignore[attr-defined]  # noqa: SLF001 - where flask-smorest looks


@contextmanager
def attempt(rule: Rule, *, on_outage: OnOutage | None = None) -> Iterator[None]:
    """Count one attempt by address; uncount it if the block checked no credential."""
    limits = services().limits
    taken = limits.take(rule, ip_subject(client_ip()), on_outage=on_outage)
    try:
        yield
    except (HTTPException, Invalid, HashingBusy, StoreUnavailable):
        limits.refund(taken)
        raise


def limited(rule: Rule, *, on_outage: OnOutage | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Count one attempt by address before the view; uncount it if the view checked no credential.

    *on_outage* overrides what *rule* does while the counters are unavailable.
    """

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            with attempt(rule, on_outage=on_outage):
                return view(*args, **kwargs)

        return counted

    return decorate


def counted(result: Callable[[Metrics], Callable[[str], None]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Count the result of the view: ``ok``, the code of its error, or ``malformed`` for an unreadable body.
    """

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def observed(*args: P.args, **kwargs: P.kwargs) -> R:
            with counting(result(services().metrics)):
                return view(*args, **kwargs)

        return observed

    return decorate


@contextmanager
def counting(count: Callable[[str], None]) -> Iterator[None]:
    """Count how what is done within ends, as :func:`counted` does."""
    try:
        yield
    except AuthError as error:
        count(error.code)
        raise
    except HTTPException:
        count("malformed")
        raise
    count("ok")


def optional_bearer() -> str | None:
    """The bearer token, for a view that accepts other proof, too; raises TokenInvalid for another scheme."""
    header = request.headers.get("Authorization")
    if header is None:
        return None
    text = bearer_token(header)
    if text is None:
        raise TokenInvalid("another scheme")
    return text
