"""Answers of authenticators: good ones in each algorithm, and every field of them wrong in turn."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.accounts.ceremonies import (
    Assertion,
    Attestation,
    Passkey,
    RelyingParty,
    creation_options,
    decoded,
    request_options,
)
from authsvc.domain.accounts.webauthn import WebAuthn
from authsvc.domain.errors import CodeInvalid
from authsvc.domain.users import User
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import UserId
from tests.authenticator import (
    AT,
    BE,
    BS,
    ED,
    EDDSA,
    ES256,
    HONEST,
    ORIGIN,
    RP_ID,
    RS256,
    UP,
    UV,
    Authenticator,
    Lies,
    b64,
    cbor,
    cose_key,
    new_key,
    rsa_key,
    unb64,
)

CHALLENGE = b64(b"a challenge of ours")
ANDROID = "android:apk-key-hash:4Z1Zb2yWzG1nyUb6s4B0yO1bXw4-4yJr0a9b3oXk3x8"
PARTY = RelyingParty(id=RP_ID, name="Example", origins=(ORIGIN, ANDROID))
CEREMONIES = WebAuthn(PARTY)
NOW = datetime(2026, 11, 30, tzinfo=UTC)
ADA = User(
    id=UserId("0198f7a2-5c5e-4c1e-9d1c-3a1f4c0e6b1d"),
    email=Email("ada@example.com"),
    created_at=NOW,
    updated_at=NOW,
)


def attestation(shown: dict[str, Any]) -> Attestation:
    """*shown* as the API reads it."""
    response = shown["response"]
    return Attestation(
        id=shown["id"],
        raw_id=shown["rawId"],
        type=shown["type"],
        client_data=response["clientDataJSON"],
        attestation_object=response["attestationObject"],
        transports=tuple(response["transports"]),
    )


def assertion(shown: dict[str, Any]) -> Assertion:
    """*shown* as the API reads it."""
    response = shown["response"]
    return Assertion(
        id=shown["id"],
        raw_id=shown["rawId"],
        type=shown["type"],
        client_data=response["clientDataJSON"],
        authenticator_data=response["authenticatorData"],
        signature=response["signature"],
        user_handle=response.get("userHandle"),
    )


def register(authenticator: Authenticator, lies: Lies = HONEST) -> Passkey:
    """A passkey of Ada's, as the service would store it."""
    answer = attestation(authenticator.create(creation_options(PARTY, ADA, CHALLENGE, ()), lies))
    assert CEREMONIES.challenge_of(answer) == CHALLENGE
    return CEREMONIES.registered(answer)


def sign(authenticator: Authenticator, lies: Lies = HONEST) -> dict[str, Any]:
    """An assertion over our challenge."""
    return authenticator.get(request_options(PARTY, CHALLENGE, (), verify_user=True), lies)


def judge(shown: dict[str, Any], passkey: Passkey):
    """What the service makes of *shown*."""
    answer = assertion(shown)
    if CEREMONIES.challenge_of(answer) != CHALLENGE:
        raise CodeInvalid("a challenge that nobody made")
    return CEREMONIES.verified(answer, passkey, ADA.id)


@pytest.mark.parametrize("algorithm", [ES256, EDDSA, RS256])
def test_each_algorithm_registers_and_signs(algorithm):
    """What is asked for works, and the counter and user verification of each answer are told."""
    authenticator = Authenticator(algorithm=algorithm)

    passkey = register(authenticator)
    shown = judge(sign(authenticator), passkey)

    assert (passkey.sign_count, passkey.verified_user, passkey.is_backup_eligible) == (1, True, False)
    assert passkey.transports == ("usb", "nfc")
    assert (shown.sign_count, shown.is_user_verified) == (2, True)


@pytest.mark.parametrize("origin", [ORIGIN, ANDROID])
def test_each_configured_origin_is_accepted(origin):
    """Web origins, and applications of Android by the hash of their certificate."""
    authenticator = Authenticator(origin=origin)
    passkey = register(authenticator)

    assert judge(sign(authenticator), passkey).is_user_verified


WRONG_CLIENT_DATA = [
    {"type": "webauthn.create"},
    {"type": "webauthn.get "},
    {"type": None},
    {"origin": "https://example.com"},
    {"origin": f"{ORIGIN}/"},
    {"origin": f"{ORIGIN}:443"},
    {"origin": ORIGIN.replace("https", "http")},
    {"origin": ORIGIN.upper()},
    {"origin": "https://app.example.com.evil.example"},
    {"origin": [ORIGIN]},
    {"origin": None},
    {"crossOrigin": True},
    {"crossOrigin": "true"},
    {"crossOrigin": 0},
    {"topOrigin": "https://evil.example"},
    {"challenge": None},
]


@pytest.mark.parametrize("wrong", WRONG_CLIENT_DATA, ids=str)
def test_client_data_of_another_ceremony_is_refused(wrong):
    """Type, exact origin, frames of other origins, no challenge; the signature is right."""
    authenticator = Authenticator()
    register(authenticator)

    with pytest.raises(CodeInvalid):
        CEREMONIES.challenge_of(assertion(sign(authenticator, Lies(client_data=wrong))))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b'{"type":1,"type":2}', b"[" * 3000])
def test_client_data_that_is_no_json_object_is_refused(raw):
    """Whatever it is: an answer, and no failure."""
    authenticator = Authenticator()
    register(authenticator)
    shown = sign(authenticator)
    shown["response"]["clientDataJSON"] = b64(raw)

    with pytest.raises(CodeInvalid):
        CEREMONIES.challenge_of(assertion(shown))


WRONG_AUTHENTICATOR_DATA = {
    "another relying party": Lies(rp_id="app.example.com"),
    "nobody present": Lies(without=UP),
    "backup eligible all of a sudden": Lies(flags=BE),
    "backed up without being eligible": Lies(flags=BS),
    "extensions announced and not there": Lies(flags=ED),
    "a credential announced and not there": Lies(flags=AT),
    "another user": Lies(user_handle=bytes(16)),
    "another credential": Lies(credential_id=bytes(32)),
}


@pytest.mark.parametrize("lies", WRONG_AUTHENTICATOR_DATA.values(), ids=WRONG_AUTHENTICATOR_DATA)
def test_an_assertion_that_says_something_else_is_refused(lies):
    """The signature over it is right; each claim is looked at."""
    authenticator = Authenticator()
    passkey = register(authenticator)

    with pytest.raises(CodeInvalid):
        judge(sign(authenticator, lies), passkey)


def test_backup_eligibility_that_was_lost_is_refused():
    """It never changes for a credential (WebAuthn Level 3 §6.1.3)."""
    authenticator = Authenticator(is_backup_eligible=True)
    passkey = register(authenticator)

    assert judge(sign(authenticator, Lies(flags=BS)), passkey).is_user_verified
    with pytest.raises(CodeInvalid):
        judge(sign(authenticator, Lies(without=BE)), passkey)


FIELDS = ("id", "rawId", "clientDataJSON", "authenticatorData", "signature", "userHandle")


@pytest.mark.parametrize("algorithm", [ES256, EDDSA, RS256])
@pytest.mark.parametrize("name", FIELDS)
def test_every_bit_of_every_field_counts(name, algorithm):
    """One bit changed on the way, in any byte: refused."""
    authenticator = Authenticator(algorithm=algorithm)
    passkey = register(authenticator)
    shown = sign(authenticator)
    holder = shown if name in shown else shown["response"]
    good = unb64(holder[name])

    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1 << position % 8
        holder[name] = b64(bytes(changed))
        with pytest.raises(CodeInvalid):
            judge(shown, passkey)


OTHER_FORMS = {
    "padded": lambda text: f"{text}=",
    "with another character": lambda text: f"!{text}",
    "with a line's end": lambda text: f"{text}\n",
    "empty": lambda _: "",
    "cut": lambda text: text[:-1],
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("change", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_base64url_has_one_form(name, change):
    """Padding, other characters and cut texts are no other way to say the same."""
    authenticator = Authenticator()
    passkey = register(authenticator)
    shown = sign(authenticator)
    holder = shown if name in shown else shown["response"]
    holder[name] = change(holder[name])

    with pytest.raises(CodeInvalid):
        judge(shown, passkey)


def test_user_verification_counts_only_where_registration_showed_it():
    """A key that was registered without it does not become one with it."""
    authenticator = Authenticator(verifies_user=False)
    passkey = register(authenticator)
    authenticator.verifies_user = True
    with_it = replace(passkey, verified_user=True)

    assert not judge(sign(authenticator), passkey).is_user_verified
    assert judge(sign(authenticator), with_it).is_user_verified
    assert not judge(sign(authenticator, Lies(without=UV)), with_it).is_user_verified


def test_the_user_handle_may_be_absent():
    """Where the account is known, older authenticators send none."""
    authenticator = Authenticator()
    passkey = register(authenticator)
    shown = sign(authenticator)
    del shown["response"]["userHandle"]

    assert judge(shown, passkey).is_user_verified


@pytest.mark.parametrize("kind", ["", "password", "Public-Key"])
def test_a_credential_of_another_kind_is_refused(kind):
    """There is one."""
    authenticator = Authenticator()
    passkey = register(authenticator)

    with pytest.raises(CodeInvalid):
        judge(sign(authenticator) | {"type": kind}, passkey)


def test_another_key_does_not_sign_for_a_passkey():
    """Nor does the same one for somebody else's row."""
    hers, theirs = Authenticator(), Authenticator()
    passkey, other = register(hers), register(theirs)
    shown = sign(theirs, Lies(credential_id=passkey.credential_id))

    with pytest.raises(CodeInvalid):
        judge(shown, passkey)
    with pytest.raises(CodeInvalid):
        judge(sign(hers, Lies(credential_id=other.credential_id)), other)


EC_KEY = cose_key(new_key(ES256))
WRONG_KEYS = {
    "ES384": EC_KEY | {3: -35},
    "PS256": cose_key(rsa_key()) | {3: -37},
    "RS1": cose_key(rsa_key()) | {3: -65535},
    "no algorithm": {1: 2, -1: 1, -2: bytes(32), -3: bytes(32)},
    "another key type": EC_KEY | {1: 1},
    "another curve": EC_KEY | {-1: 2},
    "not on the curve": EC_KEY | {-2: bytes(32)},
    "compressed": EC_KEY | {-3: 1},
    "Ed25519 of 31 bytes": {1: 1, 3: EDDSA, -1: 6, -2: bytes(31)},
    "Ed448": {1: 1, 3: EDDSA, -1: 7, -2: bytes(57)},
    "RSA of 1024 bits": cose_key(rsa_key(1024)),
    "RSA of 8192 bits": cose_key(rsa_key()) | {-1: b"\xff" * 1024},
    "an even exponent": cose_key(rsa_key()) | {-2: b"\x02"},
    "text": EC_KEY | {-2: "x" * 32},
}


@pytest.mark.parametrize("key", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_a_key_that_was_not_asked_for_is_not_registered(key):
    """Another algorithm, a key that is none, or one that would cost time: refused before it is stored."""
    with pytest.raises(CodeInvalid):
        register(Authenticator(), Lies(public_key=key))


WRONG_REGISTRATIONS = {
    "another relying party": Lies(rp_id="example.org"),
    "nobody present": Lies(without=UP),
    "backed up without being eligible": Lies(flags=BS),
    "no credential": Lies(without=AT),
    "another credential": Lies(credential_id=bytes(32)),
    "an id that can be guessed": Lies(registers=bytes(15)),
    "an id that is too long": Lies(registers=bytes(1024)),
    "an assertion": Lies(client_data={"type": "webauthn.get"}),
    "another origin": Lies(client_data={"origin": "https://evil.example"}),
    "in a frame": Lies(client_data={"crossOrigin": True}),
}


@pytest.mark.parametrize("lies", WRONG_REGISTRATIONS.values(), ids=WRONG_REGISTRATIONS)
def test_a_registration_that_says_something_else_is_refused(lies):
    """The same rules hold as for an assertion."""
    with pytest.raises(CodeInvalid):
        register(Authenticator(), lies)


def test_the_attestation_statement_is_ignored():
    """``none`` is asked for; what a browser sends all the same is not looked at."""
    shown = Authenticator().create(creation_options(PARTY, ADA, CHALLENGE, ()))
    data = unb64(shown["response"]["authenticatorData"])
    statement = {"fmt": "packed", "attStmt": {"alg": -7, "sig": b"wrong", "x5c": [b"none"]}, "authData": data}
    shown["response"]["attestationObject"] = b64(cbor(statement))

    assert CEREMONIES.registered(attestation(shown)).credential_id == unb64(shown["id"])


@given(st.binary(max_size=300))
def test_no_bytes_of_a_stranger_are_a_failure(raw):
    """Attestation objects and authenticator data of any bytes are refused, and nothing else happens."""
    text = b64(raw)
    same: dict[str, Any] = {"id": text, "raw_id": text, "type": "public-key", "client_data": text}
    passkey = Passkey(
        credential_id=raw,
        public_key=cbor(EC_KEY),
        sign_count=0,
        is_backup_eligible=False,
        verified_user=True,
        transports=(),
    )

    with pytest.raises(CodeInvalid):
        CEREMONIES.registered(Attestation(**same, attestation_object=text))
    with pytest.raises(CodeInvalid):
        CEREMONIES.verified(Assertion(**same, authenticator_data=text, signature=text), passkey, ADA.id)


@given(st.binary(max_size=80))
def test_base64url_round_trips_and_takes_nothing_else(raw):
    """The one canonical form of every byte string."""
    assert decoded(b64(raw)) == raw
    with pytest.raises(CodeInvalid):
        decoded(b64(raw) + "=")


def test_options_are_the_json_that_browsers_parse():
    """The bare objects of Level 3, with what is asked for and nothing more."""
    passkey = register(Authenticator())
    descriptor = {"type": "public-key", "id": b64(passkey.credential_id), "transports": ["usb", "nfc"]}

    creation = creation_options(PARTY, ADA, CHALLENGE, [passkey])
    request = request_options(PARTY, CHALLENGE, [replace(passkey, transports=())], verify_user=False)

    assert json.loads(json.dumps(creation)) == creation
    assert creation["rp"] == {"id": RP_ID, "name": "Example"}
    assert unb64(creation["user"]["id"]).hex() == ADA.id.replace("-", "")
    assert (creation["user"]["name"], creation["user"]["displayName"]) == (ADA.email, ADA.email)
    assert [one["alg"] for one in creation["pubKeyCredParams"]] == [ES256, EDDSA, RS256]
    assert creation["excludeCredentials"] == [descriptor]
    assert creation["attestation"] == "none"
    assert creation["authenticatorSelection"]["residentKey"] == "preferred"
    assert request["challenge"] == creation["challenge"] == CHALLENGE
    assert request["allowCredentials"] == [{"type": "public-key", "id": b64(passkey.credential_id)}]
    assert (request["rpId"], request["userVerification"]) == (RP_ID, "preferred")
    assert request_options(PARTY, CHALLENGE, (), verify_user=True)["userVerification"] == "required"
