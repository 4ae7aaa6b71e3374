"""
The reader of access tokens: accepts only the exact signature, header and claims that the issuer writes.

The service and ``authsvc.verifier`` share it.  It depends only on PyJWT and the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol, TypedDict

from jwt import PyJWS
from jwt.utils import base64url_decode, base64url_encode

from authsvc.domain.values.identifiers import is_id
from authsvc.domain.values.jsontext import InvalidJson, Json, parse
from authsvc.domain.values.levels import Acr, Level

if TYPE_CHECKING:
    from jwt.algorithms import AllowedPublicKeys

TYPE: Final = "at+jwt"
#: Longer than any token of a machine, with all scopes that a client can have and an RSA signature.
MAX_LENGTH: Final = 6144
#: The ``client_id`` of people's tokens, which RFC 9068 §2.2 requires: they log in to the service itself.
CLIENT_ID: Final = "authsvc"

_BEARER = re.compile(r"bearer(?: +(?P<token>.*))?", re.IGNORECASE | re.DOTALL)
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
#: The same as the setting ROLES accepts; this module cannot import settings.
_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_SCOPE = re.compile(r"[a-z0-9._:/-]{1,64}")
_METHOD = re.compile(r"[a-z]{1,16}")
_HEADER = {"alg", "kid", "typ"}
#: Signs and verifies only with asymmetric algorithms.
JWS: Final = PyJWS(algorithms=["ES256", "EdDSA", "RS256"])


class InvalidToken(ValueError):
    """Not a token of this issuer and audience; the text has the reason, for the log."""


class Key(Protocol):
    """A public key with the algorithm for its type."""

    @property
    def algorithm(self) -> str:
        """``ES256``, ``EdDSA`` or ``RS256``."""

    @property
    def public(self) -> AllowedPublicKeys:
        """The key, as ``cryptography`` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonClaims:
    """The claims of all tokens, signature verified; times in seconds since the epoch."""

    #: For a machine, the id of the secret that it used.
    session_id: str
    token_id: str
    #: The cut-off counter of the user, or client, when the token was issued.
    epoch: int
    issued_at: int
    not_before: int
    expires_at: int
    issuer: str
    audience: str

    def window_s(self, leeway_s: int) -> tuple[int, int]:
        """Begin and end of validity: the first valid second, and the first invalid one after it."""
        return max(self.issued_at, self.not_before) - leeway_s, self.expires_at + leeway_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims(CommonClaims):
    """The claims of a person's token."""

    user_id: str
    roles: tuple[str, ...]
    #: The level of authentication; None if the token has none.
    level: Level | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineClaims(CommonClaims):
    """The claims of a machine's token: a registered client that calls in its own name."""

    client_id: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Expected values of all tokens; lifetimes and ``leeway_s`` in seconds, None: any lifetime."""

    issuer: str
    audience: str
    #: Longest lifetime of a person's token, and of a machine's.
    lifetime_s: int | None = None
    machine_lifetime_s: int | None = None
    leeway_s: int = 5


def bearer_token(header: str | None) -> str | None:
    """The token in an ``Authorization`` header (RFC 6750 §2.1); None without one, or with another scheme."""
    found = _BEARER.fullmatch((header or "").strip(" "))
    return found["token"] or None if found else None


def read(text: str, rules: Rules, find_key: Callable[[str], Key | None]) -> Claims | MachineClaims:
    """
    The claims of *text*; checks neither time nor revocation.

    *find_key* returns the key with an id, None if there is none.  It is asked only for a well-formed header.

    Raises:
        InvalidToken: anything is wrong with it.
    """
    if len(text) > MAX_LENGTH or not _COMPACT.fullmatch(text):
        raise InvalidToken("not a compact JWS")
    signed, _, signature = text.rpartition(".")
    header, _, payload = signed.partition(".")
    key = _named_key(_header(header), find_key)
    algorithm = JWS.get_algorithm_by_name(key.algorithm)
    if not algorithm.verify(signed.encode(), key.public, _decoded(signature)):
        raise InvalidToken("signature")
    return _accepted(_json(payload), rules)


@lru_cache(maxsize=64)
def _header(segment: str) -> Json:
    """A header; those of all tokens that one key signed are the same."""
    return _json(segment)


def _json(segment: str) -> Json:
    try:
        return parse(_decoded(segment))
    except InvalidJson as error:
        raise InvalidToken("not JSON") from error


def _decoded(segment: str) -> bytes:
    """The bytes of *segment*, which must be their one encoding in base64url (RFC 4648 §3.5)."""
    try:
        data = base64url_decode(segment)
    except ValueError as error:
        raise InvalidToken("not base64url") from error
    if base64url_encode(data).decode() != segment:
        raise InvalidToken("not the one encoding")
    return data


def _named_key(header: Json, find_key: Callable[[str], Key | None]) -> Key:
    """The key that *header* names; no other header field selects key material."""
    if not isinstance(header, dict) or header.keys() != _HEADER or header["typ"] != TYPE:
        raise InvalidToken("header")
    kid = header["kid"]
    key = find_key(kid) if isinstance(kid, str) else None
    # The type of the key chooses the algorithm (RFC 8725 §3.1).
    if key is None or header["alg"] != key.algorithm:
        raise InvalidToken("key or algorithm")
    return key


def _accepted(members: Json, rules: Rules) -> Claims | MachineClaims:
    """*members* as claims: only known sets of claims, each with a value of its type."""
    if not isinstance(members, dict) or frozenset(members) not in _SETS_OF_CLAIMS:
        raise InvalidToken("claims")
    claims = _SETS_OF_CLAIMS[frozenset(members)](members, rules)
    most_s = rules.machine_lifetime_s if isinstance(claims, MachineClaims) else rules.lifetime_s
    if most_s is not None and claims.expires_at - claims.issued_at > most_s:
        raise InvalidToken("lives longer than it may")
    return claims


def _of_person(members: Mapping[str, Json], rules: Rules) -> Claims:
    """The claims of a token issued by a login."""
    _constant(members.get("client_id", CLIENT_ID), CLIENT_ID)
    return Claims(
        user_id=_identifier(members["sub"]),
        roles=_roles(members["roles"]),
        level=_level(members),
        **_common(members, rules),
    )


def _of_machine(members: Mapping[str, Json], rules: Rules) -> MachineClaims:
    """The claims of a token issued to a client: RFC 9068 §2.2 requires its id in two places."""
    client_id = _identifier(members["sub"])
    _constant(members["client_id"], client_id)
    return MachineClaims(client_id=client_id, scopes=_scopes(members["scope"]), **_common(members, rules))


def _common(members: Mapping[str, Json], rules: Rules) -> _Common:
    return {
        "session_id": _identifier(members["sid"]),
        "token_id": _identifier(members["jti"]),
        "epoch": _natural(members["epoch"]),
        "issued_at": _natural(members["iat"]),
        "not_before": _natural(members["nbf"]),
        "expires_at": _natural(members["exp"]),
        "issuer": _constant(members["iss"], rules.issuer),
        "audience": _constant(members["aud"], rules.audience),
    }


class _Common(TypedDict):
    """The fields of CommonClaims."""

    session_id: str
    token_id: str
    epoch: int
    issued_at: int
    not_before: int
    expires_at: int
    issuer: str
    audience: str


def _level(members: Mapping[str, Json]) -> Level | None:
    """The level of authentication in the token, if any."""
    if not members.keys() >= _LEVEL:
        return None
    acr = members["acr"]
    if not isinstance(acr, str) or acr not in _ACRS:
        raise InvalidToken("not a class of authentication")
    return Level(Acr(acr), _methods(members["amr"]), _natural(members["auth_time"]))


_ACRS: Final = frozenset(Acr)
#: All three or none: tokens have them while second factors are on.
_LEVEL: Final = frozenset({"acr", "amr", "auth_time"})
_COMMON = frozenset({"iss", "aud", "sub", "iat", "nbf", "exp", "jti", "sid", "epoch", "client_id"})
_PERSON = _COMMON | {"roles"}
#: All allowed sets of claims, with their readers; any other set is refused.
_SETS_OF_CLAIMS: Final[
    Mapping[frozenset[str], Callable[[Mapping[str, Json], Rules], Claims | MachineClaims]]
] = {
    _PERSON: _of_person,
    _PERSON | _LEVEL: _of_person,
    # Version 0.1.0 wrote no client_id; its tokens are good until they expire.
    _PERSON - {"client_id"}: _of_person,
    (_PERSON - {"client_id"}) | _LEVEL: _of_person,
    _COMMON | {"scope"}: _of_machine,
}


def _natural(value: Json) -> int:
    """A non-negative integer; not ``True``, a string or 10^400."""
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise InvalidToken("not a whole number")
    return value


def _identifier(value: Json) -> str:
    """An identifier in the canonical form that the issuer writes."""
    if not isinstance(value, str) or not is_id(value):
        raise InvalidToken("not an identifier")
    return value


def _constant(value: Json, expected: str) -> str:
    """The one accepted value."""
    if value != expected:
        raise InvalidToken("issued by or for somebody else")
    return expected


def _scopes(value: Json) -> tuple[str, ...]:
    """Names of scopes, each once, separated by one space (RFC 8693 §4.2); may be empty."""
    names = value.split(" ") if isinstance(value, str) and value else []
    if not isinstance(value, str) or not all(map(_SCOPE.fullmatch, names)) or len(set(names)) != len(names):
        raise InvalidToken("scopes")
    return tuple(names)


def _methods(value: Json) -> tuple[str, ...]:
    """Names of methods (RFC 8176), at least one and each once; later versions may add names."""
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    if names != value or not names or len(set(names)) != len(names) or not all(map(_METHOD.fullmatch, names)):
        raise InvalidToken("methods")
    return tuple(names)


def _roles(value: Json) -> tuple[str, ...]:
    """Names of roles, each once, ``user`` among them: ``user``, ``admin``, then the rest in order."""
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    if names != value or "user" not in names or not all(map(_ROLE.fullmatch, names)):
        raise InvalidToken("roles")
    if len(set(names)) != len(names):
        raise InvalidToken("roles")
    return tuple(sorted(names, key=lambda name: (name != "user", name != "admin", name)))
