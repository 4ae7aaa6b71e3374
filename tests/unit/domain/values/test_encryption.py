"""Secrets at rest: readable under a known key, for their owner, whole; otherwise not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.values.encryption import DataKeys, Undecryptable

OLD, NEW = b"o" * 32, b"n" * 32
KEYS = DataKeys.of(OLD)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_secret_is_read_back_for_its_owner_alone(secret, owner):
    """Nobody else's row can hold it."""
    stored = KEYS.encrypt(secret, owner)

    assert KEYS.decrypt(stored, owner) == secret
    with pytest.raises(Undecryptable):
        KEYS.decrypt(stored, owner + b"\0")


@given(st.binary(min_size=1, max_size=64), st.data())
def test_what_was_altered_is_not_read(secret, data):
    """Not a bit of it."""
    stored = KEYS.encrypt(secret, b"ada")
    place = data.draw(st.integers(0, len(stored.text) * 8 - 1))
    altered = bytearray(stored.text)
    altered[place // 8] ^= 1 << place % 8

    for text in (bytes(altered), stored.text[:-1], stored.text[:11], b""):
        with pytest.raises(Undecryptable):
            KEYS.decrypt(replace(stored, text=text), b"ada")


def test_one_secret_is_never_encrypted_alike_twice():
    """Equal rows would tell of equal secrets."""
    assert len({KEYS.encrypt(b"secret", b"ada").text for _ in range(100)}) == 100
    assert b"secret" not in KEYS.encrypt(b"secret", b"ada").text


def test_a_key_is_changed_in_three_steps():
    """Known everywhere, then current, then alone: what either wrote is read as long as its key is known."""
    first, second, third = DataKeys.of(OLD, NEW), DataKeys.of(NEW, OLD), DataKeys.of(NEW)
    by_old, by_new = first.encrypt(b"secret", b"ada"), second.encrypt(b"secret", b"ada")

    assert (by_old.key_id, by_new.key_id) == (KEYS.current, third.current)
    assert KEYS.current != third.current
    for keys in (first, second):
        assert [keys.decrypt(stored, b"ada") for stored in (by_old, by_new)] == [b"secret"] * 2
    with pytest.raises(Undecryptable):
        third.decrypt(by_old, b"ada")
    assert OLD.hex() not in repr(first)
    assert "secret" not in repr(by_old.key_id)
