"""Codes of authenticator apps, against the test vectors of their RFCs; recovery codes and their digests."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.accounts.codes import (
    RecoveryDigests,
    base32,
    matching_step,
    new_recovery_codes,
    new_totp_secret,
    totp_uri,
)
from authsvc.domain.values.identifiers import UserId

#: RFC 6238, appendix B: the secret, and codes of eight digits, of which ours are the last six.
SECRET = b"12345678901234567890"
VECTORS = [
    (59, "94287082"),
    (1111111109, "07081804"),
    (1111111111, "14050471"),
    (1234567890, "89005924"),
    (2000000000, "69279037"),
    (20000000000, "65353130"),
]
ADA, BOB = UserId("00000000-0000-4000-8000-0000000000ad"), UserId("00000000-0000-4000-8000-0000000000bb")
DIGESTS = RecoveryDigests(b"k" * 32)


@pytest.mark.parametrize(("seconds", "code"), VECTORS)
def test_codes_are_those_of_the_rfc(seconds, code):
    """At their time, one step earlier and one later; two steps away they are wrong."""
    found = {
        away: matching_step(SECRET, code[2:], datetime.fromtimestamp(seconds + away, UTC))
        for away in (-60, -30, 0, 30, 60)
        if seconds + away >= 30
    }

    right = dict.fromkeys((-30, 0, 30), seconds // 30)
    assert found == {away: right.get(away) for away in found}
    assert 0 in found


@given(st.text(max_size=8))
def test_what_is_no_six_ascii_digits_is_never_a_code(typed):
    """Whatever a caller sends."""
    if len(typed) == 6 and typed.isascii() and typed.isdigit():
        return
    assert matching_step(SECRET, typed, datetime.fromtimestamp(59, UTC)) is None


def test_a_secret_has_160_bits_and_goes_into_an_app_by_its_uri():
    """The label and the parameters that apps read; nothing in it breaks out of its place."""
    secret = new_totp_secret()

    uri = totp_uri(secret, issuer="auth.example.com", account="a+b&c@example.com")

    parts = urlsplit(uri)
    assert (len(secret), parts.scheme, parts.netloc) == (20, "otpauth", "totp")
    assert unquote(parts.path) == "/auth.example.com:a+b&c@example.com"
    assert parse_qs(parts.query) == {
        "secret": [base32(secret)],
        "issuer": ["auth.example.com"],
        "algorithm": ["SHA1"],
        "digits": ["6"],
        "period": ["30"],
    }
    assert base64.b32decode(base32(secret)) == secret


def test_recovery_codes_are_eight_of_120_bits():
    """Groups of four; all different, and none like those of another time."""
    codes, more = new_recovery_codes(), new_recovery_codes()

    assert len({*codes, *more}) == 16
    for code in codes:
        assert [len(group) for group in code.split("-")] == [4] * 6
        assert len(base64.b32decode(code.replace("-", ""))) == 15


@given(st.data())
def test_a_recovery_code_is_the_same_however_it_is_typed(data):
    """Case, spaces and hyphens say nothing."""
    (code, *_) = new_recovery_codes()
    typed = "".join(
        f"{data.draw(st.sampled_from(['', ' ', '-']))}{data.draw(st.sampled_from([sign, sign.lower()]))}"
        for sign in code
    )

    assert DIGESTS.of(ADA, typed) == DIGESTS.of(ADA, code) is not None


def test_a_digest_is_of_one_code_one_user_and_one_key():
    """And the code cannot be found in it."""
    one, other = new_recovery_codes()[:2]
    digests = {
        DIGESTS.of(ADA, one),
        DIGESTS.of(ADA, other),
        DIGESTS.of(BOB, one),
        RecoveryDigests(b"K" * 32).of(ADA, one),
    }

    assert len(digests) == 4
    assert all(digest is not None and len(digest) == 32 for digest in digests)


@pytest.mark.parametrize("typed", ["", "AAAA", "1" * 24, "\u0131" * 24, "A" * 23, "A" * 25, "AAAA_" * 6])
def test_what_is_no_recovery_code_has_no_digest(typed):
    """Nothing is asked of SQL for it."""
    assert DIGESTS.of(ADA, typed) is None
