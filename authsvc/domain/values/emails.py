"""The canonical form of e-mail addresses; no other form is stored, looked up, limited or cached."""

from __future__ import annotations

from typing import NewType

from email_validator import validate_email

#: An address in canonical form, at most 254 ASCII characters.
Email = NewType("Email", str)

#: Looked up in place of a malformed address, so that it takes as long as an unknown one; no account has it.
NOBODY = Email("nobody@authsvc.invalid")
#: Octets of a whole address (RFC 5321 §4.5.3.1.3).
MAX_LENGTH = 254


class InvalidEmail(ValueError):
    """Not an address that this service accepts; the message is for the caller and does not repeat it."""

    def __init__(self) -> None:
        super().__init__("must be an e-mail address")


def canonical_email(text: str) -> Email:
    """
    Trim *text*, lower its case and turn its domain into A-labels; idempotent.

    The local part must be ASCII as it was typed, before any normalization: KELVIN SIGN is not a ``k``.
    Quoted local parts, bracketed IP addresses and display names are refused.  Of the special-use domains,
    ``example.*`` and ``.test`` are accepted, for development; ``.local``, ``.localhost``, ``.invalid``,
    ``.onion`` and names without a dot are not.

    Raises:
        InvalidEmail: for any other text; no other exception is raised.
    """
    trimmed = text.strip()
    # Check before parsing, whose time grows faster than the length; no legal address is longer.
    if len(trimmed) > MAX_LENGTH:
        raise InvalidEmail
    local, domain = _parts(trimmed)
    if "." not in domain:
        raise InvalidEmail
    return Email(f"{local.lower()}@{domain}")


def typed_email(text: str) -> Email | None:
    """The canonical form of a typed address; None if it has none."""
    try:
        return canonical_email(text)
    except InvalidEmail:
        return None


def _parts(text: str) -> tuple[str, str]:
    """The local part as typed and the domain as A-labels; the domain is NFC and lower case by UTS 46."""
    try:
        found = validate_email(
            text, check_deliverability=False, strict=True, allow_smtputf8=False, test_environment=True
        )
    except ValueError:  # the library's own errors, and what idna raises: both are ValueErrors
        # The library's messages quote the input, which belongs in no log: the cause is dropped.
        raise InvalidEmail from None
    return found.local_part, found.ascii_domain
