"""Access tokens: what is issued is read back, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from authsvc.domain.clients import MOST_SCOPES, Client, ClientId, SecretId
from authsvc.domain.errors import TokenInvalid
from authsvc.domain.tokens.access import REMEMBERED, AccessToken, TokenReader, TokenSigner, is_about
from authsvc.domain.tokens.keys import KeyRing, SigningKey
from tests.unit.domain.samples import (
    ALICE_ID,
    CLAIMS,
    ISSUED_AT,
    LEVEL,
    LEVEL_CLAIMS,
    NOW,
    PROFILE,
    SESSION_ID,
    TOKEN_ID,
    WITHOUT,
    access_token,
    claiming,
    later,
    part,
    ring,
    signed,
    signing_key,
    user,
)

ALGORITHMS = ["ES256", "EdDSA", "RS256"]


def reader(keys: KeyRing | None = None, *, most: int = REMEMBERED) -> TokenReader:
    """A reader of the ring *keys*, by default of one ES256 key."""
    fixed = keys or ring()
    return TokenReader(PROFILE, lambda: fixed, most=most)


def issue(keys: KeyRing, *, not_after_s: float = 86_400, **changes: Any) -> tuple[str, AccessToken]:
    """A token for Alice, changed."""
    signer = TokenSigner(PROFILE, lambda: keys)
    return signer.issue(user(**changes), SESSION_ID, now=NOW, not_after=later(not_after_s))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("roles", [("user",), ("user", "admin"), ("user", "admin", "billing", "editor")])
def test_what_is_issued_is_read_back(algorithm, roles):
    """Every claim, with every kind of key."""
    keys = ring(algorithm)

    text, token = issue(keys, roles=roles)

    assert reader(keys).read(text, now=NOW) == token
    assert (token.user_id, token.session_id, token.roles, token.epoch) == (ALICE_ID, SESSION_ID, roles, 3)
    assert token.keys.token_id == token.token_id
    assert jwt.get_unverified_header(text) == {
        "typ": "at+jwt",
        "alg": algorithm,
        "kid": signing_key(algorithm).kid,
    }


def test_every_token_has_an_identifier_of_its_own():
    """The blacklist is keyed by it."""
    assert issue(ring())[1].token_id != issue(ring())[1].token_id


@pytest.mark.parametrize(("not_after_s", "life_s"), [(86_400, 3600), (3601, 3600), (60, 60), (59.9, 59)])
def test_a_token_never_outlives_its_session(not_after_s, life_s):
    """It ends after its lifetime, or at the session's end if that is sooner."""
    _, token = issue(ring(), not_after_s=not_after_s)

    assert token.expires_at - token.issued_at == life_s


@pytest.mark.parametrize(
    ("at_s", "is_good"), [(0, True), (3604.9, True), (3605, False), (-5, True), (-5.1, False)]
)
def test_a_token_is_good_from_issue_to_expiry_with_the_leeway(at_s, is_good):
    """Five seconds either way, for clocks that differ."""
    text, _ = issue(ring())
    fresh, remembering = reader(), reader()
    remembering.read(text, now=NOW)

    for one in (fresh, remembering):
        if is_good:
            one.read(text, now=later(at_s))
        else:
            with pytest.raises(TokenInvalid):
                one.read(text, now=later(at_s))


def test_an_expired_token_can_still_be_read_to_end_its_session():
    """But not one from the future, or with anything else wrong."""
    text, token = issue(ring())

    assert reader().read_expired(text, now=later(1e6)) == token
    with pytest.raises(TokenInvalid):
        reader().read_expired(text, now=later(-6))
    with pytest.raises(TokenInvalid):
        reader().read_expired(claiming(aud="others"), now=NOW)


def test_the_sample_claims_are_good():
    """So that each change below is the cause of its refusal."""
    assert reader().read(claiming(), now=NOW).token_id == TOKEN_ID
    assert reader().read(claiming(nbf=ISSUED_AT + 5, exp=ISSUED_AT), now=NOW)
    token = reader().read(claiming(roles=["admin", "user"]), now=NOW)
    assert isinstance(token, AccessToken)
    assert token.roles == ("user", "admin")


def claims_in(text: str) -> dict[str, Any]:
    """What the token *text* says."""
    claims: dict[str, Any] = jwt.decode(text, options={"verify_signature": False})
    return claims


def test_a_token_says_what_validators_of_rfc_9068_ask_for():
    """A ``client_id``, and an ``nbf`` that a validator without leeway takes whose clock is 5 s behind."""
    text, token = issue(ring())

    claims = claims_in(text)
    assert claims.keys() == CLAIMS.keys()
    assert claims["client_id"] == "authsvc"
    assert claims["nbf"] == claims["iat"] - PROFILE.leeway_s == ISSUED_AT - 5
    assert token.issued_at == ISSUED_AT


def test_a_token_of_the_first_release_stays_good():
    """It has no ``client_id``; while its readers are there, none is written that they would refuse."""
    signer = TokenSigner(replace(PROFILE, has_client_id=False), ring)

    text, token = signer.issue(user(), SESSION_ID, now=NOW, not_after=later(86_400))

    assert claims_in(text).keys() == CLAIMS.keys() - {"client_id"}
    assert reader().read(text, now=NOW) == token
    assert reader().read(claiming(client_id=WITHOUT), now=NOW).token_id == TOKEN_ID


def test_a_token_says_its_level_while_there_are_levels():
    """All three claims or none: where the part is off, or the session has no level."""
    signer = TokenSigner(replace(PROFILE, has_levels=True), ring)
    by_level = {}
    for level in (LEVEL, None):
        text, token = signer.issue(user(), SESSION_ID, now=NOW, not_after=later(86_400), level=level)
        assert reader().read(text, now=NOW) == token
        by_level[level] = claims_in(text)
    off, _ = TokenSigner(PROFILE, ring).issue(
        user(), SESSION_ID, now=NOW, not_after=later(86_400), level=LEVEL
    )

    assert by_level[LEVEL].keys() == CLAIMS.keys() | LEVEL_CLAIMS.keys()
    assert LEVEL_CLAIMS.items() <= by_level[LEVEL].items()
    assert by_level[None].keys() == claims_in(off).keys() == CLAIMS.keys()


@pytest.mark.parametrize("value", [None, "", "Authsvc", "authsvc ", "others", 1, ["authsvc"], {}])
def test_the_client_id_is_ours_alone(value):
    """A fixed text: nobody else is issued tokens here."""
    with pytest.raises(TokenInvalid):
        reader().read(claiming(client_id=value), now=NOW)


@pytest.mark.parametrize("name", sorted(CLAIMS.keys() - {"client_id"}))
def test_every_claim_is_required(name):
    """A token without ``exp`` would live for ever, one without ``epoch`` could not be cut off."""
    with pytest.raises(TokenInvalid):
        reader().read(claiming(**{name: WITHOUT}), now=NOW)


@pytest.mark.parametrize("name", ["iat", "nbf", "exp", "epoch"])
@pytest.mark.parametrize(
    "value", [None, True, False, "1", str(ISSUED_AT), 1.5, float(ISSUED_AT), -1, 10**400, 1 << 53, [], {}]
)
def test_numbers_are_whole_numbers(name, value):
    """No string, no boolean, no float, nothing below zero or beyond what others read exactly."""
    with pytest.raises(TokenInvalid):
        reader().read(claiming(**{name: value}), now=NOW)


@pytest.mark.parametrize("name", ["iss", "aud"])
@pytest.mark.parametrize(
    "value", [None, "", "others", ["tests"], [PROFILE.issuer], {}, 1, PROFILE.issuer + "/"]
)
def test_issuer_and_audience_are_the_configured_ones(name, value):
    """One string each, and no list that contains it."""
    with pytest.raises(TokenInvalid):
        reader().read(claiming(**{name: value}), now=NOW)


@pytest.mark.parametrize("name", ["sub", "sid", "jti"])
@pytest.mark.parametrize(
    "value",
    [
        None, 1, "", "alice", ALICE_ID.upper(), "{" + ALICE_ID + "}", "urn:uuid:" + ALICE_ID,
        ALICE_ID.replace("-", ""), ALICE_ID + "\n", [ALICE_ID],
    ],
)  # fmt: skip
def test_identifiers_are_written_in_one_way(name, value):
    """They become parts of key names and look-ups: a second spelling would be a second name."""
    with pytest.raises(TokenInvalid):
        reader().read(claiming(**{name: value}), now=NOW)


@pytest.mark.parametrize(
    "roles",
    [
        None,
        "user",
        [],
        ["admin"],
        ["user", "user"],
        ["user", "Root"],
        ["user", "a" * 33],
        ["user", "editor", "editor"],
        ["user", None],
        ["user", ["admin"]],
        {"user": 1},
    ],
)
def test_roles_are_a_list_of_names_with_user_in_it(roles):
    """Each once."""
    with pytest.raises(TokenInvalid):
        reader().read(claiming(roles=roles), now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"scope": "all"}, id="a claim too many"),
        pytest.param({"exp": ISSUED_AT + 3601}, id="lives longer than configured"),
        pytest.param({"iat": ISSUED_AT + 6, "exp": ISSUED_AT + 60}, id="issued in the future"),
        pytest.param({"nbf": ISSUED_AT + 6}, id="not yet valid"),
        pytest.param({"iat": ISSUED_AT - 3700, "nbf": ISSUED_AT - 3700, "exp": ISSUED_AT - 5}, id="expired"),
    ],
)
def test_claims_that_do_not_fit_are_refused(changes):
    """However good the signature is."""
    with pytest.raises(TokenInvalid):
        reader().read(claiming(**changes), now=NOW)


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"null", b"[]", b'"text"', b"1", b"{}", b"\xff", b"[" * 5000,
        json.dumps(CLAIMS).encode()[:-1] + b', "exp": 1}',
        json.dumps(CLAIMS).encode("utf-16"),
    ],
)  # fmt: skip
def test_a_payload_that_is_no_strict_json_object_is_refused(payload):
    """Also one that says ``exp`` twice, which two readers would take differently."""
    with pytest.raises(TokenInvalid):
        reader().read(signed(payload), now=NOW)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param({"typ": "JWT"}, id="another type"),
        pytest.param({"typ": "AT+JWT"}, id="the type in capitals"),
        pytest.param({"typ": None}, id="type null"),
        pytest.param({"kid": "unknown"}, id="an unknown key"),
        pytest.param({"kid": WITHOUT}, id="no key named"),
        pytest.param({"crit": ["exp"], "exp": 1}, id="critical extensions"),
        pytest.param({"jwk": {"kty": "EC"}}, id="a key of its own"),
        pytest.param({"jku": "http://evil.test"}, id="a key from elsewhere"),
        pytest.param({"x5c": []}, id="a certificate"),
        pytest.param({"cty": "JWT"}, id="nested"),
        pytest.param({"zip": "DEF"}, id="compressed"),
    ],
)
def test_a_header_field_more_less_or_other_is_refused(header):
    """No header field selects key material but the name of one of ours."""
    with pytest.raises(TokenInvalid):
        reader().read(signed(json.dumps(CLAIMS).encode(), **header), now=NOW)


@pytest.mark.parametrize(
    "algorithm", ["none", "HS256", "ES256", "ES384", "PS256", "es256", "", None, ["ES256"]]
)
def test_the_key_alone_chooses_the_algorithm(algorithm):
    """A public RSA key is no HMAC secret, and nobody goes without a signature."""
    key = signing_key("RS256")
    header = part(json.dumps({"typ": "at+jwt", "kid": key.kid, "alg": algorithm}).encode())
    signing_input = f"{header}.{part(json.dumps(CLAIMS).encode())}"
    mac = hmac.HMAC(
        key.public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        hashes.SHA256(),
    )
    mac.update(signing_input.encode())

    for signature in (part(mac.finalize()), "", "AA"):
        with pytest.raises(TokenInvalid):
            reader(ring("RS256")).read(f"{signing_input}.{signature}", now=NOW)


def test_a_key_verifies_its_own_tokens_alone():
    """Another key's name over a signature is a forgery, also within one ring."""
    keys = ring("ES256", "EdDSA")
    es, ed = signing_key("ES256"), signing_key("EdDSA")

    forged = signed(json.dumps(CLAIMS).encode(), es, kid=ed.kid)

    with pytest.raises(TokenInvalid):
        reader(keys).read(forged, now=NOW)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "...", "a.b", "a.b.c.d", " a.b.c", "a.b.c\n", "a.b.c=", "ä.b.c", "\ud800.b.c",
        "\x00.b.c", "a" * 5000 + ".b.c", part(b"[" * 3000) + ".e30.AAAA", part(b"\xff") + ".e30.AAAA",
        part(b"null") + ".e30.AAAA", part(b"1") + ".e30.AAAA", part(b'{"alg": 1}') + ".e30.AAAA",
    ],
)  # fmt: skip
def test_what_is_no_compact_token_is_refused(text):
    """Always by the one refusal, whatever the text."""
    with pytest.raises(TokenInvalid):
        reader().read(text, now=NOW)


@settings(max_examples=60)
@given(st.data())
def test_a_changed_token_is_the_same_token_or_none(data):
    """A changed character is refused, or lies in the unused bits of the signature's last one."""
    text, token = issue(ring())
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("ABCwxyz0189-_.=+/ \n\x00é"))
    changed = text[:position] + other + text[position + 1 :]

    try:
        read = reader().read(changed, now=NOW)
    except TokenInvalid:
        return

    assert read == token
    assert changed == text or position == len(text) - 1


class CountedRing(KeyRing):
    """A ring that counts how often a key is looked up, which is how often a signature is verified."""

    looked_up = 0

    @property
    def by_id(self) -> dict[str, SigningKey]:  # counted, so not cached
        """The keys; counted."""
        object.__setattr__(self, "looked_up", self.looked_up + 1)
        return {key.kid: key for key in self.keys}


def test_a_signature_is_verified_once_and_the_memory_is_bounded():
    """The oldest is forgotten first; nothing a caller sends makes the process grow."""
    keys = CountedRing(ring().keys)
    first, second, third = (issue(ring())[0] for _ in range(3))
    remembering = reader(keys, most=2)

    def verifications(text: str) -> int:
        before = keys.looked_up
        remembering.read(text, now=NOW)
        return keys.looked_up - before

    assert [verifications(text) for text in (first, first, second, second, first)] == [1, 0, 1, 0, 0]
    assert [verifications(text) for text in (third, third, second)] == [1, 0, 0]
    assert verifications(first) == 1


def test_a_forged_token_is_not_remembered():
    """Neither as good nor in place of a good one."""
    keys = CountedRing(ring().keys)
    remembering = reader(keys)
    forged = claiming(aud="others")

    for _ in range(2):
        with pytest.raises(TokenInvalid):
            remembering.read(forged, now=NOW)

    assert keys.looked_up == 2


def test_a_removed_key_takes_its_tokens_along_at_once():
    """The memory of signatures goes with the ring, also for tokens that were just read."""
    folder = [ring("ES256", "EdDSA")]
    remembering = TokenReader(PROFILE, lambda: folder[0])
    text, _ = issue(ring("ES256"))
    remembering.read(text, now=NOW)

    folder[0] = ring("EdDSA")

    with pytest.raises(TokenInvalid):
        remembering.read(text, now=NOW)
    folder[0] = ring("ES256")
    remembering.read(text, now=NOW)


@pytest.mark.parametrize(
    ("changes", "is_theirs"),
    [
        ({}, True),
        ({"name": "Alice", "version": 9}, True),
        ({"epoch": 4}, False),
        ({"epoch": 2}, False),
        ({"roles": ("user", "admin")}, False),
        ({"roles": ("user", "editor")}, True),
        ({"id": "00000000-0000-4000-8000-0000000000ff"}, False),
    ],
)
def test_a_token_is_about_its_user_as_they_were_when_it_was_issued(changes, is_theirs):
    """Another cut-off, other roles or another user: it is not about its user any more."""
    assert is_about(access_token(), user(**changes)) is is_theirs


def test_the_longest_token_of_a_machine_can_be_read():
    """All scopes that a client can have, of full length, by a long issuer, with the longest signature."""
    keys, profile = ring("RS256"), replace(PROFILE, issuer=f"https://auth.example.com/{'x' * 600}")
    scopes = tuple(f"{number:02}{'x' * 62}" for number in range(MOST_SCOPES))
    client = Client(id=ClientId(ALICE_ID), name="x", scopes=scopes, may=(), created_at=NOW)

    text, token = TokenSigner(profile, lambda: keys).issue_to_machine(
        client, SecretId(SESSION_ID), scopes, now=NOW
    )

    assert TokenReader(profile, lambda: keys).read(text, now=NOW) == token
