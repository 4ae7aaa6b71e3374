"""Which passwords are taken, and how they are hashed and verified."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import sys
import unicodedata

import bcrypt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authsvc.domain.passwords.hasher import PasswordHasher, parse_imported_hash
from authsvc.domain.passwords.policy import MAX_SIZE_BYTES, PasswordPolicy
from authsvc.domain.values.emails import Email

PEPPER = b"a pepper for tests, not a secret"
ALICE = Email("alice.lovelace@example.com")
PASSPHRASE = "correct horse battery staple"
POLICY = PasswordPolicy(min_length=15)
HASHER = PasswordHasher(PEPPER, cost_log2=4)

#: Published test vectors of crypt_blowfish, which other implementations agree with.
FOREIGN = [
    ("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    ("U*U*", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK"),
    ("U*U*U", "$2a$05$XXXXXXXXXXXXXXXXXXXXXOAcXxm9kjPGEMsLznoKqmqw7tc8WCx4a"),
    ("U*U", "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    ("U*U", "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    ("", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy"),
]
SEVENTY_TWO = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
FOREIGN_LONG = "$2a$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui"

#: What `BCryptPasswordHasher` and `BCryptSHA256PasswordHasher` of Django 5.2 wrote, at cost 4.
DJANGO_PLAIN = ("grüezi mitenand", "bcrypt$$2b$04$hJ1MhgCShUJfSC69i5g9Z.QxeKecQmcBx65xxEt5J9NmfVMyPAZWO")
DJANGO = ("grüezi mitenand", "bcrypt_sha256$$2b$04$tEfSHMPo/xE2n4fmozogWORYomzTr1XzK5gbCQ14wTZaNncmBfQj.")
DJANGO_LONG = (
    "ü" * 40 + " tail",
    "bcrypt_sha256$$2b$04$9CiC9hE3eBn40h3B/GhyNupOcgfeKxtklUUtoF/5rpSpnv.P9/pcq",
)

#: Lone surrogates, too.
ANY_TEXT = st.text(alphabet=st.characters(codec=None))

MALFORMED = [
    "",
    "plain text",
    "bcrypt-hmac-sha384",
    "bcrypt-hmac-sha384$2b$04$short",
    "$2b$04$" + "." * 52,
    "$2b$04$" + "." * 54,
    "$2b$04$" + "." * 53 + "\n",
    "$2x$04$" + "." * 53,
    "$2b$03$" + "." * 53,
    "$2b$16$" + "." * 53,
    "$2b$31$" + "." * 53,
    "$2b$4$" + "." * 53,
    "$2b$\u0660\u0664$" + "." * 53,
    "$2b$04$" + "=" * 53,
    "$2b$04$" + "." * 21 + "a" + "." * 31,
    "$2b$04$" + "." * 52 + "b",
    "bcrypt_sha256$2b$04$" + "." * 53,
    "bcrypt_sha256$" + DJANGO_PLAIN[1],
    "bcrypt-hmac-sha384" + DJANGO[1],
    "{bcrypt}" + DJANGO[1],
    "{bcrypt}{bcrypt}$2a$04$" + "." * 53,
    "bcrypt$" + DJANGO[1],
    "{argon2}$2b$04$" + "." * 53,
    "\ud800" * 60,
    "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b",
]


@pytest.fixture
def rounds(monkeypatch) -> list[int]:
    """The rounds of every bcrypt run from now on."""
    seen: list[int] = []
    check, hash_ = bcrypt.checkpw, bcrypt.hashpw

    def counted_check(password: bytes, hashed: bytes) -> bool:
        seen.append(2 ** int(hashed[4:6]))
        return check(password, hashed)

    def counted_hash(password: bytes, salt: bytes) -> bytes:
        seen.append(2 ** int(salt[4:6]))
        return hash_(password, salt)

    monkeypatch.setattr(bcrypt, "checkpw", counted_check)
    monkeypatch.setattr(bcrypt, "hashpw", counted_hash)
    return seen


@pytest.mark.parametrize(
    "password",
    [
        PASSPHRASE,
        "fifteen letters",
        "zxq" * 5 + "v",
        "\u65e5\u672c\u8a9e\u306e\u9577\u3044\u5408\u8a00\u8449\u3067\u3059\u304b\u3089\u306d\u3048",
        "\U0001f434\U0001f50b" * 7 + "!",
        "x" + "\u00e9" * 511,
        "alice is not her passphrase",
        "my password manager made this",
    ],
)
def test_a_long_enough_password_needs_nothing_else(password: str) -> None:
    """No rule on composition: any 15 code points that are not commonly tried will do."""
    assert POLICY.problems(password, email=ALICE) == []


def test_length_is_counted_in_code_points_of_the_normal_form() -> None:
    """Combining marks that melt into a letter do not count, whatever the bytes."""
    composed = "\u00e9" * 8 + "abcdefg"
    decomposed = unicodedata.normalize("NFD", composed[1:])

    assert POLICY.problems(composed, email=ALICE) == []
    assert POLICY.problems(decomposed, email=ALICE) == ["must have at least 15 characters"]


def test_the_least_length_is_a_setting() -> None:
    """The same password may be long enough for one installation and too short for another."""
    assert PasswordPolicy(min_length=8).problems("g7#kQ2!z", email=ALICE) == []
    assert POLICY.problems("g7#kQ2!z", email=ALICE) == ["must have at least 15 characters"]


def test_size_is_bounded_in_bytes_of_the_normal_form() -> None:
    """1,024 bytes are taken, one more is not, and decomposed text is measured composed."""
    full = "x" + "\u00e9" * 511 + "y"
    decomposed = unicodedata.normalize("NFD", full)

    assert len(full.encode()) == MAX_SIZE_BYTES
    assert POLICY.problems(decomposed, email=ALICE) == []
    assert POLICY.problems(full + "z", email=ALICE) == ["must have at most 1024 bytes"]


@pytest.mark.parametrize("bad", ["\x00", "\ud800"])
def test_what_cannot_be_typed_is_a_problem(bad: str) -> None:
    """NUL and half a surrogate pair are refused where a password is set."""
    assert POLICY.problems(PASSPHRASE + bad, email=ALICE) == ["must not contain NUL or half a surrogate pair"]


@pytest.mark.parametrize(
    "password",
    [
        "123456789987654321",
        "1234567890QWERTY",
        "q1w2e3r4t5y6u7i8o9p0",
        "passwordpassword",
        "PasswordPasswordPassword",
        "authsvc-password",
        "authsvcauthsvcauthsvc",
        "AuthSvc password 2024",
        "this is my password",
        "aaaaaaaaaaaaaaa",
        "monkeymonkeymonkey",
        "123123123123123",
        "monkeymonkeymon",
        "123456789012345",
        "ponmlkjihgfedcba",
        "QWERTYUIOPASDFGH",
    ],
)
def test_common_passwords_and_service_words_are_refused(password: str) -> None:
    """Listed passwords in any case, short ones in a row, and words of the service and of signing in."""
    assert POLICY.problems(password, email=ALICE) == ["is too common"]


def test_a_shorter_least_length_brings_the_shorter_listed_passwords() -> None:
    """The list is as long as the setting asks for."""
    assert PasswordPolicy(min_length=8).problems("trustno1", email=ALICE) == ["is too common"]
    assert PasswordPolicy(min_length=8).problems("polniypizdec110211", email=ALICE) == ["is too common"]


@pytest.mark.parametrize(
    ("password", "email"),
    [
        ("alice.lovelace@example.com", ALICE),
        ("Alice.Lovelace@EXAMPLE.com", ALICE),
        ("a@b\u00fccher.example", Email("a@xn--bcher-kva.example")),
        ("countess.of.lovelace", Email("countess.of.lovelace@example.com")),
        ("lovelacelovelace", Email("lovelace@example.com")),
    ],
)
def test_the_address_is_no_password(password: str, email: Email) -> None:
    """Neither the e-mail in any spelling, nor its local part, once or in a row."""
    assert POLICY.problems(password, email=email) == ["must not be the e-mail address"]


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
def test_no_text_breaks_the_policy(password: str) -> None:
    """Whatever the text, the answer is a list of problems."""
    assert isinstance(POLICY.problems(password, email=ALICE), list)


def test_the_list_costs_the_process_little() -> None:
    """The package that carries the list is not imported for it."""
    program = (
        "import sys; from authsvc.domain.passwords.policy import PasswordPolicy;"
        "print(PasswordPolicy(min_length=15).problems('qwerty123456789', email='a@b.example'));"
        "print([name for name in sys.modules if 'zxcvbn' in name])"
    )

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.split("\n")[:2] == ["['is too common']", "[]"]


def test_a_hash_verifies_its_password_alone() -> None:
    """The stored form is tagged, salted, and matches the same password only."""
    stored = HASHER.hash(PASSPHRASE)

    assert stored.startswith("bcrypt-hmac-sha384$2b$04$")
    assert HASHER.hash(PASSPHRASE) != stored
    assert HASHER.verify(PASSPHRASE, stored).is_match
    assert not HASHER.verify(PASSPHRASE + " ", stored).is_match
    assert not HASHER.verify("", stored).is_match


def test_the_stored_form_is_bcrypt_of_the_peppered_digest() -> None:
    """Fixed for good: another implementation of the documented scheme agrees."""
    stored = HASHER.hash("na\u00efve passphrase here")

    digest = hmac.new(PEPPER, "na\u00efve passphrase here".encode(), hashlib.sha384).digest()
    assert bcrypt.checkpw(base64.b64encode(digest), stored.removeprefix("bcrypt-hmac-sha384").encode())


def test_no_byte_is_ignored() -> None:
    """Neither the 73rd byte nor what follows a NUL is lost in our own scheme."""
    long = "x" * 100

    assert not HASHER.verify(long + "b", HASHER.hash(long + "a")).is_match
    assert not HASHER.verify("abc\x00two", HASHER.hash("abc\x00one")).is_match


def test_spellings_of_one_text_are_one_password() -> None:
    """Composed and decomposed input of the same text match."""
    stored = HASHER.hash("caf\u00e9 au lait, s'il vous pla\u00eet")

    assert HASHER.verify("cafe\u0301 au lait, s'il vous plai\u0302t", stored).is_match


def test_the_pepper_is_needed() -> None:
    """A database without its pepper verifies nothing, and the pepper is in no repr."""
    stranger = PasswordHasher(b"another pepper", cost_log2=4)

    assert not stranger.verify(PASSPHRASE, HASHER.hash(PASSPHRASE)).is_match
    assert "pepper" not in repr(HASHER)


@pytest.mark.parametrize(("password", "stored"), FOREIGN)
def test_foreign_hashes_verify_as_their_origin_did(password: str, stored: str) -> None:
    """Published vectors match, and a wrong password does not."""
    assert HASHER.verify(password, stored).is_match
    assert not HASHER.verify(password + "x", stored).is_match


def test_a_foreign_hash_sees_72_bytes() -> None:
    """Its origin ignored the rest; so does its verification, until it is rehashed."""
    assert HASHER.verify(SEVENTY_TWO + "chars after 72 are ignored", FOREIGN_LONG).is_match
    assert HASHER.verify(SEVENTY_TWO, FOREIGN_LONG).is_match
    assert not HASHER.verify(SEVENTY_TWO[:71], FOREIGN_LONG).is_match


def test_a_foreign_hash_sees_the_bytes_as_typed() -> None:
    """The origin did not normalize: only the form that it was given matches."""
    stored = bcrypt.hashpw("cafe\u0301".encode(), bcrypt.gensalt(4)).decode()

    assert HASHER.verify("cafe\u0301", stored).is_match
    assert not HASHER.verify("caf\u00e9", stored).is_match


def test_nul_never_matches_a_foreign_hash() -> None:
    """What follows a NUL would be ignored; such a password is an ordinary failure."""
    stored = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    with_nul = bcrypt.hashpw(b"secret\x00tail", bcrypt.gensalt(4)).decode()

    assert not HASHER.verify("secret\x00tail", stored).is_match
    assert not HASHER.verify("secret\x00tail", with_nul).is_match


def test_a_foreign_hash_of_the_digest_is_no_hash_of_ours() -> None:
    """The tag decides the scheme: a bare hash never sees the peppered digest, nor ours the bare password."""
    stored = HASHER.hash(PASSPHRASE)
    bare = bcrypt.hashpw(PASSPHRASE.encode(), bcrypt.gensalt(4)).decode()

    assert not HASHER.verify(PASSPHRASE, stored.removeprefix("bcrypt-hmac-sha384")).is_match
    assert not HASHER.verify(PASSPHRASE, "bcrypt-hmac-sha384" + bare).is_match


@pytest.mark.parametrize("stored", MALFORMED)
def test_a_malformed_hash_matches_nothing_and_is_reported(stored: str) -> None:
    """A broken row is a failed login with a flag, never an exception."""
    verification = HASHER.verify(PASSPHRASE, stored)

    assert (verification.is_match, verification.is_malformed) == (False, True)
    assert HASHER.needs_rehash(stored) or stored.startswith("bcrypt-hmac-sha384$2b$04$")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(alphabet=st.characters(codec=None)),
    st.one_of(st.text(), st.sampled_from([s for _, s in FOREIGN])),
)
def test_no_input_makes_verification_raise(password: str, stored: str) -> None:
    """Any text against any stored text is an answer."""
    PasswordHasher(PEPPER, cost_log2=4).verify(password, stored)


@pytest.mark.parametrize("password", [PASSPHRASE, "", "nul\x00", "\ud800", "\u00e9" * 100_000])
@pytest.mark.parametrize("stored_by", ["ours", "ours at a lower cost", "foreign", "nobody", "malformed"])
def test_every_verification_does_the_configured_work(
    rounds: list[int], password: str, stored_by: str
) -> None:
    """Known or unknown address, right, wrong, huge or broken password, any stored form: 2**cost rounds."""
    hasher = PasswordHasher(PEPPER, cost_log2=7)
    stored = {
        "ours": hasher.hash(PASSPHRASE),
        "ours at a lower cost": HASHER.hash(PASSPHRASE),
        "foreign": FOREIGN[0][1],
        "nobody": None,
        "malformed": "$2b$31$nonsense",
    }[stored_by]
    rounds.clear()

    hasher.verify(password, stored)

    assert sum(rounds) == 2**7


def test_nobody_matches_nothing_and_is_not_malformed() -> None:
    """An unknown address looks like a wrong password in every respect."""
    verification = HASHER.verify(PASSPHRASE, None)

    assert (verification.is_match, verification.is_malformed) == (False, False)


def test_other_schemes_and_costs_are_rehashed() -> None:
    """Imported hashes and those of another cost are due, our own at the configured cost is not."""
    assert not HASHER.needs_rehash(HASHER.hash(PASSPHRASE))
    assert HASHER.needs_rehash(PasswordHasher(PEPPER, cost_log2=5).hash(PASSPHRASE))
    assert HASHER.needs_rehash("$2b$04$" + "." * 53)


def test_a_hash_of_higher_cost_still_verifies() -> None:
    """Lowering the cost locks nobody out."""
    assert HASHER.verify(PASSPHRASE, PasswordHasher(PEPPER, cost_log2=6).hash(PASSPHRASE)).is_match


@pytest.mark.parametrize("cost_log2", [3, 16])
def test_a_cost_out_of_range_is_refused(cost_log2: int) -> None:
    """Below bcrypt's least and beyond what a request can wait for."""
    with pytest.raises(ValueError, match="4 to 15"):
        PasswordHasher(PEPPER, cost_log2=cost_log2)


@pytest.mark.parametrize(("password", "text"), [DJANGO_PLAIN, DJANGO, DJANGO_LONG])
def test_what_django_writes_verifies_as_there(password: str, text: str) -> None:
    """Both of its bcrypt hashers; with SHA-256 every byte counts, also beyond the 72 that bcrypt reads."""
    stored = parse_imported_hash(text)

    assert HASHER.verify(password, stored).is_match
    assert not HASHER.verify(password + "x", stored).is_match
    assert HASHER.needs_rehash(stored)


def test_what_spring_writes_in_front_is_no_part_of_the_hash() -> None:
    """Its encoder names the scheme in braces."""
    for password, bare in FOREIGN:
        stored = parse_imported_hash("{bcrypt}" + bare)

        assert stored == bare
        assert HASHER.verify(password, stored).is_match


@pytest.mark.parametrize("text", [stored for _, stored in FOREIGN] + ["$2y$15$" + "." * 53, DJANGO[1]])
def test_whole_foreign_hashes_can_be_imported(text: str) -> None:
    """They are stored as they came, and verify."""
    assert parse_imported_hash(text) == text


@pytest.mark.parametrize("text", [*MALFORMED, "bcrypt-hmac-sha384$2b$04$" + "." * 53, " $2b$04$" + "." * 53])
def test_other_texts_cannot_be_imported(text: str) -> None:
    """Wrong prefix, cost, length, alphabet or stray bits; nor a hash that claims our own pepper."""
    with pytest.raises(ValueError, match="bcrypt hash") as refusal:
        parse_imported_hash(text)

    assert not text or text not in str(refusal.value)
