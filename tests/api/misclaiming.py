"""Tokens with a good signature of our own key, and claims that this service never wrote."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.api.forging import ODD, Forger, dumped

if TYPE_CHECKING:
    from collections.abc import Callable

# What is not here: a token of a new id with otherwise good claims.  Who can sign with our key is the service.


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
    """A claim that nobody asked for; the signature is good."""
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
