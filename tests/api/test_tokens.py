"""Access tokens as an attacker makes them: each is refused, and by the same words."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from authsvc.domain.values.identifiers import new_id
from tests.api.driver import Api, Person, code_of
from tests.api.watching import Shelf
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable

REQUIRED = ("iss", "aud", "sub", "iat", "nbf", "exp", "jti", "sid", "roles", "epoch")
CLAIMS = (*REQUIRED, "client_id")


def b64(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """The reverse."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Forge:
    """Signs anything with the service's own key, and with others."""

    def __init__(self, person: Person, pem: bytes) -> None:
        self.person = person
        key = serialization.load_pem_private_key(pem, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.key = key
        head, body, self.signature = person.access.split(".")
        self.header: dict[str, Any] = json.loads(unb64(head))
        self.claims: dict[str, Any] = json.loads(unb64(body))

    def sign(self, header: bytes, payload: bytes, key: ec.EllipticCurvePrivateKey | None = None) -> str:
        """A compact JWS by ES256, whatever *header* says."""
        signed = f"{b64(header)}.{b64(payload)}"
        der = (key or self.key).sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
        raw = b"".join(number.to_bytes(32) for number in decode_dss_signature(der))
        return f"{signed}.{b64(raw)}"

    def token(self, header: dict[str, Any] | None = None, key: Any = None, **claims: Any) -> str:
        """
        A token like the person's with some claims or header fields replaced; None leaves one out.

        It has an id of its own, so that nothing but the change can be what it is refused for.
        """
        head = {name: value for name, value in {**self.header, **(header or {})}.items() if value is not None}
        payload = json.dumps({**self.claims, "jti": new_id(), **claims}).encode()
        return self.sign(json.dumps(head).encode(), payload, key)

    def payload(self, text: str) -> str:
        """The token with *text* as its payload."""
        return self.sign(json.dumps(self.header).encode(), text.encode())

    def without(self, claim: str) -> str:
        """The token that lacks *claim*."""
        claims = {name: value for name, value in self.claims.items() if name != claim}
        return self.sign(json.dumps(self.header).encode(), json.dumps(claims).encode())


def key_file(api: Api) -> Path:
    """The file of the one signing key."""
    (file,) = Path(api.env["JWT_KEYS_DIR"]).iterdir()
    return file


@pytest.fixture(scope="module")
def forge(pg_api) -> Forge:
    """Log somebody in and hand out the means to change their token."""
    return Forge(pg_api.someone(), key_file(pg_api).read_bytes())


@pytest.fixture
def refused(pg_api, forge) -> Callable[[str], bool]:
    """Say whether a token is refused by check, view and logout, always in the same words, ending nothing."""

    def is_refused(token: str) -> bool:
        answers = [
            pg_api.call("GET", "/v1/auth/verify", token=token),
            pg_api.call("GET", "/v1/me", token=token),
            pg_api.call("GET", "/v1/users", token=token),
            pg_api.log_out(access=token),
        ]
        assert {answer.status_code for answer in answers} == {401}, [answer.status_code for answer in answers]
        assert len({answer.headers["WWW-Authenticate"] for answer in answers}) == 1
        bodies = {str({**answer.json, "request_id": ""}) for answer in answers}
        expected = pg_api.call("GET", "/v1/me", token="x").json
        assert bodies == {str({**expected, "request_id": ""})}
        assert forge.person.is_accepted()
        return True

    return is_refused


def test_the_forge_makes_good_tokens(pg_api, forge):
    """Else nothing below would prove anything."""
    assert set(forge.claims) == set(CLAIMS)
    assert pg_api.verify(forge.token()) == 200
    assert pg_api.verify(forge.payload(json.dumps(forge.claims | {"jti": new_id()}))) == 200
    assert pg_api.verify(forge.token(roles=["user"])) == 200


@pytest.mark.parametrize(
    ("change", "is_sql_sure"),
    [
        ({"sub": "other"}, True),
        ({"roles": ["user", "admin"]}, True),
        ({"exp": "sooner"}, False),
        ({"exp": "sooner", "iat": "sooner"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_a_token_is_what_was_issued(pg_api, change, is_sql_sure):
    """
    Our own key signs another text with the id and the session of a genuine token: it was never issued.

    Once Redis has lost the record, SQL is asked: it knows user and roles, and not the times or the spelling.
    """
    forge = Forge(pg_api.someone(), key_file(pg_api).read_bytes())
    stranger = pg_api.someone().claims()["sub"]
    values = {"other": lambda _: stranger, "sooner": lambda name: forge.claims[name] - 1}
    claims = {
        name: values[value](name) if isinstance(value, str) else value for name, value in change.items()
    }
    text = forge.payload(json.dumps(forge.claims | claims))

    while_bound = pg_api.verify(text)
    with closing(Shelf(pg_api)) as shelf:
        assert shelf.drop(f"auth:token:{forge.claims['jti']}") == 1
    after_the_loss = [pg_api.verify(text) for _ in range(2)]

    assert while_bound == 401
    assert after_the_loss == [401 if is_sql_sure else 200] * 2
    assert forge.person.is_accepted()


def test_a_token_of_the_first_release_stays_good(pg_api, forge):
    """Version 0.1.0 wrote no ``client_id``: its tokens are taken until they expire."""
    claims = {name: forge.claims[name] for name in REQUIRED} | {"jti": new_id(), "nbf": forge.claims["iat"]}

    assert pg_api.verify(forge.payload(json.dumps(claims))) == 200


@pytest.mark.parametrize("claim", REQUIRED)
def test_every_claim_is_required(refused, forge, claim):
    """None has a default."""
    assert refused(forge.without(claim))


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize(
    "value", [None, True, False, "", "x", 1.5, -1, 10**400, [], {}, [1], ["x"], {"a": 1}]
)
def test_every_claim_has_one_type(refused, forge, claim, value):
    """No number in a string, no boolean for a number, nothing out of range."""
    assert refused(forge.token(**{claim: value}))


@pytest.mark.parametrize("claim", ["iat", "nbf", "exp", "epoch"])
def test_numbers_are_integers(refused, forge, claim):
    """Neither a float of the same value nor its text."""
    assert refused(forge.token(**{claim: float(forge.claims[claim])}))
    assert refused(forge.token(**{claim: str(forge.claims[claim])}))
    raw = json.dumps(forge.claims).replace(f'"{claim}": ', f'"{claim}": 1e400, "x": ')
    assert refused(forge.payload(raw))


@pytest.mark.parametrize("claim", CLAIMS)
def test_no_claim_may_come_twice(refused, forge, claim):
    """Two readers could take two different ones."""
    good = json.dumps(forge.claims)
    same = json.dumps({claim: forge.claims[claim]})[1:-1]

    assert refused(forge.payload("{" + same + ", " + good[1:]))
    assert refused(forge.payload("{" + f'"{claim}": "x", ' + good[1:]))


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "http://127.0.0.1:8080/"},
        {"iss": "HTTP://127.0.0.1:8080"},
        {"aud": "others"},
        {"aud": ["tests"]},
        {"aud": ["tests", "others"]},
        {"sub": "00000000-0000-4000-8000-000000000000"},
        {"sid": "00000000-0000-4000-8000-000000000000"},
        {"jti": "not-a-uuid"},
        {"roles": []},
        {"roles": ["admin"]},
        {"roles": ["user", "Root"]},
        {"roles": ["user", "root"], "epoch": 1},
        {"roles": ["user", "user"]},
        {"roles": ["user", "admin"], "epoch": 1},
        {"epoch": 1},
        {"epoch": 10**18},
        {"scope": "everything"},
        {"admin": True},
    ],
)
def test_a_signature_does_not_make_up_for_a_wrong_claim(pg_api, refused, forge, change):
    """Issuer, audience, user, session, roles and epoch are those of now, and there are no others."""
    token = forge.token(**change)

    if change.keys() & {"sub", "sid", "epoch"}:
        # Logout asks for the signature and the form; what such a token names is nobody's session or over.
        assert pg_api.verify(token) == 401
        assert code_of(pg_api.call("GET", "/v1/me", token=token)) == "token_invalid"
    else:
        assert refused(token)
    assert forge.person.is_accepted()


def test_a_signed_claim_of_roles_is_not_believed(pg_api, forge):
    """Roles are decided from the current state: nobody becomes admin by a token that says so."""
    token = forge.token(roles=["user", "admin"], jti="7d8b1d0e-0a53-4be4-93f9-0b0a8bfc1c11")

    assert pg_api.verify(token) == 401
    assert pg_api.call("GET", "/v1/users", token=token).status_code == 401


@pytest.fixture(scope="module")
def still(make_module_api) -> Api:
    """Share an application whose clock stands still."""
    api: Api = make_module_api()
    api.clock.stop()
    return api


@pytest.mark.parametrize(
    ("shift", "status"),
    [
        ({"iat": +6, "nbf": 0}, 401),
        ({"iat": 0, "nbf": +11}, 401),  # it was 5 s before the time of issue
        ({"iat": 0, "nbf": +10}, 200),
        ({"iat": +4, "nbf": +4}, 200),
        ({"iat": -1, "nbf": -1}, 401),
        ({"exp": +1}, 401),
        ({"exp": -1}, 200),
        ({"exp": -3600 - 4}, 200),
        ({"exp": -3600 - 5}, 401),
        ({"exp": -3600 - 100}, 401),
    ],
)
def test_times_are_checked_with_five_seconds_of_leeway(still, shift, status):
    """From the future, living longer than configured, or expired: refused; ``exp - iat`` has no leeway."""
    forge = Forge(still.someone(), key_file(still).read_bytes())
    moved = {name: forge.claims[name] + seconds for name, seconds in shift.items()}
    if moved.get("iat", 0) > forge.claims["iat"]:
        moved["exp"] = forge.claims["exp"]

    answer = still.call("GET", "/v1/me", token=forge.token(**moved))

    assert answer.status_code == status
    assert status == 200 or code_of(answer) == "token_invalid"


def test_a_remembered_signature_does_not_outlive_its_token(make_api):
    """The same text, valid a moment ago, is refused once it has expired, and stays refused."""
    api = make_api(REDIS_AUTH_TOKEN_TTL="60")
    api.clock.stop()
    person = api.someone()
    assert person.is_accepted()
    api.clock.tick(64)
    assert person.is_accepted()

    api.clock.tick(1)

    assert not person.is_accepted()


def public_pem(forge: Forge) -> bytes:
    """What everybody can make of the JWKS."""
    return forge.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
@pytest.mark.parametrize("signature", ["", "AA", "own"])
def test_an_unsigned_token_is_none(refused, forge, algorithm, signature):
    """CVE-2015-9235 and its spellings."""
    head = b64(json.dumps({**forge.header, "alg": algorithm}).encode())
    body = b64(json.dumps(forge.claims).encode())

    assert refused(f"{head}.{body}.{forge.signature if signature == 'own' else signature}")


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_the_public_key_is_no_secret_of_a_mac(refused, forge, algorithm):
    """CVE-2016-5431: the key in every form that an attacker has it in."""
    digest = getattr(hashlib, f"sha{algorithm[2:]}")
    head = b64(json.dumps({**forge.header, "alg": algorithm}).encode())
    signed = f"{head}.{b64(json.dumps(forge.claims).encode())}"
    pem = public_pem(forge)

    for secret in (pem, pem.strip(), forge.header["kid"].encode(), b"", PASSWORD.encode()):
        assert refused(f"{signed}.{b64(hmac.digest(secret, signed.encode(), digest))}")


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "JWT"},
        {"typ": None},
        {"typ": "AT+JWT"},
        {"typ": "application/at+jwt"},
        {"typ": 1},
        {"alg": "RS256"},
        {"alg": "EdDSA"},
        {"alg": "ES384"},
        {"alg": None},
        {"alg": ["ES256"]},
        {"kid": None},
        {"kid": ""},
        {"kid": "unknown"},
        {"kid": 1},
        {"kid": ["x"]},
        {"kid": "../../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"b64": True},
        {"jku": "http://127.0.0.1:9/jwks.json"},
        {"x5u": "http://127.0.0.1:9/cert.pem"},
        {"x5c": ["AA=="]},
        {"jwk": {"kty": "EC"}},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"anything": 1},
    ],
    ids=str,
)
def test_the_header_is_exactly_ours(refused, forge, header):
    """Type, algorithm of the key, and key id: nothing else, and nothing selects a key from elsewhere."""
    assert refused(forge.token(header))


def test_a_key_that_the_token_brings_along_is_not_used(refused, forge):
    """CVE-2018-0114: signed by its own ``jwk``, with or without our key id."""
    stranger = ec.generate_private_key(ec.SECP256R1())
    numbers = stranger.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": b64(numbers.x.to_bytes(32)), "y": b64(numbers.y.to_bytes(32))}

    assert refused(forge.token({"jwk": jwk}, key=stranger))
    assert refused(forge.token({"jwk": jwk, "kid": None}, key=stranger))
    assert refused(forge.token(key=stranger))


@pytest.mark.parametrize("raw", [b"\x00" * 64, b"\xff" * 64, b"", b"\x00", b"\x00" * 63, b"\x00" * 65])
def test_no_made_up_signature_holds(refused, forge, raw):
    """CVE-2022-21449: nor do zeroes."""
    head, body, _ = forge.person.access.split(".")

    assert refused(f"{head}.{body}.{b64(raw) or 'A'}")


def test_no_other_text_is_a_token(refused, forge):
    """Padding, white space, other alphabets, other serializations, parts too many or too few."""
    token = forge.person.access
    head, body, signature = token.split(".")
    texts = [
        token + "=", token + "==", f"{head}=.{body}.{signature}", f"{head}.{body}=.{signature}",
        token + ".", "." + token, f"{head}.{body}", f"{head}.{body}.", f"{head}..{signature}",
        f"{token}.{signature}", f"{head} .{body}.{signature}", token[:40] + "\t" + token[40:],
        token.replace("_", "/").replace("-", "+") + "/", "e30.e30.e30", "..", ".", "a", token * 2,
        json.dumps({"payload": body, "protected": head, "signature": signature}), "A" * 5000,
    ]  # fmt: skip

    for text in texts:
        assert refused(text)


@pytest.mark.parametrize(
    "payload", ["null", "[]", "1", '"x"', "", "{", "{}", "[" * 5000, '{"exp": NaN}', "\ufeff{}"]
)
def test_no_other_payload_is_a_set_of_claims(refused, forge, payload):
    """Signed by us, and still nothing."""
    assert refused(forge.payload(payload))


def test_bytes_that_are_no_text_are_no_claims(refused, forge):
    """Nor is UTF-16."""
    header = json.dumps(forge.header).encode()

    assert refused(forge.sign(header, b"\xff\xfe{}"))
    assert refused(forge.sign(header, json.dumps(forge.claims).encode("utf-16")))
    assert refused(forge.sign(b"\xff", json.dumps(forge.claims).encode()))
    assert refused(forge.sign(b"[]", json.dumps(forge.claims).encode()))


def test_a_refresh_token_is_no_access_token(refused, forge):
    """Nor is a password, nor an id."""
    for text in (forge.person.refresh_token, forge.person.session_id, forge.claims["jti"], PASSWORD):
        assert refused(text)
