"""The canonical form of an address."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.values.emails import MAX_LENGTH, InvalidEmail, canonical_email

LOCALS = st.text(alphabet="abcXYZ019._+-'\u212a\u00e9 \"", min_size=1, max_size=66)
UNUSUAL = "b\u00fccher\u00df\u0130\u212a\uff21\uff0e\u3002\u0660\u05d0\u0308\u00ad\u200d"
LABELS = st.one_of(
    st.text(alphabet="abcXYZ019-", min_size=1, max_size=64),
    st.text(alphabet="abcxyz019-", min_size=1, max_size=20).map("xn--".__add__),
    st.text(
        alphabet="b\u00fccher\u00df\u0130\u212a\uff21\uff0e\u3002\u0660\u05d0\u0308\u00ad\u200d",
        min_size=1,
        max_size=20,
    ),
    st.text(min_size=1, max_size=8),
)
ADDRESSES = st.builds(
    lambda local, labels, tld: f"{local}@{'.'.join([*labels, tld])}",
    LOCALS,
    st.lists(LABELS, min_size=1, max_size=4),
    st.sampled_from(["com", "test", "TEST", "xn--p1ai", "\u0440\u0444", "local", "c0m", "1"]),
)


def canonical_or_none(text: str) -> str | None:
    """The canonical form, or None when the text is refused; any other exception fails the test."""
    try:
        return canonical_email(text)
    except InvalidEmail:
        return None


@given(st.one_of(st.text(), st.text(alphabet=st.characters(codec=None)), ADDRESSES))
def test_any_text_is_an_address_or_invalid(text: str) -> None:
    """No text, however broken, raises anything but InvalidEmail; what passes is short, lower-case ASCII."""
    canonical = canonical_or_none(text)

    if canonical is not None:
        assert canonical.isascii()
        assert canonical == canonical.lower()
        assert len(canonical) <= MAX_LENGTH


@given(ADDRESSES)
def test_the_canonical_form_is_its_own_canonical_form(text: str) -> None:
    """Idempotent: what is stored is found again by itself, in any case and with space around it."""
    canonical = canonical_or_none(text)

    if canonical is not None:
        assert canonical_email(canonical) == canonical
        assert canonical_email(f"  {canonical.upper()}\n") == canonical


@given(LOCALS, LOCALS)
def test_addresses_with_different_local_parts_stay_apart(one: str, other: str) -> None:
    """Two local parts share a canonical form only if they differ in case alone."""
    first, second = canonical_or_none(f"{one}@example.com"), canonical_or_none(f"{other}@example.com")

    if first is not None and second is not None:
        assert (first == second) == (one.strip().lower() == other.strip().lower())


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("user@example.com", "user@example.com"),
        (" User@EXAMPLE.com\t", "user@example.com"),
        ("User.Name+tag@corp.test", "user.name+tag@corp.test"),
        ("o'brien@example.org", "o'brien@example.org"),
        ("a@b\u00fccher.example", "a@xn--bcher-kva.example"),
        ("a@bu\u0308cher.example", "a@xn--bcher-kva.example"),
        ("a@B\u00dcCHER.example", "a@xn--bcher-kva.example"),
        ("a@XN--BCHER-KVA.example", "a@xn--bcher-kva.example"),
        ("a@\u212aelvin.com", "a@kelvin.com"),
        ("a@\uff45\uff58\uff41\uff4d\uff50\uff4c\uff45.com", "a@example.com"),
        ("a@example\u3002com", "a@example.com"),
        ("a@\u0130stanbul.com", "a@xn--istanbul-o0e.com"),
        ("a@fa\u00df.example", "a@xn--fa-hia.example"),
        (f"{'l' * 64}@example.com", f"{'l' * 64}@example.com"),
    ],
)
def test_spellings_of_one_address_share_a_form(typed: str, canonical: str) -> None:
    """Case, space around, Unicode form and A-label or U-label of the domain make no difference."""
    assert canonical_email(typed) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "user",
        "user@",
        "@example.com",
        "user@@example.com",
        "a b@example.com",
        ".user@example.com",
        "user..name@example.com",
        "us\u00e9r@example.com",
        "\u212aelvin@example.com",
        "user\uff20example.com",
        '"user"@example.com',
        '"us er"@example.com',
        "<user@example.com>",
        "User <user@example.com>",
        "user@[127.0.0.1]",
        "user@127.0.0.1",
        "user@localhost",
        "user@test",
        "user@printer.local",
        "user@nobody.invalid",
        "user@-example.com",
        "user@exam_ple.com",
        "user@example.com.",
        "user\x00@example.com",
        "user@exam\x00ple.com",
        "\x00user@example.com",
        "user@example.com\x7f",
        "us\ner@example.com",
        "user@exam\u202eple.com",
        "\ud800@example.com",
        "user@\udfff.com",
        f"{'l' * 65}@example.com",
        f"user@{'d' * 64}.com",
        f"{'l' * 64}@{'d' * 60}.{'d' * 60}.{'d' * 60}.example.com",
        "a" * 1_000_000,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """Wrong syntax, quoting, literals, controls, surrogates, lengths and a non-ASCII local part."""
    with pytest.raises(InvalidEmail):
        canonical_email(text)


def test_a_refusal_does_not_repeat_the_address() -> None:
    """The error may be logged: nothing of the text is in it or in its cause."""
    with pytest.raises(InvalidEmail) as refusal:
        canonical_email("secret\u00e9@example.com")

    assert "secret" not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_no_resolver_is_loaded() -> None:
    """Addresses are judged by syntax: the DNS library, slow to import, stays out of the process."""
    program = (
        "import sys; from authsvc.domain.values.emails import canonical_email;"
        "canonical_email('a@b.example'); print('dns' in sys.modules)"
    )

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "False"
