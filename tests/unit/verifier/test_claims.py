"""
The one reader of access tokens, by both of its ways in: the service's and the verifier's.

Whatever it takes, another JWT library must take with the same claims: see ``taken``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet

from authsvc.domain.errors import TokenInvalid as ServiceRefusal
from authsvc.domain.tokens.access import TokenReader
from authsvc.domain.tokens.claims import MAX_LENGTH
from authsvc.domain.tokens.keys import Algorithm
from authsvc.domain.users import is_role_name
from authsvc.domain.values.levels import Acr, Level
from authsvc.verifier import claims as verifier
from authsvc.verifier.errors import KeysUnknown, TokenInvalid
from tests.unit.domain.samples import (
    CLAIMS,
    LEVEL,
    LEVEL_CLAIMS,
    MACHINE,
    PROFILE,
    WITHOUT,
    claiming,
    part,
    ring,
    signed,
    signing_key,
)
from tests.unit.verifier.samples import NOW_S, RULES, claims_of, find_key_in

ALGORITHMS: tuple[Algorithm, ...] = ("ES256", "EdDSA", "RS256")
KEYS = [signing_key(algorithm) for algorithm in ALGORITHMS]
RING = ring(*ALGORITHMS)
SERVICE = TokenReader(PROFILE, lambda: RING)
FIND = find_key_in(*KEYS)
#: The keys as published, for the other library.
KEY_SET = KeySet.import_key_set(RING.jwks())  # type: ignore[arg-type]  # it asks for a narrower dict
REGISTRY = joserfc_jwt.JWTClaimsRegistry(
    now=int(NOW_S),
    leeway=3605,
    iss={"essential": True, "value": PROFILE.issuer},
    aud={"essential": True, "value": PROFILE.audience},
    exp={"essential": True},
)
FIELDS = [name for name in verifier.Claims.__dataclass_fields__ if name != "level"]
MACHINE_FIELDS = list(verifier.MachineClaims.__dataclass_fields__)

# RFC 9864 prefers the name Ed25519, which few libraries know yet.
pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated:joserfc.errors.SecurityWarning")


def of_service(text: str, now_s: float) -> tuple[Any, ...] | None:
    """What the service reads in *text*; None where it refuses."""
    try:
        token = SERVICE.read(text, now=datetime.fromtimestamp(now_s, UTC))
    except ServiceRefusal:
        return None
    return members(token)


def of_verifier(text: str, now_s: float) -> tuple[Any, ...] | None:
    """The same for the verifier."""
    try:
        claims = verifier.read(text, RULES, FIND, now_s=now_s)
    except TokenInvalid:
        return None
    return members(claims)


def members(claims: verifier.Claims | verifier.MachineClaims) -> tuple[Any, ...]:
    """All that *claims* say."""
    if isinstance(claims, verifier.MachineClaims):
        return tuple(getattr(claims, name) for name in MACHINE_FIELDS)
    return tuple(getattr(claims, name) for name in FIELDS) + _parts(claims.level)


def _parts(level: Level | None) -> tuple[Any, ...]:
    return (level.acr.value, level.amr, level.auth_time) if level else ()


def of_another_library(text: str) -> tuple[Any, ...]:
    """What joserfc reads in *text*; it raises where it refuses."""
    token = joserfc_jwt.decode(text, KEY_SET, algorithms=list(ALGORITHMS))
    REGISTRY.validate(token.claims)
    assert token.header["typ"] == "at+jwt"
    common = [token.claims[name] for name in ("sid", "jti", "epoch", "iat", "nbf", "exp", "iss", "aud")]
    if "scope" in token.claims:
        return (*common, token.claims["sub"], tuple(filter(None, token.claims["scope"].split(" "))))
    roles = tuple(sorted(token.claims["roles"], key=lambda role: (role != "user", role != "admin", role)))
    values = [*common, token.claims["sub"], roles]
    if token.claims.keys() & LEVEL_CLAIMS.keys():
        values += [token.claims["acr"], tuple(token.claims["amr"]), token.claims["auth_time"]]
    return tuple(values)


def taken(text: str, now_s: float = NOW_S) -> bool:
    """Whether both ways in take *text*; another library must then read the same claims."""
    ours, theirs = of_verifier(text, now_s), of_service(text, now_s)
    assert ours == theirs
    if ours is None:
        return False
    assert ours == of_another_library(text)
    # True equals 1, but is no number.
    assert {type(value) for value in ours} == {str, int, tuple}
    return True


@pytest.mark.parametrize("key", KEYS, ids=ALGORITHMS)
def test_what_the_service_issues_is_taken(key):
    """With every kind of key, down to the last claim."""
    assert taken(claiming(key))
    assert verifier.read(claiming(key), RULES, FIND, now_s=NOW_S) == claims_of()


def test_a_token_of_the_first_release_is_taken():
    """The service of version 0.1.0 wrote no ``client_id``."""
    assert taken(claiming(client_id=WITHOUT))


@pytest.mark.parametrize("value", [None, "", "Authsvc", "others", 1, ["authsvc"]])
def test_the_client_id_is_a_fixed_text(value):
    """No other value."""
    assert not taken(claiming(client_id=value))


@pytest.mark.parametrize("changes", [{}, {"client_id": WITHOUT}])
@pytest.mark.parametrize("acr", Acr)
def test_a_level_is_taken(acr, changes):
    """Each class; with ``client_id`` and without."""
    text = claiming(**LEVEL_CLAIMS | {"acr": acr} | changes)

    assert taken(text)
    claims = verifier.read(text, RULES, FIND, now_s=NOW_S)
    assert isinstance(claims, verifier.Claims)
    assert claims.level == replace(LEVEL, acr=acr)


@pytest.mark.parametrize(
    "missing", [names for count in (1, 2) for names in combinations(sorted(LEVEL_CLAIMS), count)]
)
def test_a_level_comes_whole_or_not_at_all(missing):
    """One or two of three claims say nothing that could be relied on."""
    assert not taken(claiming(**LEVEL_CLAIMS | dict.fromkeys(missing, WITHOUT)))


_BAD: dict[str, list[Any]] = {
    "acr": [None, "", "AAL2", "aal2 ", "aal3", "\u0430al2", 2, True, ["aal2"], {}],
    "amr": [
        *(None, "pwd", {"pwd": 1}, [], [""], ["pwd", "pwd"], ["Pwd"], ["pwd", 1], ["pwd\n"], ["p wd"]),
        *(["a" * 17], [["pwd"]], [None]),
    ],
    "auth_time": [None, True, "1", 1.5, float(NOW_S), -1, 1 << 53, 10**400, []],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in _BAD for value in _BAD[name]])
def test_a_level_is_written_in_one_way(name, value):
    """No class that cannot be ranked, no method twice, no time that others read otherwise."""
    assert not taken(claiming(**LEVEL_CLAIMS | {name: value}))


def test_a_method_of_a_later_version_is_taken():
    """The class alone decides; a new method must not log people out while versions run side by side."""
    assert taken(claiming(**LEVEL_CLAIMS | {"amr": ["hwk", "pwd"]}))


def test_a_proof_that_another_clock_dates_ahead_is_taken():
    """The time of the proof and that of the token may come from two nodes."""
    assert taken(claiming(**LEVEL_CLAIMS | {"auth_time": CLAIMS["iat"] + 5}))


def test_the_token_of_a_machine_is_taken():
    """It says whose it is and what it is for, and is told from a person's."""
    text = claiming(**MACHINE)

    assert taken(text)
    claims = verifier.read(text, RULES, FIND, now_s=NOW_S)
    assert isinstance(claims, verifier.MachineClaims)
    assert (claims.client_id, claims.scopes) == (CLAIMS["sub"], ("orders:read", "orders:write"))


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        ("", ()),
        ("a", ("a",)),
        ("a" * 64, ("a" * 64,)),
        ("a/b a.b a_b a-b a:b", ("a/b", "a.b", "a_b", "a-b", "a:b")),
        *((scope, None) for scope in (" ", "a ", " a", "a  b", "a\tb", "a\n", "A", "a,b", "a a", "a" * 65)),
        *((scope, None) for scope in (None, 1, True, ["a"], {"a": 1})),
    ],
)
def test_scopes_are_names_each_once_with_a_space_between(scope, scopes):
    """One spelling: what is read otherwise elsewhere is refused."""
    text = claiming(**MACHINE | {"scope": scope})

    assert taken(text) == (scopes is not None)
    if scopes is not None:
        claims = verifier.read(text, RULES, FIND, now_s=NOW_S)
        assert isinstance(claims, verifier.MachineClaims)
        assert claims.scopes == scopes


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "authsvc"},
        {"client_id": CLAIMS["sid"]},
        {"client_id": WITHOUT},
        {"sub": "authsvc"},
        {"scope": WITHOUT},
        {"roles": ["user"]},
        LEVEL_CLAIMS,
        {"exp": CLAIMS["iat"] + 601},
        *({name: WITHOUT} for name in ("iss", "aud", "sub", "iat", "nbf", "exp", "jti", "sid", "epoch")),
    ],
)
def test_a_machine_is_no_person_and_a_person_no_machine(changes):
    """Exactly its claims, one id in both places, and a life of its own length."""
    assert not taken(claiming(**MACHINE | changes))


_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 1 << 54),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([CLAIMS["iat"], str(CLAIMS["iat"]), CLAIMS["exp"] + 1, 10**400, CLAIMS["sub"].upper()]),
    st.lists(st.sampled_from(["user", "admin", "root", 1, None]), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.just(WITHOUT),
)


@given(
    name=st.sampled_from([*CLAIMS, *LEVEL_CLAIMS, "extra", "scope"]),
    value=_ODD,
    again=st.sampled_from([*CLAIMS, *LEVEL_CLAIMS]),
    base=st.sampled_from([{}, LEVEL_CLAIMS, MACHINE]),
)
def test_changed_claims_are_read_alike_or_refused(name, value, again, base):
    """Left out, of another type, out of range, one too many: signed well, and refused or read as it is."""
    taken(claiming(**base | {name: value}))
    taken(claiming(**base | {name: value, again: WITHOUT}))


@pytest.mark.parametrize(
    ("value", "is_good"),
    [
        (["user"], True),
        (["admin", "user"], True),
        (["editor", "user", "billing"], True),
        (["a" * 32, "user"], True),
        (["a" * 33, "user"], False),
        (["Editor", "user"], False),
        (["editor\n", "user"], False),
        (["", "user"], False),
        ([1, "user"], False),
        (["editor", "user", "editor"], False),
        (["admin"], False),
        ([], False),
        (["user", "user"], False),
        ("user", False),
        (None, False),
    ],
)
def test_roles_are_names_each_once_with_user_among_them(value, is_good):
    """In any order; the setting ROLES accepts the same names."""
    assert taken(claiming(roles=value)) == is_good
    if is_good:
        assert all(map(is_role_name, value))


@given(st.text("abzAZ09_-. \n", max_size=34))
def test_a_role_in_a_token_is_named_as_the_setting_accepts(name):
    """One pattern for both: what may be configured can be read, and nothing else."""
    assert taken(claiming(roles=["user", name])) == (is_role_name(name) and name != "user")


@given(
    offset_s=st.one_of(
        st.integers(-10, 10), st.sampled_from([3599.9, 3604.9, 3605, 3605.1, -4.9, -5, -5.1, 7200])
    )
)
def test_a_token_is_good_from_issue_to_expiry_with_the_leeway(offset_s):
    """From issue to expiry, with the leeway."""
    assert taken(claiming(), NOW_S + offset_s) == (-5 <= offset_s < 3605)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": CLAIMS["exp"] + 1},
        {"iat": CLAIMS["iat"] - 1},
        {"nbf": CLAIMS["iat"] + 6},
        {"iat": CLAIMS["iat"] + 6, "exp": CLAIMS["exp"]},
        {"iat": -1},
    ],
)
def test_times_that_do_not_fit_are_refused(changes):
    """A life beyond the longest, a time in the future."""
    assert not taken(claiming(**changes))


_HEADERS: list[dict[str, Any]] = [
    {"typ": "JWT"},
    {"typ": WITHOUT},
    {"typ": "AT+JWT"},
    {"typ": "application/at+jwt"},
    {"kid": WITHOUT},
    {"kid": ""},
    {"kid": "unknown"},
    {"kid": KEYS[1].kid},
    {"jku": "https://keys.example.com"},
    {"jwk": {}},
    {"x5u": "https://keys.example.com"},
    {"crit": ["exp"]},
    {"cty": "JWT"},
]


@pytest.mark.parametrize("header", _HEADERS)
def test_another_header_is_refused(header):
    """No field selects key material, and none is passed over."""
    assert not taken(signed(json.dumps(CLAIMS).encode(), **header))


@pytest.mark.parametrize(
    "algorithm", ["none", "HS256", "HS512", "ES384", "RS256", "PS256", "EdDSA", "es256", ""]
)
def test_the_algorithm_is_that_of_the_key(algorithm):
    """Whatever the header says; a public key is nobody's HMAC secret."""
    head, payload, signature = claiming().split(".")
    header = json.dumps({"alg": algorithm, "typ": "at+jwt", "kid": KEYS[0].kid}).encode()

    assert head
    assert not taken(f"{part(header)}.{payload}.{signature}")
    assert not taken(f"{part(header)}.{payload}.{part(b'x')}")


_SAMPLE = json.dumps(CLAIMS)
_PAYLOADS = [
    b"", b"null", b"[]", b"1", b"{}", b"{", b"\xff", b"\xef\xbb\xbf" + _SAMPLE.encode(),
    _SAMPLE.replace('"epoch": 3', '"epoch": 3, "epoch": 4').encode(),
    _SAMPLE.replace('"epoch": 3', '"epoch": NaN').encode(),
    _SAMPLE.replace('"epoch": 3', '"epoch": 3.0').encode(),
    _SAMPLE.replace('"epoch": 3', '"epoch": 1e0').encode(),
    _SAMPLE.replace('"epoch": 3', '"epoch": ' + "9" * 5000).encode(),
    _SAMPLE.replace('["user"]', "[" * 900 + "]" * 900).encode(),
    _SAMPLE.replace('["user"]', '["user", {"a": 1, "a": 2}]').encode(),
    _SAMPLE.encode("utf-16"),
]  # fmt: skip


@pytest.mark.parametrize("payload", _PAYLOADS, ids=map(str, range(len(_PAYLOADS))))
def test_what_is_no_strict_object_is_refused(payload):
    """Broken, ambiguous, of another charset, too large a number, too deep."""
    assert not taken(signed(payload))


@given(st.data())
def test_a_changed_text_is_read_alike_or_refused(data):
    """One character more, less or other, padding, white space: never a crash, never other claims."""
    text = claiming()
    place = data.draw(st.integers(0, len(text)))
    removed = data.draw(st.integers(0, 3))
    inserted = data.draw(st.text("ABab01-_.=+/ \n\u00e9", max_size=3))

    taken(text[:place] + inserted + text[place + removed :])


@given(st.text(max_size=30) | st.text("eyJ.", max_size=30))
def test_whatever_is_no_token_is_refused(text):
    """By a named error."""
    assert not taken(text)
    assert not taken(claiming() + "A" * MAX_LENGTH)


def test_a_lifetime_that_is_not_told_is_not_checked():
    """A verifier may leave it to the issuer."""
    rules = verifier.Rules(issuer=RULES.issuer, audience=RULES.audience)
    text = claiming(exp=CLAIMS["iat"] + 100_000)

    assert verifier.read(text, rules, FIND, now_s=NOW_S).expires_at == CLAIMS["iat"] + 100_000
    with pytest.raises(TokenInvalid):
        verifier.read(text, RULES, FIND, now_s=NOW_S)


def test_without_keys_nothing_is_said_of_a_token():
    """Neither yes nor no: that is for whoever gets the keys."""

    def nothing(_kid: str) -> None:
        raise KeysUnknown("none")

    with pytest.raises(KeysUnknown):
        verifier.read(claiming(), RULES, nothing, now_s=NOW_S)


def test_keys_are_not_asked_for_in_vain():
    """A token that is none by its form costs its sender's time alone."""
    asked: list[str] = []

    for text in ("a.b.c", signed(b"{}", typ="JWT"), signed(b"{}", jku="https://x.example.com")):
        with pytest.raises(TokenInvalid):
            verifier.read(text, RULES, asked.append, now_s=NOW_S)

    assert asked == []
