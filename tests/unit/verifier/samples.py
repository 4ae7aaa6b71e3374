"""Tokens, keys and pages of the feed that the verifier's tests start from."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import jwt

from authsvc.domain.tokens.keys import KeyRing, SigningKey
from authsvc.verifier.claims import Claims, Rules
from authsvc.verifier.feed import Clocks
from authsvc.verifier.keys import parse_keys
from authsvc.verifier.transport import Answer
from tests.unit.domain.samples import ALICE_ID, NOW, PROFILE, SESSION_ID, TOKEN_ID, signing_key

NOW_S = NOW.timestamp()
RULES = Rules(issuer=PROFILE.issuer, audience=PROFILE.audience, lifetime_s=PROFILE.lifetime_s)
OTHER_ID = "00000000-0000-4000-8000-0000000000ff"
CLAIMS: dict[str, Any] = {
    "iss": PROFILE.issuer,
    "aud": PROFILE.audience,
    "sub": ALICE_ID,
    "iat": int(NOW_S),
    "nbf": int(NOW_S),
    "exp": int(NOW_S) + 3600,
    "jti": TOKEN_ID,
    "sid": SESSION_ID,
    "roles": ["user"],
    "epoch": 3,
    "client_id": "authsvc",
}
#: In the place of a value: leave the member out.
WITHOUT = object()


class Hands:
    """Both clocks, moved together or apart."""

    def __init__(self) -> None:
        self.wall_s = NOW_S
        self.monotonic_s = 1000.0
        self.clocks = Clocks(wall_s=lambda: self.wall_s, monotonic_s=lambda: self.monotonic_s)

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.wall_s += seconds
        self.monotonic_s += seconds


def signed(payload: bytes, key: SigningKey | None = None, **header: Any) -> str:
    """*payload* with a good signature, and *header* on top of the usual one."""
    key = key or signing_key()
    fields = {"typ": "at+jwt", "kid": key.kid} | header
    named = {name: value for name, value in fields.items() if value is not WITHOUT}
    return jwt.PyJWS().encode(payload, key.private, algorithm=key.algorithm, headers=named)


def claiming(key: SigningKey | None = None, **changes: Any) -> str:
    """A token with a good signature whose claims are changed, or left out."""
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not WITHOUT}
    return signed(json.dumps(claims).encode(), key)


def claims_of(**changes: Any) -> Claims:
    """What the sample token says, changed."""
    fields: dict[str, Any] = {
        "user_id": ALICE_ID,
        "session_id": SESSION_ID,
        "token_id": TOKEN_ID,
        "roles": ("user",),
        "epoch": 3,
        "issued_at": int(NOW_S),
        "not_before": int(NOW_S),
        "expires_at": int(NOW_S) + 3600,
        "issuer": PROFILE.issuer,
        "audience": PROFILE.audience,
    }
    return Claims(**fields | changes)


def jwks(*keys: SigningKey) -> bytes:
    """What the service publishes of *keys*."""
    return json.dumps(KeyRing.of(keys or (signing_key(),)).jwks()).encode()


def find_key_in(*keys: SigningKey) -> Any:
    """A look-up in the published *keys*."""
    return parse_keys(jwks(*keys)).get


def item(kind: str, subject: str, *, epoch: int = 0, until_s: float = NOW_S + 3665) -> dict[str, Any]:
    """One item of the feed."""
    extra = {"epoch": epoch} if kind == "user" else {}
    until = datetime.fromtimestamp(until_s, UTC).isoformat()
    return {"kind": kind, f"{kind}_id": subject, "until": until, **extra}


def page(*items: dict[str, Any], cursor: str = "c", **changes: Any) -> Answer:
    """An answer of the feed."""
    document = {
        "items": list(items),
        "cursor": cursor,
        "reset": False,
        "has_more": False,
        "waited_ms": 0,
        "retry_after_ms": None,
    }
    return Answer(200, {}, json.dumps(document | changes).encode())


def part(value: bytes) -> str:
    """One part of a compact JWS."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
