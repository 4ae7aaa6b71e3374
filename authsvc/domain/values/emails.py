"""One canonical form per address: the only spelling that is stored, looked up, limited and cached."""

from __future__ import annotations

from typing import NewType

from email_validator import validate_email

#: An address in canonical form, at most 254 ASCII characters.
Email = NewType("Email", str)

#: Looked up for an address of wrong syntax, so that it costs what an unknown one costs; never registered.
NOBODY = Email("nobody@authsvc.invalid")
#: Octets of a whole address (RFC 5321 §4.5.3.1.3).
MAX_LENGTH = 254


class InvalidEmail(ValueError):
    """The text is no address that this service takes; says so in words for its author, without the text."""

    def __init__(self) -> None:
        super().__init__("must be an e-mail address")


def canonical_email(text: str) -> Email:
    """
    Trim *text*, lower its case and turn its domain into A-labels; idempotent.

    The local part must be ASCII as it was typed, before any normalization: KELVIN SIGN is not a ``k``.
    Quoted local parts, bracketed IP addresses and display names are refused.  Of the special-use domains
    ``example.*`` and ``.test`` are taken, for development; ``.local``, ``.localhost``, ``.invalid``,
    ``.onion`` and names without a dot are not.

    Raises:
        InvalidEmail: whatever else *text* is; no other exception leaves this function.
    """
    trimmed = text.strip()
    # Before the parser sees it: its work grows faster than the length, and no legal address is longer.
    if len(trimmed) > MAX_LENGTH:
        raise InvalidEmail
    local, domain = _parts(trimmed)
    if "." not in domain:
        raise InvalidEmail
    return Email(f"{local.lower()}@{domain}")


def typed_email(text: str) -> Email | None:
    """The canonical form of an address that somebody typed, None where it has none."""
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
