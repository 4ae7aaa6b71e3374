"""A client's id and secret in an ``Authorization`` header (RFC 7617, RFC 6749 §2.3.1)."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote_plus

from authsvc.domain.client_authentication import ClientCredentials
from authsvc.domain.errors import ClientRefused

_BASIC = re.compile(r"basic +(?P<pair>[A-Za-z0-9+/]+={0,2})", re.IGNORECASE)
_COLON = ":"


def basic_credentials(header: str | None) -> ClientCredentials:
    """
    The id and secret in *header*: Basic is decoded first, then the percent-encoding of each part.

    Raises:
        ClientRefused: no header, another scheme, or not a readable id and secret.
    """
    found = _BASIC.fullmatch((header or "").strip(" "))
    if found is None:
        raise ClientRefused
    try:
        text = base64.b64decode(found["pair"], validate=True).decode()
        client_id, colon, secret = text.partition(_COLON)
        credentials = ClientCredentials(client_id=_plain(client_id), secret=_plain(secret))
    except ValueError as error:  # base64 or UTF-8 is broken: both are ValueErrors
        raise ClientRefused from error
    if not colon:
        raise ClientRefused
    return credentials


def _plain(encoded: str) -> str:
    """
    *encoded*, decoded from ``application/x-www-form-urlencoded``; raises ValueError unless it is UTF-8.
    """
    return unquote_plus(encoded, errors="strict")
