"""
All errors of the domain. ``code`` is stable and public; ``str(error)`` is only for the log.

AuthError
├── TokenMissing            token_missing
├── TokenInvalid            token_invalid
├── InvalidCredentials      invalid_credentials
├── RefreshInvalid          refresh_invalid
├── RefreshReused           refresh_reused
├── SessionOver             session_ended
├── CodeInvalid             code_invalid
│   └── CounterNotRisen     code_invalid        (user_id, factor_id)
├── StepUpRequired          step_up_required    (requirement)
├── Forbidden               forbidden
├── EmailUnverified         email_unverified
├── SecondFactorRequired    second_factor_required  (challenge, expires_in, methods)
├── RegistrationClosed      registration_closed
├── WrongPassword           wrong_password
├── ClientRefused           invalid_client
├── RightMissing            unauthorized_client
├── GrantUnsupported        unsupported_grant_type
├── InvalidScope            invalid_scope
├── ScopeMissing            insufficient_scope
├── NotFound                not_found
├── EmailTaken              email_taken
├── TooMany                 too_many
├── PasskeyKnown            passkey_known
├── LastAdmin               last_admin
├── PreconditionFailed      precondition_failed
├── Invalid                 validation_failed   (errors: field path -> messages)
├── RateLimited             rate_limited        (attempt)
├── HashingBusy             busy                (retry_after_s)
└── StoreUnavailable        unavailable         (store, retry_after_s)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from authsvc.domain.values.identifiers import UserId
    from authsvc.domain.values.levels import Requirement
    from authsvc.domain.values.limits import Attempt


class AuthError(Exception):
    """Base of all errors; ``code`` is part of the public contract."""

    code: ClassVar[str]


class TokenMissing(AuthError):
    """No bearer token was presented."""

    code = "token_missing"


class TokenInvalid(AuthError):
    """The access token is forged, expired, revoked or malformed; callers never learn which."""

    code = "token_invalid"


class InvalidCredentials(AuthError):
    """Unknown address, wrong password or disabled user: one answer for all three."""

    code = "invalid_credentials"


class RefreshInvalid(AuthError):
    """The refresh token is not one of this service; no session is affected."""

    code = "refresh_invalid"


class RefreshReused(AuthError):
    """A refresh token was used again after the grace time; its session has ended."""

    code = "refresh_reused"


class SessionOver(AuthError):
    """The refresh token is genuine, but its session has ended or expired."""

    code = "session_ended"


class CodeInvalid(AuthError):
    """A ticket, a code, a link or a second factor is wrong, used or expired; callers never learn which."""

    code = "code_invalid"


class CounterNotRisen(CodeInvalid):
    """The counter of a passkey did not rise: it may have been copied (WebAuthn Level 3 §6.1.1)."""

    def __init__(self, user_id: UserId, factor_id: str) -> None:
        super().__init__("the counter did not rise")
        self.user_id = user_id
        self.factor_id = factor_id


class StepUpRequired(AuthError):
    """
    The token is valid, but its level is too low: ``requirement`` is what a step-up must reach (RFC 9470).
    """

    code = "step_up_required"

    def __init__(self, requirement: Requirement) -> None:
        super().__init__(requirement.acr or "")
        self.requirement = requirement


class Forbidden(AuthError):
    """The caller is known but lacks the role, or the right."""

    code = "forbidden"


class EmailUnverified(AuthError):
    """The password is correct, but the address must be verified before the first login."""

    code = "email_unverified"


class SecondFactorRequired(AuthError):
    """The password is correct; answer *challenge* with one of *methods* within *expires_in* seconds."""

    code = "second_factor_required"

    def __init__(self, challenge: str, expires_in: int, methods: Sequence[str]) -> None:
        super().__init__()
        self.challenge = challenge
        self.expires_in = expires_in
        self.methods = list(methods)


class RegistrationClosed(AuthError):
    """Only operators create accounts."""

    code = "registration_closed"


class WrongPassword(AuthError):
    """A logged-in caller gave a wrong current password."""

    code = "wrong_password"


class ClientRefused(AuthError):
    """No client, an unknown one or a wrong secret: one answer for all three."""

    code = "invalid_client"


class RightMissing(AuthError):
    """The client is known but lacks the right; on an OAuth route (RFC 6749 §5.2)."""

    code = "unauthorized_client"


class GrantUnsupported(AuthError):
    """The token endpoint does not support this ``grant_type`` (RFC 6749 §5.2)."""

    code = "unsupported_grant_type"


class InvalidScope(AuthError):
    """The client asked for a scope that it does not have (RFC 6749 §5.2)."""

    code = "invalid_scope"


class ScopeMissing(AuthError):
    """The token is valid, but lacks a required scope (RFC 6750 §3.1)."""

    code = "insufficient_scope"


class NotFound(AuthError):
    """It does not exist, or belongs to another user."""

    code = "not_found"


class EmailTaken(AuthError):
    """Another account has this canonical address."""

    code = "email_taken"


class TooMany(AuthError):
    """The largest allowed number is reached."""

    code = "too_many"


class PasskeyKnown(AuthError):
    """This passkey is registered already."""

    code = "passkey_known"


class LastAdmin(AuthError):
    """The last active admin cannot be demoted, disabled or deleted."""

    code = "last_admin"


class PreconditionFailed(AuthError):
    """``If-Match`` named another version."""

    code = "precondition_failed"


class Invalid(AuthError):
    """One or more fields break a rule; ``errors`` maps field paths to messages, never to values."""

    code = "validation_failed"

    def __init__(self, errors: Mapping[str, Sequence[str]]) -> None:
        super().__init__(", ".join(sorted(errors)))
        self.errors = {field: list(messages) for field, messages in errors.items()}


class RateLimited(AuthError):
    """A limit is exhausted; ``attempt`` says which and for how long."""

    code = "rate_limited"

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt.limit.name)
        self.attempt = attempt


class HashingBusy(AuthError):
    """The hashing queue is full or too slow; the password was not checked."""

    code = "busy"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"retry after {retry_after_s} s")
        self.retry_after_s = retry_after_s


class StoreUnavailable(AuthError):
    """A required store did not answer; ``store`` is for the log, never for the caller."""

    code = "unavailable"

    def __init__(self, store: str, retry_after_s: int = 2) -> None:
        super().__init__(store)
        self.store = store
        self.retry_after_s = retry_after_s
