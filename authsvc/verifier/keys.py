"""
The issuer's public keys (RFC 7517): fetched when needed, kept while they may be used, and never fetched
often.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from authsvc.verifier.errors import KeysUnknown
from authsvc.verifier.transport import Answer, TransportError

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

RSA_MIN_BITS = 2048
#: Default age of keys, and bounds of an age that the issuer sends (seconds).
DEFAULT_AGE_S, LEAST_AGE_S, MOST_AGE_S = 300.0, 30.0, 3600.0
#: After this share of their age, keys are fetched again in the background.
REFRESH_AT = 0.8
#: Shortest time between two requests for missing keys (seconds).
RETRY_S = 1.0

_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})(?:$|[,\s])")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key with the algorithm for its type."""

    algorithm: str
    public: PublicKey


@dataclass(frozen=True, slots=True)
class _Held:
    """Keys, with the monotonic times (seconds) of their request, their renewal, and their expiry."""

    keys: Mapping[str, VerifyingKey]
    asked_s: float
    renew_s: float
    expires_s: float


class KeySet:
    """
    The keys of one issuer.

    An unknown id makes it fetch them once more, at most once in RETRY_S seconds, however many unknown ids are
    shown.  An id that was not found is not requested again within *refetch_s* (seconds). Threads that need
    keys during a request wait for its answer.
    """

    def __init__(
        self, fetch: Callable[[], Answer], monotonic: Callable[[], float], *, refetch_s: float
    ) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._refetch_s = refetch_s
        self._held: _Held | None = None
        #: Ids that were not found, with the time of the request (monotonic seconds).
        self._absent: Mapping[str, float] = {}
        self._asked_s = -MOST_AGE_S
        self._fetching = threading.Lock()
        self._renewing = threading.Lock()

    def find(self, kid: str) -> VerifyingKey | None:
        """
        The key *kid*; None if the publisher had no such key when it was asked, a second ago at most.

        Raises:
            KeysUnknown: there are no usable keys, or it cannot be found out now whether *kid* is a new key.
        """
        now_s = self._monotonic()
        held = self._usable()
        if held is None or kid not in held.keys:
            return self._look_for(kid, now_s)
        if now_s >= held.renew_s:
            self._renew_aside()
        return held.keys[kid]

    def _look_for(self, kid: str, shown_s: float) -> VerifyingKey | None:
        """The result of :meth:`find` for a key that is missing at *shown_s* (monotonic seconds)."""
        if self._usable() and shown_s - self._absent.get(kid, -math.inf) < self._refetch_s:
            return None
        self._ask()
        held = self._usable()
        if held is None:
            raise KeysUnknown("no signing keys")
        if kid not in held.keys:
            self._require_news(held, shown_s)
            self._note_absent(kid, held.asked_s, shown_s)
        return held.keys.get(kid)

    def _require_news(self, held: _Held, shown_s: float) -> None:
        """Raise KeysUnknown if an id seen at *shown_s* may belong to a key that is newer than *held*."""
        if held.asked_s < shown_s - RETRY_S:
            raise KeysUnknown("the keys could not be fetched since this id was shown")

    def _note_absent(self, kid: str, asked_s: float, shown_s: float) -> None:
        """Remember that *kid* was not found, and forget old ids, so that few are stored."""
        if asked_s < shown_s:
            return
        recent = {other: at_s for other, at_s in self._absent.items() if asked_s - at_s < self._refetch_s}
        self._absent = recent | {kid: asked_s}

    def _usable(self) -> _Held | None:
        held = self._held
        return held if held and self._monotonic() < held.expires_s else None

    def _ask(self) -> None:
        """
        Fetch the keys, unless that was done within RETRY_S seconds; after a failure the old ones are kept.
        """
        with self._fetching:
            now_s = self._monotonic()
            if now_s - self._asked_s < RETRY_S:
                return
            try:
                self._held = _hold(self._fetch(), now_s)
            except (TransportError, ValueError) as error:
                log.warning("signing keys not fetched: %s", error)
            # Counted from the end of a request, so that threads that waited for a slow failure do not repeat
            # it.
            self._asked_s = self._monotonic()

    def _renew_aside(self) -> None:
        """Fetch on a separate thread, one at a time; checks continue with the current keys."""
        if self._monotonic() - self._asked_s < RETRY_S or not self._renewing.acquire(blocking=False):
            return

        def renew() -> None:
            try:
                self._ask()
            finally:
                self._renewing.release()

        threading.Thread(target=renew, name="verifier-keys", daemon=True).start()


def _hold(answer: Answer, now_s: float) -> _Held:
    """The keys in *answer*; raises ValueError if there are none."""
    if answer.status != 200:  # noqa: PLR2004 - OK
        raise ValueError(f"status {answer.status}")
    found = _MAX_AGE.search(answer.headers.get("cache-control", ""))
    age_s = min(MOST_AGE_S, max(LEAST_AGE_S, float(found[1]))) if found else DEFAULT_AGE_S
    return _Held(
        keys=parse_keys(answer.body),
        asked_s=now_s,
        renew_s=now_s + REFRESH_AT * age_s,
        expires_s=now_s + age_s,
    )


def parse_keys(body: bytes) -> Mapping[str, VerifyingKey]:
    """
    The keys of a JWK set that verify signatures, by id; others are ignored.

    Raises:
        ValueError: not a JWK set, or none in it is for us.
    """
    document = json.loads(body)
    listed = document.get("keys") if isinstance(document, dict) else None
    keys = {}
    for jwk in listed if isinstance(listed, list) else ():
        # One invalid key must not make the others unusable.
        with suppress(PyJWTError, ValueError, TypeError, KeyError):
            keys[_kid(jwk)] = _verifying_key(jwk)
    if not keys:
        raise ValueError("no key that verifies signatures")
    return MappingProxyType(keys)


def _kid(jwk: Mapping[str, Any]) -> str:
    kid = jwk["kid"]
    if not isinstance(kid, str):
        raise TypeError("kid")
    return kid


def _verifying_key(jwk: Mapping[str, Any]) -> VerifyingKey:
    """*jwk* as a key; raises ValueError if it is private, weak, or for another use."""
    if "d" in jwk or jwk.get("use", "sig") != "sig":
        raise ValueError("not a public key for signatures")
    key = _by_type(dict(jwk))
    if jwk.get("alg", key.algorithm) != key.algorithm:
        raise ValueError("another algorithm than that of its type")
    return key


def _by_type(jwk: dict[str, Any]) -> VerifyingKey:
    loaders = {"EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk, "RSA": RSAAlgorithm.from_jwk}
    public: object = loaders[jwk["kty"]](jwk)
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return VerifyingKey("ES256", public)
    if isinstance(public, ed25519.Ed25519PublicKey):
        return VerifyingKey("EdDSA", public)
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= RSA_MIN_BITS:
        return VerifyingKey("RS256", public)
    raise ValueError("a key of another kind")
