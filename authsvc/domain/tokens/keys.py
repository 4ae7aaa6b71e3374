"""Signing keys: which of them verify, are published, and sign (RFC 7517, RFC 7638, RFC 8725)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Literal, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.jsontext import canonical

Algorithm = Literal["ES256", "EdDSA", "RS256"]
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

#: A key younger than this (seconds) does not sign yet, because verifiers may cache the JWKS this long.
PUBLISHED_FIRST_S = 300
#: A key is kept this long (seconds) after its last token expired: for the leeway and for clock differences.
OVERLAP_S = 300
#: Keys made in the same second get increasing dates, at most this far (seconds) in the future.
DATED_AHEAD_S = 60
RSA_MIN_BITS = 2048
#: The cause of an outage, in the log.
NO_KEYS = "signing keys: none"

_NAME_TIME = re.compile(r"^(\d{8}T\d{6}Z)")
_THUMBPRINT_MEMBERS = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}


class KeyRefused(ValueError):
    """A file in the key folder is not a supported key; the message names file and cause."""


class KeyInUse(ValueError):
    """A key must not be removed, or not be added yet; the message has the reason and the time."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with its public members; ``kid`` is its RFC 7638 thumbprint."""

    kid: str
    algorithm: Algorithm
    file_name: str
    created_at: datetime
    private: PrivateKey
    public: PublicKey
    jwk: dict[str, str]

    @classmethod
    def from_pem(cls, pem: bytes, *, file_name: str, modified_at: datetime) -> SigningKey:
        """
        Parse a PKCS #8 PEM; its age counts from the UTC time in *file_name*, else from *modified_at*.

        Raises:
            KeyRefused: not a private key of P-256, Ed25519 or RSA with at least 2,048 bits.
        """
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyRefused(f"{file_name}: not an unencrypted private key in PEM form") from error
        algorithm, jwk = _describe(private, file_name)
        kid = _thumbprint(jwk)
        return cls(
            kid=kid,
            algorithm=algorithm,
            file_name=file_name,
            created_at=_born(file_name, modified_at),
            private=private,  # type: ignore[arg-type]  # _describe refuses every other type
            public=private.public_key(),  # type: ignore[arg-type]
            jwk={**jwk, "kid": kid, "use": "sig", "alg": algorithm},
        )


@dataclass(frozen=True, slots=True)
class Tenure:
    """The period in which a key signs; without an end if there is no newer key."""

    begins: datetime
    ends: datetime | None

    def free_at(self, lifetime_s: int) -> datetime | None:
        """
        When the key may be removed: after its last token (*lifetime_s* seconds) and the overlap; None without
        an end.
        """
        return self.ends and self.ends + timedelta(seconds=lifetime_s + OVERLAP_S)


@dataclass(frozen=True)
class KeyRing:
    """All keys of the folder, newest first: all verify and are published, one signs."""

    keys: tuple[SigningKey, ...]

    @classmethod
    def of(cls, keys: Iterable[SigningKey]) -> KeyRing:
        """A ring of *keys* in any order."""
        return cls(tuple(sorted(keys, key=lambda key: (key.created_at, key.file_name), reverse=True)))

    @cached_property
    def by_id(self) -> dict[str, SigningKey]:
        """The keys by ``kid``."""
        return {key.kid: key for key in self.keys}

    def signer(self, now: datetime) -> SigningKey:
        """
        The newest key that is old enough for verifiers to have it; the oldest if all are younger.

        Raises:
            StoreUnavailable: there is no key.
        """
        if not self.keys:
            raise StoreUnavailable(NO_KEYS)
        fetched = now - timedelta(seconds=PUBLISHED_FIRST_S)
        return next((key for key in self.keys if key.created_at <= fetched), self.keys[-1])

    def tenure(self, key: SigningKey) -> Tenure:
        """The period in which *key*, one of the ring, signs: until the next newer one is old enough."""
        position = self.keys.index(key)
        wait = timedelta(seconds=PUBLISHED_FIRST_S)
        is_oldest = position == len(self.keys) - 1
        return Tenure(
            begins=key.created_at if is_oldest else key.created_at + wait,
            ends=self.keys[position - 1].created_at + wait if position else None,
        )

    def require_unused(self, kid: str, *, now: datetime, lifetime_s: int) -> None:
        """
        Raise KeyInUse unless the key *kid* can be removed safely; *lifetime_s* is that of a token, in
        seconds.

        It cannot while it is the only one, while it signs, and while one of its tokens may be valid.
        """
        if self.by_id.keys() == {kid}:
            raise KeyInUse("it is the last key, and without one nobody can log in or refresh")
        signer = self.signer(now)
        if signer.kid == kid:
            free_at = self.tenure(signer).free_at(lifetime_s)
            raise KeyInUse(
                f"it signs until a newer one is old enough, and can go from {stamp(free_at)} on"
                if free_at
                else "it signs, and no newer one is there to take over"
            )
        tenures = [self.tenure(key) for key in self.keys if key.kid == kid]
        for free_at in (tenure.free_at(lifetime_s) for tenure in tenures if tenure.begins <= now):
            if free_at is not None and now < free_at:
                raise KeyInUse(f"tokens that it signed can be alive; it can go from {stamp(free_at)} on")

    def born_next(self, now: datetime) -> datetime:
        """
        The date of a key made *now*: later than all others, so that it signs after them.

        Raises:
            KeyInUse: it would sign at once, before verifiers could fetch it, because all others are dated
            later.
        """
        born = now.replace(microsecond=0)
        if not self.keys or born > self.keys[0].created_at:
            return born
        following = self.keys[0].created_at.replace(microsecond=0) + timedelta(seconds=1)
        if following - born <= timedelta(seconds=DATED_AHEAD_S):
            return following
        if born <= self.keys[-1].created_at:
            raise KeyInUse(
                f"every key is dated after {stamp(now)}, the time of this machine:"
                " a new one would sign before anybody could fetch it"
            )
        return born

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """
        The public keys (RFC 7517 §5); a key in two files is listed once.

        Raises:
            StoreUnavailable: there is no key. Verifiers would cache an empty set, too.
        """
        if not self.keys:
            raise StoreUnavailable(NO_KEYS)
        return {"keys": [key.jwk for key in self.by_id.values()]}


class KeySource(Protocol):
    """Provides the key ring."""

    def __call__(self) -> KeyRing:
        """The current ring; may block."""

    def recent(self) -> KeyRing | None:
        """The ring that was read recently, without blocking; None if the folder must be read first."""

    def refresh(self) -> None:
        """Read the folder before it is due; may block."""


def stamp(moment: datetime) -> str:
    """*moment* as RFC 3339 text, in UTC and whole seconds."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def generate(algorithm: Algorithm, now: datetime) -> tuple[str, bytes]:
    """Generate a key: its file name, which contains its date, and its PEM."""
    private: PrivateKey
    if algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
    elif algorithm == "EdDSA":
        private = ed25519.Ed25519PrivateKey.generate()
    else:
        private = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{algorithm.lower()}.pem", pem


def _describe(private: object, file_name: str) -> tuple[Algorithm, dict[str, str]]:
    """Algorithm and public JWK members of *private*; the key type alone chooses the algorithm."""
    if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP256R1):
        return "ES256", _members(ECAlgorithm.to_jwk(private.public_key(), as_dict=True))
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "EdDSA", _members(OKPAlgorithm.to_jwk(private.public_key(), as_dict=True))
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size >= RSA_MIN_BITS:
        return "RS256", _members(RSAAlgorithm.to_jwk(private.public_key(), as_dict=True))
    raise KeyRefused(f"{file_name}: P-256, Ed25519 or RSA with at least {RSA_MIN_BITS} bits is needed")


def _members(jwk: dict[str, str]) -> dict[str, str]:
    """Only the members of the key itself; ``key_ops`` and ``kid`` are added elsewhere."""
    return {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}


def _thumbprint(jwk: dict[str, str]) -> str:
    """RFC 7638 §3: SHA-256 over the required members in lexical order."""
    digest = hashlib.sha256(canonical(dict(jwk)).encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _born(file_name: str, modified_at: datetime) -> datetime:
    """The UTC time that *file_name* starts with, else *modified_at*."""
    stamp = _NAME_TIME.match(file_name)
    if stamp is None:
        return modified_at
    try:
        return datetime.strptime(stamp[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return modified_at
