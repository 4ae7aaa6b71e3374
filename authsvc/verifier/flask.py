"""For services made with Flask: a decorator, and who is asking."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from flask import Response, g, request

from authsvc.verifier.claims import Claims
from authsvc.verifier.core import Verifier
from authsvc.verifier.errors import VerifierError
from authsvc.verifier.refusals import refusal

P = ParamSpec("P")
R = TypeVar("R")


def requires(
    verifier: Verifier, *roles: str, acr: str | None = None, max_age_s: int | None = None
) -> Callable[[Callable[P, R]], Callable[P, R | Response]]:
    """Let a view be called only with a token that :meth:`Verifier.verify` accepts with these arguments."""

    def decorate(view: Callable[P, R]) -> Callable[P, R | Response]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | Response:
            try:
                g.authsvc_claims = verifier.authenticate(
                    request.headers.get("Authorization"), roles, acr=acr, max_age_s=max_age_s
                )
            except VerifierError as error:
                refused = refusal(error)
                return Response(refused.body, refused.status, list(refused.headers))
            return view(*args, **kwargs)

        return guarded

    return decorate


def claims() -> Claims:
    """The caller, in a view that :func:`requires` guards."""
    return cast("Claims", g.authsvc_claims)
