"""Refusals as HTTP says them (RFC 6750 §3, RFC 9470 §3)."""

from __future__ import annotations

from dataclasses import dataclass

from authsvc.domain.values.problems import MEDIA_TYPE, problem_body
from authsvc.verifier.errors import (
    RoleMissing,
    ScopeMissing,
    StepUpRequired,
    TokenMissing,
    Unavailable,
    VerifierError,
    WrongKind,
)

_CHALLENGE = 'Bearer realm="{realm}"'


@dataclass(frozen=True, slots=True)
class Refusal:
    """A whole answer; nothing in it comes from the request."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def refusal(error: VerifierError, *, realm: str = "authsvc") -> Refusal:
    """401 with a challenge, 403, or 503 with ``Retry-After`` where neither yes nor no can be said."""
    challenge = _CHALLENGE.format(realm=realm)
    if isinstance(error, Unavailable):
        return _refusal(503, "unavailable", ("Retry-After", str(error.retry_after_s)))
    if isinstance(error, RoleMissing | ScopeMissing | WrongKind):
        code = "insufficient_scope" if isinstance(error, ScopeMissing) else "forbidden"
        return _refusal(403, code, ("WWW-Authenticate", f'{challenge}, error="insufficient_scope"'))
    if isinstance(error, StepUpRequired):
        asked = f"{challenge}, {error.requirement.challenge}"
        return _refusal(401, "step_up_required", ("WWW-Authenticate", asked))
    if isinstance(error, TokenMissing):
        return _refusal(401, "token_missing", ("WWW-Authenticate", challenge))
    return _refusal(401, "token_invalid", ("WWW-Authenticate", f'{challenge}, error="invalid_token"'))


def _refusal(status: int, code: str, header: tuple[str, str]) -> Refusal:
    body = problem_body(status, code)
    fixed = (
        ("Content-Type", MEDIA_TYPE),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    )
    return Refusal(status, (header, *fixed), body)
