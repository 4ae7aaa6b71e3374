"""The keys derived from TOKEN_SECRET."""

from __future__ import annotations

import pytest

from authsvc.domain.tokens.derived import KeyPurpose, derived_key

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("purpose", "expected"),
    [
        (KeyPurpose.DEVICE_TOKENS, "7743ff14888283fd6daa9d33dbb435fcf20ffbd1ec06053ec482fed80d881f5f"),
        (KeyPurpose.LOG_DIGESTS, "e3dc31ae049e9adc19c0406c2f429899810c4ad65c0a59758f0a6269cc6ecec2"),
        (KeyPurpose.TICKETS, "897a733e811111d7a32e050461c20d3689b303856c99bf695eabebd34b6d24a5"),
    ],
)
def test_a_key_stays_what_it_was(purpose, expected):
    """Another one would forget all devices, refuse all tickets, and give addresses other digests."""
    assert derived_key(SECRET, purpose).hex() == expected


def test_each_purpose_has_a_key_of_its_own():
    """What one key signs is worth nothing to another; and another secret makes other keys."""
    keys = {derived_key(secret, purpose) for secret in (SECRET, SECRET[::-1]) for purpose in KeyPurpose}

    assert len(keys) == 2 * len(KeyPurpose)
