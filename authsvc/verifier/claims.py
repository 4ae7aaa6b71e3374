"""Access tokens read as strictly as their issuer reads them: every claim, of its type, and none besides."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jwt import PyJWS
from jwt.exceptions import PyJWTError

from authsvc.verifier.errors import TokenInvalid
from authsvc.verifier.keys import ALGORITHMS, VerifyingKey

TYPE = "at+jwt"
MAX_LENGTH = 4096
_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,31}")

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
#: What people's tokens say under ``client_id``.
CLIENT_ID = "authsvc"

_CLAIMS = {"iss", "aud", "sub", "iat", "nbf", "exp", "jti", "sid", "roles", "epoch"}
#: Version 0.1.0 of the service wrote no ``client_id``.
_SETS_OF_CLAIMS = (_CLAIMS | {"client_id"}, _CLAIMS)
_HEADER = {"alg", "kid", "typ"}
_JWS = PyJWS(algorithms=list(ALGORITHMS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a good token says; times in seconds since the epoch."""

    user_id: str
    session_id: str
    token_id: str
    roles: tuple[str, ...]
    #: The cut-off counter of the user when the token was issued.
    epoch: int
    issued_at: int
    not_before: int
    expires_at: int
    issuer: str
    audience: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What every token must have; ``lifetime_s`` and ``leeway_s`` in seconds, None: any lifetime."""

    issuer: str
    audience: str
    lifetime_s: int | None = None
    leeway_s: int = 5


#: The key with an id; None if there is none.  Raises KeysUnknown.
FindKey = Callable[[str], VerifyingKey | None]


def read(text: str, rules: Rules, find_key: FindKey, *, now_s: float) -> Claims:
    """
    The claims of *text*, valid at *now_s* (seconds since the epoch); says nothing of revocation.

    Raises:
        TokenInvalid: anything is wrong with it.
        KeysUnknown: there are no keys to verify it with.
    """
    if len(text) > MAX_LENGTH or not _COMPACT.fullmatch(text):
        raise TokenInvalid("not a compact JWS")
    try:
        key = _named_key(_JWS.get_unverified_header(text), find_key)
        payload = _JWS.decode(text, key.public, algorithms=[key.algorithm])
        members = json.loads(payload.decode(), object_pairs_hook=_unique)
    except (PyJWTError, ValueError, RecursionError) as error:
        raise TokenInvalid("signature or form") from error
    claims = _accepted(members, rules)
    if now_s >= claims.expires_at + rules.leeway_s:
        raise TokenInvalid("expired")
    if now_s < max(claims.issued_at, claims.not_before) - rules.leeway_s:
        raise TokenInvalid("from the future")
    return claims


def _named_key(header: dict[str, Any], find_key: FindKey) -> VerifyingKey:
    """The key that *header* names, to be used as its own type demands; nothing else there has a say."""
    kid = header.get("kid")
    if header.keys() != _HEADER or header["typ"] != TYPE or not isinstance(kid, str):
        raise TokenInvalid("header")
    key = find_key(kid)
    if key is None or header["alg"] != key.algorithm:
        raise TokenInvalid("key or algorithm")
    return key


def _accepted(members: object, rules: Rules) -> Claims:
    if not isinstance(members, dict) or members.keys() not in _SETS_OF_CLAIMS:
        raise TokenInvalid("claims")
    _constant(members.get("client_id", CLIENT_ID), CLIENT_ID)
    claims = Claims(
        user_id=_identifier(members["sub"]),
        session_id=_identifier(members["sid"]),
        token_id=_identifier(members["jti"]),
        roles=_roles(members["roles"]),
        epoch=_natural(members["epoch"]),
        issued_at=_natural(members["iat"]),
        not_before=_natural(members["nbf"]),
        expires_at=_natural(members["exp"]),
        issuer=_constant(members["iss"], rules.issuer),
        audience=_constant(members["aud"], rules.audience),
    )
    if rules.lifetime_s is not None and claims.expires_at - claims.issued_at > rules.lifetime_s:
        raise TokenInvalid("lives longer than it may")
    return claims


def _natural(value: object) -> int:
    """A whole number from 0; ``True`` is none, nor is a string or 10^400."""
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise TokenInvalid("not a whole number")
    return value


def _identifier(value: object) -> str:
    """A UUID in the one form that the issuer writes."""
    if not isinstance(value, str) or not is_id(value):
        raise TokenInvalid("not an identifier")
    return value


def is_id(text: str) -> bool:
    """True for a lower-case UUID with hyphens."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _constant(value: object, expected: str) -> str:
    if value != expected:
        raise TokenInvalid("issued by or for somebody else")
    return expected


def _roles(value: object) -> tuple[str, ...]:
    """Names of roles, each once, ``user`` among them: ``user``, ``admin``, then the rest in order."""
    if not isinstance(value, list) or "user" not in value:
        raise TokenInvalid("roles")
    if not all(isinstance(role, str) and _ROLE.fullmatch(role) for role in value):
        raise TokenInvalid("roles")
    if len(set(value)) != len(value):
        raise TokenInvalid("roles")
    return tuple(sorted(value, key=lambda role: (role != "user", role != "admin", role)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without duplicate names: the last of two would win here, the first elsewhere."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate names")
    return members
