"""Secrets at rest: AES-256-GCM under a key that can be changed while the service runs."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


class Undecryptable(ValueError):
    """The text was encrypted under another key, or for another owner, or is damaged."""


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A ciphertext with its nonce in front, and the id of its key."""

    key_id: str
    text: bytes


@dataclass(frozen=True, slots=True)
class DataKeys:
    """
    Encrypts with the key *current*; decrypts with that or any other key of *by_id*.

    *owner* identifies the owner of a secret and is authenticated: a ciphertext copied to another row does not
    decrypt.
    """

    current: str
    by_id: Mapping[str, AESGCM] = field(repr=False)

    @classmethod
    def of(cls, current: bytes, *others: bytes) -> DataKeys:
        """The keys derived from the secrets in the settings."""
        by_id = {_key_id(secret): AESGCM(_derived(secret, b"key")) for secret in (current, *others)}
        return cls(_key_id(current), by_id)

    def encrypt(self, secret: bytes, owner: bytes) -> Encrypted:
        """*secret*, encrypted for storage."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return Encrypted(self.current, nonce + self.by_id[self.current].encrypt(nonce, secret, owner))

    def decrypt(self, stored: Encrypted, owner: bytes) -> bytes:
        """The secret; raises Undecryptable."""
        key = self.by_id.get(stored.key_id)
        if key is None:
            raise Undecryptable(f"no key has the id {stored.key_id}")
        nonce, text = stored.text[:_NONCE_BYTES], stored.text[_NONCE_BYTES:]
        try:
            return key.decrypt(nonce, text, owner)
        except (InvalidTag, ValueError) as error:
            raise Undecryptable(f"not authentic under the key {stored.key_id}") from error


def _key_id(secret: bytes) -> str:
    """An id that distinguishes keys and does not reveal them."""
    return _derived(secret, b"id").hex()[:16]


def _derived(secret: bytes, what: bytes) -> bytes:
    return hmac.digest(secret, b"authsvc data key 1 " + what, "sha256")
