"""Which key signs, how old it is, and which files are no keys."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.tokens.keys import KeyInUse, KeyRefused, KeyRing, SigningKey, generate, stamp
from tests.unit.domain.samples import NOW, later, pem, ring, signing_key


def aged(*ages_s: float) -> KeyRing:
    """A ring of keys with these ages, in seconds; each is a key of its own."""
    made = []
    for age_s in ages_s:
        born = later(-age_s)
        name, text = generate("EdDSA", born)
        made.append(SigningKey.from_pem(text, file_name=name, modified_at=NOW))
    return KeyRing.of(made)


@pytest.mark.parametrize(
    ("ages_s", "signing_age_s"),
    [
        pytest.param([300], 300, id="just old enough"),
        pytest.param([299], 299, id="the only one, however young"),
        pytest.param([10_000, 300], 300, id="the newest that is old enough"),
        pytest.param([10_000, 299], 10_000, id="the new one waits"),
        pytest.param([10, 20, 299], 299, id="all young: the oldest"),
        pytest.param([-60, 400, 500], 400, id="one from the future waits"),
        pytest.param([-60, -30], -30, id="all from the future: the oldest"),
    ],
)
def test_the_newest_key_that_verifiers_could_fetch_signs(ages_s, signing_age_s):
    """300 seconds: as long as they may keep the published keys."""
    signer = aged(*ages_s).signer(NOW)

    assert signer.created_at == later(-signing_age_s)


def test_a_waiting_key_signs_as_soon_as_it_is_old_enough():
    """No restart, no second in which nobody signs."""
    keys = aged(10_000, 0)

    assert keys.signer(later(299)).created_at == later(-10_000)
    assert keys.signer(later(300)).created_at == NOW


def test_without_any_key_nothing_is_signed_or_published():
    """An outage, that is, and no crash: the folder may be filled again, and nobody keeps an empty set."""
    with pytest.raises(StoreUnavailable):
        KeyRing.of([]).signer(NOW)

    with pytest.raises(StoreUnavailable):
        KeyRing.of([]).jwks()


@pytest.mark.parametrize(
    ("file_name", "born"),
    [
        ("20261120T120000Z-es256.pem", datetime(2026, 11, 20, 12, tzinfo=UTC)),
        ("20261120T120000Z.pem", datetime(2026, 11, 20, 12, tzinfo=UTC)),
        ("20261120T120000Zwhatever", datetime(2026, 11, 20, 12, tzinfo=UTC)),
        ("20261340T120000Z-es256.pem", None),
        ("20261120T120000-es256.pem", None),
        ("a-20261120T120000Z.pem", None),
        ("key.pem", None),
        ("", None),
    ],
)
def test_age_counts_from_the_name_and_else_from_the_file_time(file_name, born):
    """A copied folder has new file times; the names stay."""
    modified_at = later(-12_345)

    key = SigningKey.from_pem(pem("ES256"), file_name=file_name, modified_at=modified_at)

    assert key.created_at == (born or modified_at)


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "RS256"])
def test_the_key_type_chooses_the_algorithm(algorithm):
    """And the public members alone are published."""
    key = signing_key(algorithm)

    assert key.algorithm == key.jwk["alg"] == algorithm
    assert key.jwk["use"] == "sig"
    assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & key.jwk.keys()
    assert KeyRing.of([key]).jwks() == {"keys": [key.jwk]}


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "RS256"])
def test_the_kid_is_the_thumbprint_of_the_public_members(algorithm):
    """RFC 7638: the required members in the order of their names, without white space."""
    jwk = signing_key(algorithm).jwk
    required = {name: jwk[name] for name in sorted({"crv", "e", "kty", "n", "x", "y"} & jwk.keys())}

    text = json.dumps(required, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).digest()

    assert base64.urlsafe_b64decode(jwk["kid"] + "=") == digest


def test_the_thumbprint_is_that_of_the_standard():
    """The example of RFC 8037, appendix A."""
    seed = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    der = bytes.fromhex("302e020100300506032b657004220420") + seed
    text = b"-----BEGIN PRIVATE KEY-----\n" + base64.b64encode(der) + b"\n-----END PRIVATE KEY-----\n"

    key = SigningKey.from_pem(text, file_name="", modified_at=NOW)

    assert key.kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def private_pem(key: PrivateKeyTypes, *, password: bytes | None = None) -> bytes:
    """*key* as PKCS 8."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem() -> bytes:
    """A public key."""
    return signing_key().public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: b"", id="empty"),
        pytest.param(lambda: b"\x00\xff not PEM", id="no text"),
        pytest.param(lambda: pem("ES256")[:60], id="cut short"),
        pytest.param(public_pem, id="public"),
        pytest.param(lambda: private_pem(ec.generate_private_key(ec.SECP384R1())), id="P-384"),
        pytest.param(lambda: private_pem(ec.generate_private_key(ec.SECP256K1())), id="secp256k1"),
        pytest.param(lambda: private_pem(ed448.Ed448PrivateKey.generate()), id="Ed448"),
        pytest.param(lambda: private_pem(rsa.generate_private_key(65537, 1024)), id="RSA of 1,024 bits"),
        pytest.param(
            lambda: private_pem(ec.generate_private_key(ec.SECP256R1()), password=b"secret"), id="encrypted"
        ),
    ],
)
def test_a_file_that_is_no_usable_key_is_refused_by_name(make):
    """The message names the file and the cause, and shows nothing of the content."""
    with pytest.raises(KeyRefused, match=r"^broken\.pem: ") as refusal:
        SigningKey.from_pem(make(), file_name="broken.pem", modified_at=NOW)

    assert "BEGIN" not in str(refusal.value)


def test_keys_of_one_moment_keep_one_order():
    """Every process must come to the same signer, in whatever order it reads the folder."""
    keys = [signing_key("ES256"), signing_key("EdDSA"), signing_key("RS256")]

    orders = [KeyRing.of(some).keys for some in (keys, keys[::-1], keys[1:] + keys[:1])]

    assert orders[0] == orders[1] == orders[2]


def test_a_generated_file_name_carries_algorithm_and_time_in_utc():
    """So that its age survives copying."""
    name, text = generate("ES256", datetime.fromisoformat("2026-11-20T13:00:00+01:00"))

    assert name == "20261120T120000Z-es256.pem"
    assert SigningKey.from_pem(text, file_name=name, modified_at=later(99)).created_at == NOW


def test_a_ring_finds_its_keys_by_kid():
    """And no others."""
    keys = ring("ES256", "EdDSA")

    assert keys.by_id == {key.kid: key for key in keys.keys}
    assert signing_key("RS256").kid not in keys.by_id


def test_a_key_that_lies_in_two_files_is_published_once():
    """Verifiers that take a doubled ``kid`` for an attack have none to complain of."""
    key = signing_key()
    copy = replace(key, file_name="copy.pem", created_at=later(-60))

    assert KeyRing.of([key, copy]).jwks() == {"keys": [key.jwk]}


@pytest.mark.parametrize(
    ("age_s", "begins_s", "ends_s"),
    [
        pytest.param(90_000, -90_000, -49_700, id="the oldest signs from its birth until the next is ready"),
        pytest.param(50_000, -49_700, -700, id="one in the middle"),
        pytest.param(1000, -700, 290, id="the one that signs"),
        pytest.param(10, 290, None, id="the one that waits"),
    ],
)
def test_the_ages_tell_when_a_key_signs(age_s, begins_s, ends_s):
    """A key stops when the next newer one is 300 seconds old, whoever looks, and whenever."""
    keys = aged(90_000, 50_000, 1000, 10)
    (key,) = [key for key in keys.keys if key.created_at == later(-age_s)]

    tenure = keys.tenure(key)

    assert (tenure.begins, tenure.ends) == (later(begins_s), None if ends_s is None else later(ends_s))
    if tenure.ends is not None:
        assert keys.signer(later(ends_s - 1)) is key
        assert keys.signer(tenure.ends) is not key


@pytest.mark.parametrize(
    ("ages_s", "retired_age_s", "reason"),
    [
        pytest.param([9000], 9000, "last key", id="the only one"),
        pytest.param([9000, 8000], 8000, "no newer one", id="it signs, with nobody to follow"),
        pytest.param(
            [9000, 10], 9000, f"can go from {stamp(later(290 + 3900))} on", id="it signs for 290 s more"
        ),
        pytest.param([9000, 300], 9000, f"can go from {stamp(later(3900))} on", id="it has just stopped"),
        pytest.param([9000, 4199], 9000, "can be alive", id="a second too early"),
        pytest.param([9000, 4200], 9000, None, id="its last token is over, and the overlap"),
        pytest.param([9000, 8000, 10], 10, None, id="it waits and has signed nothing"),
        pytest.param([9000, 8000, 10, 5], 10, None, id="it waits, and will sign for five seconds"),
        pytest.param([9000, 8000, -500], -500, None, id="it is dated in the future"),
        pytest.param([9000, 8500, 4000], 8500, "can be alive", id="one in the middle that has just stopped"),
        pytest.param([10, 5], 10, "it signs", id="all young: the oldest"),
        pytest.param([-10, -50], -10, "it signs", id="all in the future: the oldest"),
    ],
)
def test_a_key_stays_while_a_token_of_its_can_live(ages_s, retired_age_s, reason):
    """It is the last, it signs, or it signed within the life of a token (3,600 s) and 300 s."""
    keys = aged(*ages_s)
    (kid,) = [key.kid for key in keys.keys if key.created_at == later(-retired_age_s)]

    if reason is None:
        keys.require_unused(kid, now=NOW, lifetime_s=3600)
        return
    with pytest.raises(KeyInUse, match=reason):
        keys.require_unused(kid, now=NOW, lifetime_s=3600)


def test_a_copy_of_a_key_is_as_much_in_use_as_the_key():
    """Two files, one ``kid``: it is still the last key."""
    key = signing_key()
    keys = KeyRing.of([key, replace(key, file_name="copy.pem", created_at=later(-9000))])

    with pytest.raises(KeyInUse, match="last key"):
        keys.require_unused(key.kid, now=NOW, lifetime_s=3600)


@pytest.mark.parametrize(
    ("ages_s", "born_s"),
    [
        pytest.param([], 0, id="the first"),
        pytest.param([9000], 0, id="after an old one"),
        pytest.param([0], 1, id="in the second of another one"),
        pytest.param([9000, -3], 4, id="after one that a fast clock dated"),
        pytest.param([9000, -9000], 0, id="far from one in the future, which goes on waiting"),
    ],
)
def test_a_new_key_is_dated_after_the_others(ages_s, born_s):
    """So that of keys that were made at once the first one signs, and the new one waits."""
    keys = aged(*ages_s)

    born = keys.born_next(NOW.replace(microsecond=700_000))

    assert born == later(born_s)
    name, text = generate("ES256", born)
    new = SigningKey.from_pem(text, file_name=name, modified_at=NOW)
    assert (KeyRing.of([*keys.keys, new]).signer(NOW) is new) == (not ages_s)


def test_a_key_that_would_sign_before_anybody_could_fetch_it_is_not_made():
    """A clock far behind: every key is dated later, and the new one would be the oldest."""
    with pytest.raises(KeyInUse, match=r"time of this machine.*would sign before"):
        aged(-500, -9000).born_next(NOW)
