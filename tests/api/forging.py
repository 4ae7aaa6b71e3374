"""
Forged tokens: changed texts, other signatures, other headers, and false claims signed with our own key.

Not here: a token of a new id with otherwise good claims.  Whoever can sign with our key is the service.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from jwt.algorithms import get_default_algorithms

from authsvc.domain.tokens.keys import SigningKey
from authsvc.domain.values.identifiers import new_id
from tests.unit.domain.samples import signing_key

if TYPE_CHECKING:
    from collections.abc import Callable

Claims: TypeAlias = dict[str, Any]
#: What was done, and the text that came of it.
Forgery: TypeAlias = tuple[str, str]

ALPHABET = string.ascii_letters + string.digits + "-_"
STRANGE = "+/=. \t\n\x00é\u0660\ud800%,;\"'{}"
#: The order of P-256: with (r, s) also (r, n - s) is a signature of the same text.
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1.5, 1e300, 2**53, 10**40, "", "0", "null", "*", "../x", "\x00",
    "' OR 1=1 --", "\ud800", [], [[]], [None], ["user"], {}, {"": ""}, {"$ne": None}, "x" * 2000,
)  # fmt: skip
ALGORITHMS: tuple[Any, ...] = (
    "none", "None", "NONE", "nOnE", "", None, 0, [], ["ES256"], "HS256", "HS384", "HS512", "ES256", "es256",
    "ES384", "ES512", "ES256K", "PS256", "RS256", "RS384", "EdDSA", "Ed25519", "ECDH-ES", "dir", "A128GCM",
)  # fmt: skip
TYPES: tuple[Any, ...] = (
    "JWT",
    "jwt",
    "AT+JWT",
    "application/at+jwt",
    "at+jwt ",
    "",
    None,
    1,
    ["at+jwt"],
    "logout+jwt",
)
KIDS: tuple[Any, ...] = (
    "", "0", None, 1, True, [], {}, "../../../../dev/null", "/etc/passwd", "' UNION SELECT 'x' --", "http://evil.test/k",
    "\x00", "a" * 3000, "*", "$(id)",
)  # fmt: skip


def coded(raw: bytes) -> str:
    """One part of a compact JWS."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(part: str) -> bytes:
    """What is in one part."""
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def dumped(value: object) -> bytes:
    """JSON."""
    return json.dumps(value).encode()


@dataclass(slots=True)
class Forger:
    """Makes forgeries of *genuine*, a live token that *key* signed, by chance alone."""

    genuine: str
    key: SigningKey
    random: Random
    #: Each makes one forgery.
    kinds: tuple[Callable[[Forger], str], ...]
    header: Claims = field(init=False)
    claims: Claims = field(init=False)

    def __post_init__(self) -> None:
        self.header, self.claims = (json.loads(decoded(part)) for part in self.genuine.split(".")[:2])
        # Bound to its text, the genuine id would be refused whatever else is forged.
        self.claims["jti"] = new_id()

    def forgeries(self, count: int) -> Iterator[Forgery]:
        """*count* texts, as many of each kind; a change that changed nothing is no forgery."""
        kinds = cycle(self.kinds)
        while count:
            kind = next(kinds)
            text = kind(self)
            if text != self.genuine:
                count -= 1
                yield kind.__name__, text

    def signed(self, payload: bytes, header: bytes | None = None, key: SigningKey | None = None) -> str:
        """*payload* under *header* (by default the usual one) with a good signature of *key* (ours)."""
        key = key or self.key
        text = f"{coded(header if header is not None else dumped(self.header))}.{coded(payload)}"
        return f"{text}.{coded(signature(text.encode(), key))}"

    def claiming(self, **changes: object) -> str:
        """Our own signature over changed claims."""
        return self.signed(dumped(self.claims | changes))

    def parts(self) -> list[str]:
        """Header, payload and signature."""
        return self.genuine.split(".")

    def pick(self, choices: tuple[Any, ...]) -> Any:
        """One of them."""
        return self.random.choice(choices)

    def name(self) -> str:
        """One of the claims."""
        return self.random.choice(sorted(self.claims))

    def stranger(self) -> SigningKey:
        """A key that the service does not have."""
        return signing_key(self.pick(("ES256", "EdDSA", "RS256")))


def signature(text: bytes, key: SigningKey) -> bytes:
    """The signature of *text* by *key*."""
    made: bytes = get_default_algorithms()[key.algorithm].sign(text, key.private)
    return made


def other_character(forger: Forger) -> str:
    """Any character at any position."""
    position = forger.random.randrange(len(forger.genuine))
    other = forger.random.choice(ALPHABET + STRANGE)
    return forger.genuine[:position] + other + forger.genuine[position + 1 :]


def flipped_bit(forger: Forger) -> str:
    """Any bit of what header, payload or signature say."""
    parts = forger.parts()
    place = forger.random.randrange(3)
    raw = bytearray(decoded(parts[place]))
    raw[forger.random.randrange(len(raw))] ^= 1 << forger.random.randrange(8)
    parts[place] = coded(bytes(raw))
    return ".".join(parts)


def cut_or_grown(forger: Forger) -> str:
    """A piece less, or a piece more."""
    start, size = forger.random.randrange(len(forger.genuine)), forger.random.randrange(1, 9)
    piece = "".join(forger.random.choices(ALPHABET + STRANGE, k=forger.pick((0, size))))
    return forger.genuine[:start] + piece + forger.genuine[start + int(forger.pick((0, size))) :]


def other_parts(forger: Forger) -> str:
    """Parts left out, doubled or in another order, padded or wrapped."""
    chosen = forger.random.choices([*forger.parts(), "", "e30", "AA"], k=forger.pick((1, 2, 3, 3, 3, 4, 5)))
    before, after = forger.pick(("", " ", "\n", "Bearer ", '"')), forger.pick(("", "=", "==", "\n"))
    return f"{before}{forger.pick(('.', '.', '.', '..', ' . ', '=.')).join(chosen)}{after}"


def other_spelling(forger: Forger) -> str:
    """The unused bits of a part's last character, padding, or the other alphabet."""
    parts = forger.parts()
    place = forger.random.randrange(3)
    last = ALPHABET_64.index(parts[place][-1])
    parts[place] = forger.pick(
        (
            parts[place][:-1] + ALPHABET_64[last ^ forger.random.randrange(1, 16)],
            parts[place] + "=" * forger.random.randrange(1, 3),
            parts[place].replace("-", "+").replace("_", "/"),
        )
    )
    return ".".join(parts)


def other_curve_point(forger: Forger) -> str:
    """The signature as zeros, swapped, in DER, complemented, or of another size."""
    text, _, last = forger.genuine.rpartition(".")
    raw = decoded(last)
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    forms = (
        bytes(64),
        bytes(63) + b"\x01",
        raw[32:] + raw[:32],
        utils.encode_dss_signature(r, s),
        r.to_bytes(32) + (P256_ORDER - s).to_bytes(32),
        raw + b"\x00",
        raw[:-1],
        P256_ORDER.to_bytes(32) * 2,
        b"\xff" * 64,
    )
    return f"{text}.{coded(forger.pick(forms))}"


def unsigned(forger: Forger) -> str:
    """Any algorithm, without a signature or with one of nobody."""
    header = dumped(forger.header | {"alg": forger.pick(ALGORITHMS)})
    payload = dumped(forger.claims | {"roles": ["user", "admin"]})
    ending = forger.pick(("", "AA", forger.parts()[2], coded(bytes(64)), coded(forger.random.randbytes(64))))
    return f"{coded(header)}.{coded(payload)}.{ending}"


def public_key_as_secret(forger: Forger) -> str:
    """HMAC under whatever of our key is public."""
    public, kinds = forger.key.public, serialization.PublicFormat
    pem = public.public_bytes(serialization.Encoding.PEM, kinds.SubjectPublicKeyInfo)
    der = public.public_bytes(serialization.Encoding.DER, kinds.SubjectPublicKeyInfo)
    jwk = forger.key.jwk
    secrets = (
        pem,
        pem.strip(),
        der,
        dumped(jwk),
        forger.key.kid.encode(),
        jwk.get("x", "").encode(),
        b"",
        b"secret",
    )
    algorithm, digest = forger.pick(
        (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512"), ("ES256", "sha256"))
    )
    text = f"{coded(dumped(forger.header | {'alg': algorithm}))}.{coded(dumped(forger.claims))}"
    return f"{text}.{coded(hmac.digest(forger.pick(secrets), text.encode(), digest))}"


def by_a_stranger(forger: Forger) -> str:
    """A good signature of another key, under its name or ours, brought along or to be fetched."""
    key = forger.stranger()
    brought = forger.pick(
        (
            {},
            {"jwk": key.jwk},
            {"jku": "https://evil.test/jwks.json"},
            {"x5u": "https://evil.test/cert.pem"},
            {"x5c": ["MIIB"]},
            {"x5t": coded(hashlib.sha256(b"x").digest())},
        )
    )
    header = {"typ": "at+jwt", "alg": key.algorithm, "kid": forger.pick((key.kid, forger.key.kid))} | brought
    return forger.signed(dumped(forger.claims), dumped(header), key)


def by_another_curve(forger: Forger) -> str:
    """A curve that is not ours, under our key's name."""
    header = dumped(forger.header | {"alg": "ES384"})
    text = f"{coded(header)}.{coded(dumped(forger.claims))}"
    key = ec.derive_private_key(forger.random.randrange(1, 1 << 64), ec.SECP384R1())
    return f"{text}.{coded(get_default_algorithms()['ES384'].sign(text.encode(), key))}"


def other_header(forger: Forger) -> str:
    """Our own signature under a header that is not quite ours."""
    header = forger.header | forger.pick(
        (
            {"typ": forger.pick(TYPES)},
            {"kid": forger.pick(KIDS)},
            {"crit": forger.pick((["exp"], ["b64"], [], "exp", None))},
            {"b64": False, "crit": ["b64"]},
            {"alg": forger.pick(ALGORITHMS[:12])},
            {
                forger.pick(
                    ("cty", "zip", "jwk", "jku", "x5u", "x5c", "nonce", "iss", "enc", "")
                ): forger.pick(ODD)
            },
        )
    )
    return forger.signed(dumped(forger.claims), dumped(header)) if header != forger.header else forger.genuine


def other_header_text(forger: Forger) -> str:
    """A header that two readers could read differently, or not at all; the signature is good."""
    text = json.dumps(forger.header)
    gone = forger.pick(("alg", "kid", "typ"))
    doubled = text[:-1] + f', "{forger.pick(("alg", "kid", "typ"))}": "x"}}'
    forms = (
        doubled.encode(),
        b'{"typ": "x", ' + text[1:].encode(),
        b"\xef\xbb\xbf" + text.encode(),
        text.encode("utf-16"),
        b"[" * 2000,
        b"null",
        b"",
        dumped([forger.header]),
        dumped(forger.header)[:-1],
        dumped({name: value for name, value in forger.header.items() if name != gone}),
    )
    return forger.signed(dumped(forger.claims), forger.pick(forms))


ALPHABET_64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
TEXT_KINDS: tuple[Callable[[Forger], str], ...] = (
    other_character, flipped_bit, cut_or_grown, other_parts, other_spelling, other_curve_point,
)  # fmt: skip
HEADER_KINDS: tuple[Callable[[Forger], str], ...] = (
    unsigned, public_key_as_secret, by_a_stranger, by_another_curve, other_header, other_header_text,
)  # fmt: skip


def claim_removed(forger: Forger) -> str:
    """One claim is not there; the signature is good.  Tokens of version 0.1.0 have no client_id."""
    gone = forger.name()
    if gone == "client_id":
        return forger.genuine
    return forger.signed(dumped({name: value for name, value in forger.claims.items() if name != gone}))


def claim_of_another_type(forger: Forger) -> str:
    """One claim is something else; the signature is good."""
    name, value = forger.name(), forger.pick(ODD)
    is_harmless = name == "nbf" and type(value) is int and 0 <= value < forger.claims["nbf"]
    is_same = type(value) is type(forger.claims[name]) and value == forger.claims[name]
    return forger.genuine if is_harmless or is_same else forger.claiming(**{name: value})


def claim_said_twice(forger: Forger) -> str:
    """Two readers would take two values; the signature is good."""
    name, text = forger.name(), json.dumps(forger.claims)
    twin = json.dumps({name: forger.pick((forger.claims[name], *ODD))})
    return forger.signed(
        (text[:-1] + ", " + twin[1:] if forger.pick((0, 1)) else twin[:-1] + ", " + text[1:]).encode()
    )


def claim_too_many(forger: Forger) -> str:
    """An additional claim; the signature is valid."""
    name = forger.pick(("scope", "client_id", "admin", "role", "act", "cnf", "ISS", "sub ", "", "__proto__"))
    return forger.claiming(**{name: forger.pick(ODD)})


def claim_of_somebody_else(forger: Forger) -> str:
    """Well-formed claims that are not those of a token of this service, or not now; the signature is good."""
    claims, later = forger.claims, forger.random.randrange(10, 10**9)
    issuer, audience = claims["iss"], claims["aud"]
    session = f"00000000-0000-4000-8000-00000000{forger.random.randrange(1 << 16):04x}"
    changes = (
        {"iss": forger.pick((issuer + "/", issuer.upper(), issuer[:-1], "https://evil.test"))},
        {"aud": forger.pick((audience.upper(), audience + " ", [audience], audience[:-1]))},
        {"exp": max(0, claims["iat"] - later)},
        {"exp": claims["exp"] + later},
        {"iat": claims["iat"] + later, "exp": claims["exp"] + later},
        {"nbf": claims["nbf"] + later},
        {"iat": max(0, claims["iat"] - later)},
        {"sid": session},
        {"sid": claims["sid"].upper()},
        {"epoch": claims["epoch"] + later},
        {"sub": session, "sid": session},
    )
    return forger.claiming(**forger.pick(changes))


def payload_that_is_no_object(forger: Forger) -> str:
    """Odd JSON, or none; the signature is good."""
    text = json.dumps(forger.claims)
    forms = (
        b"", b"null", b"[]", b'"x"', b"[" * 1000, text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(),
        text.encode() + b"x", text.encode()[:-1], dumped([forger.claims]), text.replace("1", "NaN").encode(),
        text.replace('"epoch": ', '"epoch": 0').encode(), b"\xff" + text.encode(),
    )  # fmt: skip
    return forger.signed(forger.pick(forms))


CLAIM_KINDS: tuple[Callable[[Forger], str], ...] = (
    claim_removed, claim_of_another_type, claim_said_twice, claim_too_many, claim_of_somebody_else,
    payload_that_is_no_object,
)  # fmt: skip
