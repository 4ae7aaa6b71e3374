"""
Why a verifier returns no claims. ``str(error)`` is for the log, never for the caller.

VerifierError
├── TokenMissing            401, no bearer token
├── TokenInvalid            401, forged, expired, revoked or malformed: callers never learn which
├── WrongKind               403, a machine's token where a person's is asked for, or the other way round
├── RoleMissing             403, a good token without a role that is asked for
├── ScopeMissing            403, a good token without a scope that is asked for
├── StepUpRequired          401, a good token whose user has to prove again who they are  (requirement)
└── Unavailable             503, nothing can be said now  (retry_after_s)
    ├── KeysUnknown         the signing keys could not be fetched
    └── FeedStale           revocations are not known recently enough
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from authsvc.domain.values.levels import Requirement


class VerifierError(Exception):
    """Base of all errors."""


class TokenMissing(VerifierError):
    """No bearer token was presented."""


class TokenInvalid(VerifierError):
    """The token is not valid; the text says why, for the log."""


class WrongKind(VerifierError):
    """The token is valid, but it is a machine's where a person's is required, or the other way round."""


class RoleMissing(VerifierError):
    """The token is valid, but its user lacks a role."""


class ScopeMissing(VerifierError):
    """The token is valid, but lacks a scope."""


class StepUpRequired(VerifierError):
    """The token is valid, but its user must authenticate again, as ``requirement`` says (RFC 9470)."""

    def __init__(self, requirement: Requirement) -> None:
        super().__init__(requirement.challenge)
        self.requirement = requirement


class Unavailable(VerifierError):
    """The token cannot be decided now; try again after ``retry_after_s`` seconds."""

    def __init__(self, cause: str, *, retry_after_s: int = 1) -> None:
        super().__init__(cause)
        self.retry_after_s = retry_after_s


class KeysUnknown(Unavailable):
    """
    There are no signing keys that may be used, or the key id is unknown and the keys cannot be fetched now.
    """


class FeedStale(Unavailable):
    """The known revocations are older than the verifier may rely on."""
