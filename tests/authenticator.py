"""
An authenticator in software, with the browser around it: it registers and signs, and lies for a test.

Written from the specification (WebAuthn Level 3 §6, RFC 9052), without the library that the service uses.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import struct
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

if TYPE_CHECKING:
    from collections.abc import Mapping

ES256, EDDSA, RS256 = -7, -8, -257
#: Bits of the flags in authenticator data.
UP, UV, BE, BS, AT, ED = 0x01, 0x04, 0x08, 0x10, 0x40, 0x80

RP_ID = "example.com"
ORIGIN = "https://app.example.com"

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def b64(raw: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """The bytes of base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """One key for the whole run: making one takes long."""
    return rsa.generate_private_key(65537, bits)


def new_key(algorithm: int) -> PrivateKey:
    """A private key for *algorithm*."""
    if algorithm == ES256:
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate() if algorithm == EDDSA else rsa_key()


def cose_key(key: PrivateKey) -> dict[int, Any]:
    """The public half of *key* (RFC 9053 §7, RFC 8230 §4)."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        point = key.public_key().public_numbers()
        return {1: 2, 3: ES256, -1: 1, -2: point.x.to_bytes(32), -3: point.y.to_bytes(32)}
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return {1: 1, 3: EDDSA, -1: 6, -2: key.public_key().public_bytes_raw()}
    numbers = key.public_key().public_numbers()
    modulus = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)
    return {1: 3, 3: RS256, -1: modulus, -2: numbers.e.to_bytes(3)}


def sign(key: PrivateKey, message: bytes) -> bytes:
    """A signature as WebAuthn has it for the algorithm of *key*."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    return key.sign(message, padding.PKCS1v15(), hashes.SHA256())


def cbor(value: object) -> bytes:
    """Deterministic CBOR (RFC 8949 §4.2) of what authenticators write: integers, bytes, text, lists, maps."""
    if isinstance(value, int):
        return _head(1, -1 - value) if value < 0 else _head(0, value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(cbor, value))
    assert isinstance(value, dict)
    members = sorted((cbor(name), cbor(member)) for name, member in value.items())
    return _head(5, len(members)) + b"".join(name + member for name, member in members)


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    size = next(size for size in (1, 2, 4, 8) if number < 1 << 8 * size)
    return bytes([major << 5 | 24 + size.bit_length() - 1]) + number.to_bytes(size)


@dataclass(kw_only=True)
class Lies:
    """False statements of an answer whose signature is valid."""

    #: Members of the client data; one that is None is left out.
    client_data: Mapping[str, object] = field(default_factory=dict)
    rp_id: str | None = None
    #: Flags to set, and to clear.
    flags: int = 0
    without: int = 0
    counter: int | None = None
    public_key: Mapping[int, object] | None = None
    credential_id: bytes | None = None
    #: Register under this id.
    registers: bytes | None = None
    user_handle: bytes | None = None


HONEST = Lies()


@dataclass
class Key:
    """One passkey."""

    private: PrivateKey
    user_handle: bytes
    counter: int


@dataclass
class Authenticator:
    """Holds passkeys of one site; each answer is the JSON that a page sends on."""

    origin: str = ORIGIN
    algorithm: int = ES256
    verifies_user: bool = True
    is_backup_eligible: bool = False
    #: False: its counter stays 0, as that of most passkeys.
    counts: bool = True
    keys: dict[bytes, Key] = field(default_factory=dict)

    def create(self, options: Mapping[str, Any], lies: Lies = HONEST) -> dict[str, Any]:
        """Register, as ``navigator.credentials.create`` does; options as they came from the service."""
        offered = [one["alg"] for one in options["pubKeyCredParams"]]
        assert self.algorithm in offered, offered
        private, credential_id = new_key(self.algorithm), lies.registers or secrets.token_bytes(32)
        key = Key(private, unb64(options["user"]["id"]), 1 if self.counts else 0)
        self.keys[credential_id] = key
        public = cbor(dict(lies.public_key if lies.public_key is not None else cose_key(private)))
        attested = bytes(16) + struct.pack(">H", len(credential_id)) + credential_id + public
        data = self._authenticator_data(options["rp"]["id"], key.counter, lies, more=AT) + attested
        statement = {"fmt": "none", "attStmt": {}, "authData": data}
        shown_id = b64(lies.credential_id or credential_id)
        return {
            "id": shown_id,
            "rawId": shown_id,
            "type": "public-key",
            "authenticatorAttachment": "cross-platform",
            "clientExtensionResults": {},
            "response": {
                "clientDataJSON": b64(self._client_data("webauthn.create", options, lies)),
                "attestationObject": b64(cbor(statement)),
                "transports": ["usb", "nfc"],
                "publicKeyAlgorithm": self.algorithm,
                "authenticatorData": b64(data),
            },
        }

    def get(
        self, options: Mapping[str, Any], lies: Lies = HONEST, *, with_id: bytes | None = None
    ) -> dict[str, Any]:
        """Sign, as ``navigator.credentials.get`` does, with a passkey that the options allow."""
        allowed = [unb64(one["id"]) for one in options["allowCredentials"]]
        credential_id = with_id or next(one for one in self.keys if not allowed or one in allowed)
        key = self.keys[credential_id]
        if self.counts:
            key.counter += 1
        data = self._authenticator_data(options["rpId"], key.counter, lies)
        client_data = self._client_data("webauthn.get", options, lies)
        signature = sign(key.private, data + hashlib.sha256(client_data).digest())
        shown_id = b64(lies.credential_id or credential_id)
        return {
            "id": shown_id,
            "rawId": shown_id,
            "type": "public-key",
            "authenticatorAttachment": "cross-platform",
            "clientExtensionResults": {},
            "response": {
                "clientDataJSON": b64(client_data),
                "authenticatorData": b64(data),
                "signature": b64(signature),
                "userHandle": b64(lies.user_handle or key.user_handle),
            },
        }

    def _authenticator_data(self, rp_id: str, counter: int, lies: Lies, *, more: int = 0) -> bytes:
        flags = UP | more
        flags |= UV if self.verifies_user else 0
        flags |= BE if self.is_backup_eligible else 0
        flags = (flags | lies.flags) & ~lies.without
        shown = counter if lies.counter is None else lies.counter
        return hashlib.sha256((lies.rp_id or rp_id).encode()).digest() + struct.pack(">BI", flags, shown)

    def _client_data(self, kind: str, options: Mapping[str, Any], lies: Lies) -> bytes:
        members: dict[str, object] = {
            "type": kind,
            "challenge": options["challenge"],
            "origin": self.origin,
            "crossOrigin": False,
            **lies.client_data,
        }
        present = {name: member for name, member in members.items() if member is not None}
        return json.dumps(present, separators=(",", ":")).encode()
