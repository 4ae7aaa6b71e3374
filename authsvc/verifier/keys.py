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
#: Where the issuer names no age, and the bounds of one that it does name (seconds).
DEFAULT_AGE_S, LEAST_AGE_S, MOST_AGE_S = 300.0, 30.0, 3600.0
#: At this part of their age keys are fetched anew, beside the requests.
REFRESH_AT = 0.8
#: Keys that are needed and not there are asked for so often at most (seconds).
RETRY_S = 1.0

_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})(?:$|[,\s])")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key and the one algorithm that its type is for."""

    algorithm: str
    public: PublicKey


@dataclass(frozen=True, slots=True)
class _Held:
    """Keys, with the monotonic times (seconds) of their request, of their renewal, and of their end."""

    keys: Mapping[str, VerifyingKey]
    asked_s: float
    renew_s: float
    expires_s: float


class KeySet:
    """
    The keys of one issuer.

    An unknown id makes it fetch them once more, at most once in RETRY_S seconds, however many unknown ids are
    shown.  One that was looked for and not found is not looked for again within *refetch_s* (seconds).
    Threads that need keys while they are being fetched wait for that one answer.
    """

    def __init__(
        self, fetch: Callable[[], Answer], monotonic: Callable[[], float], *, refetch_s: float
    ) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._refetch_s = refetch_s
        self._held: _Held | None = None
        #: Ids that were looked for and not found, with the time of the request (monotonic seconds).
        self._absent: Mapping[str, float] = {}
        self._asked_s = -MOST_AGE_S
        self._fetching = threading.Lock()
        self._renewing = threading.Lock()

    def find(self, kid: str) -> VerifyingKey | None:
        """
        The key *kid*; None if the publisher had no such key when it was asked, a second ago at most.

        Raises:
            KeysUnknown: there are no keys that may be used, or nobody can say now whether *kid* is a new one.
        """
        now_s = self._monotonic()
        held = self._usable()
        if held is None or kid not in held.keys:
            return self._look_for(kid, now_s)
        if now_s >= held.renew_s:
            self._renew_aside()
        return held.keys[kid]

    def _look_for(self, kid: str, shown_s: float) -> VerifyingKey | None:
        """What :meth:`find` returns for a key that is not there at *shown_s* (monotonic seconds)."""
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
        """Raise KeysUnknown if an id shown at *shown_s* may be that of a key which is newer than *held*."""
        if held.asked_s < shown_s - RETRY_S:
            raise KeysUnknown("the keys could not be fetched since this id was shown")

    def _note_absent(self, kid: str, asked_s: float, shown_s: float) -> None:
        """Note that *kid* is no key if it was asked for, and forget old notes: few are ever kept."""
        if asked_s < shown_s:
            return
        recent = {other: at_s for other, at_s in self._absent.items() if asked_s - at_s < self._refetch_s}
        self._absent = recent | {kid: asked_s}

    def _usable(self) -> _Held | None:
        held = self._held
        return held if held and self._monotonic() < held.expires_s else None

    def _ask(self) -> None:
        """Fetch, unless that was done within RETRY_S seconds; keeps what it has where it fails."""
        with self._fetching:
            now_s = self._monotonic()
            if now_s - self._asked_s < RETRY_S:
                return
            try:
                self._held = _hold(self._fetch(), now_s)
            except (TransportError, ValueError) as error:
                log.warning("signing keys not fetched: %s", error)
            # Counted from the end: threads that waited for a slow failure do not each repeat it.
            self._asked_s = self._monotonic()

    def _renew_aside(self) -> None:
        """Fetch on a thread of its own, one at a time: requests go on with what there is."""
        if self._monotonic() - self._asked_s < RETRY_S or not self._renewing.acquire(blocking=False):
            return

        def renew() -> None:
            try:
                self._ask()
            finally:
                self._renewing.release()

        threading.Thread(target=renew, name="verifier-keys", daemon=True).start()


def _hold(answer: Answer, now_s: float) -> _Held:
    """The keys in *answer*; raises ValueError where there are none."""
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
    The keys of a JWK set that verify signatures, by id; those for anything else are passed over.

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
    """*jwk* by its type; raises ValueError for one that is private, weak, or meant for something else."""
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
