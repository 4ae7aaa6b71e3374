"""Which key signs, how old it is, and which files are no keys."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.tokens.keys import KeyRefused, KeyRing, SigningKey, generate
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


def test_without_any_key_nothing_is_signed():
    """An outage, that is, and no crash: the folder may be filled again."""
    with pytest.raises(StoreUnavailable):
        KeyRing.of([]).signer(NOW)

    assert KeyRing.of([]).jwks() == {"keys": []}


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
