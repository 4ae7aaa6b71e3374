"""Device tokens: whose they are, how long they are good, and that nobody else makes one."""

from __future__ import annotations

import base64
import hmac
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.ratelimits import account_subject
from authsvc.domain.tokens.devices import LIFETIME_S, Device, DeviceTokens
from tests.unit.domain.samples import ALICE_ID, NOW

ACCOUNT, OTHER = account_subject("alice@example.com"), account_subject("bob@example.com")
TOKENS = DeviceTokens(b"k" * 32)
DEVICE = Device.of(ALICE_ID, 1)
TOKEN = TOKENS.issue(DEVICE, now=NOW)
RAW = base64.urlsafe_b64decode(TOKEN)


#: Made by release 0.1.0 with this key, for ACCOUNT.
OLD_BODY = bytes(16) + int(NOW.timestamp()).to_bytes(8) + DEVICE.stamp
OLD_TAG = hmac.digest(b"k" * 32, b"authsvc device token 1" + ACCOUNT.encode() + OLD_BODY, "sha256")
OLD_TOKEN = base64.urlsafe_b64encode(OLD_BODY + OLD_TAG).decode()


def test_a_token_of_the_release_before_is_good_for_its_account_alone():
    """Nobody's device is forgotten by an upgrade."""
    found = TOKENS.read(OLD_TOKEN, ACCOUNT, now=NOW)

    assert found is not None
    assert found.belongs_to(ALICE_ID, 1)
    assert TOKENS.read(OLD_TOKEN, OTHER, now=NOW) is None


def test_a_token_is_read_back_whatever_address_its_user_has():
    """It names the user by their id; under another key it is nobody's."""
    assert TOKENS.read(TOKEN, ACCOUNT, now=NOW) == DEVICE
    assert TOKENS.read(TOKEN, OTHER, now=NOW) == DEVICE
    assert DeviceTokens(b"x" * 32).read(TOKEN, ACCOUNT, now=NOW) is None


@pytest.mark.parametrize(("age_s", "is_good"), [(0, True), (LIFETIME_S, True), (LIFETIME_S + 1, False)])
def test_a_token_expires(age_s, is_good):
    """180 days after it was made; one from a clock that is ahead has no age."""
    device = TOKENS.read(TOKEN, ACCOUNT, now=NOW + timedelta(seconds=age_s))

    assert (device == DEVICE) is is_good
    assert TOKENS.read(TOKEN, ACCOUNT, now=NOW - timedelta(minutes=5)) == DEVICE


def test_a_device_is_the_same_after_its_next_login_and_another_one_is_not():
    """Its number stays, so its counter does; every new device has a number of its own."""
    assert Device.of(ALICE_ID, 1, DEVICE) == DEVICE
    assert Device.of(ALICE_ID, 2, DEVICE).nonce == DEVICE.nonce
    assert Device.of(ALICE_ID, 1).nonce != DEVICE.nonce


def test_a_device_belongs_to_one_user_with_one_password():
    """A change of password, or another user with the same address, makes it a stranger."""
    assert DEVICE.belongs_to(ALICE_ID, 1)
    assert not DEVICE.belongs_to(ALICE_ID, 2)
    assert not DEVICE.belongs_to("00000000-0000-4000-8000-0000000000bb", 1)


@given(position=st.integers(0, len(RAW) - 1), flip=st.integers(1, 255))
def test_no_byte_of_a_token_can_be_changed(position, flip):
    """Number, time, stamp and tag hold together."""
    forged = bytearray(RAW)
    forged[position] ^= flip

    assert TOKENS.read(base64.urlsafe_b64encode(forged).decode(), ACCOUNT, now=NOW) is None


@given(st.text() | st.binary(max_size=80).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_whatever_is_no_token_is_nobodys(text):
    """Any text, of any length and alphabet: refused, never an error."""
    assert TOKENS.read(text, ACCOUNT, now=NOW) is None


@pytest.mark.parametrize(
    "cut",
    [TOKEN[:-2], TOKEN + TOKEN, TOKEN[4:], TOKEN + "AAAA", f" {TOKEN}", ""],
    ids=["shorter", "doubled", "late", "longer", "spaced", "empty"],
)
def test_a_part_of_a_token_is_none(cut):
    """Neither less nor more."""
    assert TOKENS.read(cut, ACCOUNT, now=NOW) is None


def test_a_token_is_not_shown_by_accident():
    """The key is in no repr."""
    assert "kkk" not in repr(TOKENS)
