"""For services made with Flask: decorators, and the caller."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from flask import Response, g, request

from authsvc.verifier.claims import Claims, MachineClaims
from authsvc.verifier.core import Verifier, presented
from authsvc.verifier.errors import VerifierError
from authsvc.verifier.refusals import refusal

P = ParamSpec("P")
R = TypeVar("R")


def requires(
    verifier: Verifier, *roles: str, acr: str | None = None, max_age_s: int | None = None
) -> Callable[[Callable[P, R]], Callable[P, R | Response]]:
    """Let a view be called only with a token that :meth:`Verifier.verify` accepts with these arguments."""

    def read() -> Claims:
        return verifier.authenticate(
            request.headers.get("Authorization"), roles, acr=acr, max_age_s=max_age_s
        )

    return _guard(read)


def requires_machine(
    verifier: Verifier, *scopes: str
) -> Callable[[Callable[P, R]], Callable[P, R | Response]]:
    """Let a view be called only with a token that :meth:`Verifier.verify_machine` accepts for *scopes*."""

    def read() -> MachineClaims:
        return verifier.verify_machine(presented(request.headers.get("Authorization")), scopes)

    return _guard(read)


def _guard(
    read: Callable[[], Claims | MachineClaims],
) -> Callable[[Callable[P, R]], Callable[P, R | Response]]:
    """Call a view if *read* returns the caller's claims; otherwise answer with the error."""

    def decorate(view: Callable[P, R]) -> Callable[P, R | Response]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | Response:
            try:
                g.authsvc_claims = read()
            except VerifierError as error:
                refused = refusal(error)
                return Response(refused.body, refused.status, list(refused.headers))
            return view(*args, **kwargs)

        return guarded

    return decorate


def machine() -> MachineClaims:
    """The calling service, in a view that :func:`requires_machine` guards."""
    return cast("MachineClaims", g.authsvc_claims)


def claims() -> Claims:
    """The caller, in a view that :func:`requires` guards."""
    return cast("Claims", g.authsvc_claims)
