"""GET /.well-known/jwks.json."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil

import jwt
import pytest

from authsvc.cli.keys import generate_key

PATH = "/.well-known/jwks.json"


def test_a_token_verifies_with_the_published_key(api):
    """What any other service does with an ordinary library."""
    person = api.someone()
    header = jwt.get_unverified_header(person.access)

    (jwk,) = [key for key in api.call("GET", PATH).json["keys"] if key["kid"] == header["kid"]]

    claims = jwt.decode(
        person.access,
        jwt.PyJWK(jwk),
        algorithms=[jwk["alg"]],
        audience=api.env["JWT_AUDIENCE"],
        issuer=api.env["JWT_ISSUER"],
    )
    assert header == {"typ": "at+jwt", "alg": "ES256", "kid": jwk["kid"]}
    assert (claims["sub"], claims["sid"]) == (person.id, person.session_id)


def test_verifiers_may_keep_it_for_five_minutes(api):
    """As long as a new key waits before it signs; JSON, without data about users."""
    answer = api.call("GET", PATH)

    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("algorithm", "members"),
    [("ES256", {"kty", "crv", "x", "y"}), ("EdDSA", {"kty", "crv", "x"}), ("RS256", {"kty", "n", "e"})],
)
def test_each_kind_of_key_is_published_by_its_thumbprint(make_api, tmp_path, algorithm, members):
    """``kid`` is the RFC 7638 thumbprint; nothing of the private key is there; its tokens verify."""
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    generate_key(keys, algorithm)
    api = make_api(JWT_KEYS_DIR=str(keys))

    (jwk,) = api.call("GET", PATH).json["keys"]

    required = json.dumps({name: jwk[name] for name in members}, sort_keys=True, separators=(",", ":"))
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(required.encode()).digest()).rstrip(b"=").decode()
    assert set(jwk) == {*members, "kid", "use", "alg"}
    assert (jwk["kid"], jwk["use"], jwk["alg"]) == (thumbprint, "sig", algorithm)
    person = api.someone()
    assert jwt.get_unverified_header(person.access) == {"typ": "at+jwt", "alg": algorithm, "kid": thumbprint}
    assert person.is_accepted()


def test_every_key_is_published_and_the_newest_that_is_old_enough_signs(make_api, folder, tmp_path):
    """A key of this minute is there for verifiers to fetch, and does not sign yet."""
    keys = tmp_path / "keys"
    shutil.copytree(folder / "keys", keys)
    for old in list(keys.iterdir()):
        old.rename(keys / "20260101T000000Z-es256.pem")
    generate_key(keys, "EdDSA")
    api = make_api(JWT_KEYS_DIR=str(keys))

    published = api.call("GET", PATH).json["keys"]

    assert {key["alg"] for key in published} == {"ES256", "EdDSA"}
    assert jwt.get_unverified_header(api.someone().access)["alg"] == "ES256"
    api.clock.tick(301)
    assert jwt.get_unverified_header(api.someone().access)["alg"] == "EdDSA"
