"""Key names."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.cache import KeySpace

SPACE = KeySpace()
PARTS = st.lists(st.text(st.characters(), max_size=20), max_size=3).map(tuple)


def test_a_key_starts_with_prefix_and_version():
    """Parts are joined by colons behind both."""
    assert KeySpace("shop", "v2").key("user", "email", "a@b.example") == "shop:v2:user:email:a@b.example"


@pytest.mark.parametrize(
    ("part", "quoted"),
    [
        ("AZaz09-._~@+", "AZaz09-._~@+"),
        ("a:b", "a%3Ab"),
        ("100%", "100%25"),
        ("{tag}", "%7Btag%7D"),
        ("a b/c*?[\n", "a%20b%2Fc%2A%3F%5B%0A"),
        ("ä", "%C3%A4"),
        ("", ""),
    ],
)
def test_what_is_not_unreserved_is_percent_encoded(part, quoted):
    """Only RFC 3986's unreserved characters, @ and + stand for themselves."""
    assert SPACE.key(part) == f"authsvc:v1:{quoted}"


@given(PARTS, PARTS)
def test_different_parts_never_share_a_key(left, right):
    """Separators, empty parts and odd characters included."""
    assert (SPACE.key(*left) == SPACE.key(*right)) == (left == right)


@given(st.lists(st.text(st.characters(), max_size=400), max_size=3))
def test_no_key_is_longer_than_allowed(parts):
    """However long the parts, the key stays within the limit, in plain ASCII without braces."""
    key = SPACE.key(*parts)

    assert len(key) <= 250
    assert key.isascii()
    assert not set(key) & set("{} *?\n")


@given(st.text(min_size=240, max_size=260, alphabet="abc"))
def test_a_part_too_long_becomes_its_hash(part):
    """Up to the limit a part stays readable; beyond it stands the SHA-256 of its text."""
    plain = f"authsvc:v1:{part}"

    expected = plain if len(plain) <= 250 else f"authsvc:v1:{sha256(part.encode()).hexdigest()}"

    assert SPACE.key(part) == expected


def test_the_longest_part_is_hashed_first():
    """A short neighbour stays readable."""
    key = SPACE.key("user", "short", "x" * 300)

    assert key == f"authsvc:v1:user:short:{sha256(b'x' * 300).hexdigest()}"


def test_too_many_parts_are_refused():
    """Where even hashes do not fit, no key is better than a wrong one."""
    with pytest.raises(ValueError, match="too many parts"):
        SPACE.key(*["x" * 70] * 4)


@pytest.mark.parametrize("prefix", ["", "a b", "a{b}", "ä", "a:", "*"])
def test_a_fixed_part_must_need_no_quoting(prefix):
    """A prefix is what ACLs and operators write down: it means what it says."""
    with pytest.raises(ValueError, match="unreserved"):
        KeySpace(prefix)


def test_a_space_names_its_keys():
    """A space's name is fixed text and may have several words."""
    emails = SPACE.space("user:email", ttl_s=60)

    assert emails.key("a@b.example") == "authsvc:v1:user:email:a@b.example"
    assert emails.ttl_s == 60


def test_a_lease_shares_the_slot_of_its_key_and_the_prefix_of_all():
    """The hash tag is the whole key, and an ACL for the prefix covers the lease."""
    users = SPACE.space("user", ttl_s=60)
    key = users.key("{7}")

    lease = users.lease(key)

    assert lease.startswith("authsvc:v1:")
    assert lease[lease.index("{") + 1 : lease.index("}")] == key == "authsvc:v1:user:%7B7%7D"
