"""Users, sessions, tokens and keys that the tests of the rules start from."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from authsvc.domain.sessions import Session
from authsvc.domain.tokens.access import AccessToken, TokenProfile, signed_digest
from authsvc.domain.tokens.keys import Algorithm, KeyRing, SigningKey, generate
from authsvc.domain.users import RoleNames, User
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId
from authsvc.domain.values.levels import Acr, Level

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
ALICE_ID = UserId("00000000-0000-4000-8000-00000000000a")
SESSION_ID = SessionId("00000000-0000-4000-8000-00000000000b")
TOKEN_ID = TokenId("00000000-0000-4000-8000-00000000000c")
SALT = bytes(range(16))
DIGEST = signed_digest("header.payload.signature")

PROFILE = TokenProfile(
    issuer="http://issuer.test",
    audience="tests",
    lifetime_s=3600,
    leeway_s=5,
    roles=RoleNames(("billing", "editor")),
)
ISSUED_AT = int(NOW.timestamp())
#: What a good token says, issued NOW.
CLAIMS: dict[str, Any] = {
    "iss": PROFILE.issuer,
    "aud": PROFILE.audience,
    "sub": ALICE_ID,
    "iat": ISSUED_AT,
    "nbf": ISSUED_AT,
    "exp": ISSUED_AT + 3600,
    "jti": TOKEN_ID,
    "sid": SESSION_ID,
    "roles": ["user"],
    "epoch": 3,
    "client_id": "authsvc",
}
#: What it says beside that while there are second factors.
LEVEL_CLAIMS: dict[str, Any] = {"acr": "aal2", "amr": ["pwd", "otp", "mfa"], "auth_time": ISSUED_AT - 60}
LEVEL = Level(Acr.AAL2, ("pwd", "otp", "mfa"), ISSUED_AT - 60)
#: In the place of a value: leave the member out.
WITHOUT: Any = object()
#: Turns the sample into the claims of a machine.
MACHINE: dict[str, Any] = {
    "roles": WITHOUT,
    "client_id": CLAIMS["sub"],
    "scope": "orders:read orders:write",
    "exp": CLAIMS["iat"] + 600,
}


def later(seconds: float) -> datetime:
    """The time *seconds* after NOW."""
    return NOW + timedelta(seconds=seconds)


def user(**changes: Any) -> User:
    """Alice, changed."""
    alice = User(id=ALICE_ID, email=Email("alice@example.com"), created_at=NOW, updated_at=NOW, epoch=3)
    return replace(alice, **changes)


def session(**changes: Any) -> Session:
    """A living session of Alice, idle for a week, for 30 days at most, changed."""
    return replace(
        Session(
            id=SESSION_ID,
            user_id=ALICE_ID,
            device_id=None,
            ip="192.0.2.1",
            user_agent=None,
            created_at=NOW,
            last_used_at=NOW,
            idle_expires_at=later(604_800),
            expires_at=later(2_592_000),
            counter=5,
            rotated_at=NOW,
            salt=SALT,
        ),
        **changes,
    )


def access_token(**changes: Any) -> AccessToken:
    """A token of Alice's session, issued now, changed."""
    issued_at = int(NOW.timestamp())
    return replace(
        AccessToken(
            token_id=TOKEN_ID,
            session_id=SESSION_ID,
            user_id=ALICE_ID,
            roles=("user",),
            epoch=3,
            issued_at=issued_at,
            not_before=issued_at,
            expires_at=issued_at + 3600,
            issuer=PROFILE.issuer,
            audience=PROFILE.audience,
            digest=DIGEST,
        ),
        **changes,
    )


@cache
def pem(algorithm: Algorithm) -> bytes:
    """A private key; RSA with the least that is taken, since larger ones are slow to make."""
    if algorithm != "RS256":
        return generate(algorithm, NOW)[1]
    return rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@cache
def signing_key(algorithm: Algorithm = "ES256", *, age_s: float = 3600) -> SigningKey:
    """The one key of *algorithm*, made *age_s* seconds before NOW."""
    born = later(-age_s)
    name = f"{born:%Y%m%dT%H%M%SZ}-{algorithm.lower()}.pem"
    return SigningKey.from_pem(pem(algorithm), file_name=name, modified_at=NOW)


def ring(*algorithms: Algorithm) -> KeyRing:
    """A ring of one key of each of *algorithms*, by default ES256 alone."""
    return KeyRing.of(signing_key(algorithm) for algorithm in algorithms or ("ES256",))


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


def part(value: bytes) -> str:
    """One part of a compact JWS."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
