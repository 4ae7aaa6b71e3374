"""Whom passkeys are for: an RP ID, and origins that browsers would let use it."""

from __future__ import annotations

import pytest

from tests.unit.settings.env import only_problem, production, read

DATA_KEY = "tests-data-key-" + "89abcdef01234567" * 2
ANDROID = "android:apk-key-hash:4Z1Zb2yWzG1nyUb6s4B0yO1bXw4-4yJr0a9b3oXk3x8"


def passkeys(rp_id: str | None = "example.com", origins: str | None = "https://example.com", **more: str):
    """Settings with second factors on, for these passkeys."""
    return {
        "SECOND_FACTORS": "on",
        "DATA_KEY": DATA_KEY,
        "WEBAUTHN_RP_ID": rp_id,
        "WEBAUTHN_ORIGINS": origins,
        **more,
    }


@pytest.mark.parametrize(
    ("rp_id", "origins"),
    [
        ("example.com", ("https://example.com",)),
        ("example.com", ("https://app.example.com", "https://example.com:8443", ANDROID)),
        ("auth.example.com", ("https://auth.example.com", "https://example.org")),
        ("xn--bcher-kva.example", ("https://shop.xn--bcher-kva.example",)),
        ("intranet", ("https://intranet",)),
    ],
)
def test_a_domain_and_its_origins_are_taken_as_they_are(tmp_path, rp_id, origins):
    """Each origin letter by letter; one within the domain is enough, the others are related ones."""
    found = read(tmp_path, **passkeys(rp_id, ", ".join(origins))).passkeys

    assert (found.rp_id, found.rp_name, found.origins) == (rp_id, rp_id, origins)


def test_without_an_rp_id_there_are_none(tmp_path):
    """Nothing else needs to be said."""
    found = read(tmp_path).passkeys

    assert (found.rp_id, found.rp_name, found.origins) == (None, None, ())


def test_the_name_is_what_browsers_show(tmp_path):
    """The RP ID where nobody chose another one."""
    assert read(tmp_path, **passkeys(WEBAUTHN_RP_NAME="Example & Co.")).passkeys.rp_name == "Example & Co."


WRONG_IDS = (
    *("192.0.2.7", "127.1", "2130706433", "::1", "[::1]", "https://example.com", "example.com:443"),
    *(
        "Example.com",
        "example.com.",
        ".example.com",
        "-example.com",
        "exa_mple.com",
        "bücher.example",
        "a" * 254,
    ),
)


@pytest.mark.parametrize("rp_id", WRONG_IDS)
def test_an_rp_id_is_a_domain(tmp_path, rp_id):
    """No address, no URL, no other spelling: no browser would find a passkey for it."""
    assert only_problem(production(tmp_path, **passkeys(rp_id))).name == "WEBAUTHN_RP_ID"


WRONG_ORIGINS = (
    *("http://example.com", "https://example.com/", "https://Example.com", "https://example.com:443"),
    *("https://evil.example", "https://notexample.com", "https://example.com.evil.example", ANDROID),
    *("android:apk-key-hash:short", "https://example.com,http://app.example.com"),
    *("https://example.com,http://localhost:3000", "null", "*"),
)


@pytest.mark.parametrize("origins", WRONG_ORIGINS)
def test_origins_are_those_of_pages_over_tls_and_one_is_of_the_domain(tmp_path, origins):
    """As browsers write them; without one of the domain no page could use a passkey."""
    assert only_problem(production(tmp_path, **passkeys(origins=origins))).name == "WEBAUTHN_ORIGINS"


def test_an_rp_id_needs_origins(tmp_path):
    """And the other way round."""
    assert only_problem(production(tmp_path, **passkeys(origins=None))).name == "WEBAUTHN_ORIGINS"
    assert only_problem(production(tmp_path, **passkeys(rp_id=None))).name == "WEBAUTHN_ORIGINS"
    alone = passkeys(rp_id=None, origins=None, WEBAUTHN_RP_NAME="Example")
    assert only_problem(production(tmp_path, **alone)).name == "WEBAUTHN_RP_NAME"


def test_development_has_pages_on_this_host(tmp_path):
    """Browsers trust ``localhost`` without TLS; no other name."""
    local = passkeys("localhost", "http://localhost:3000", AUTHSVC_ENV="development")
    other = passkeys("app.test", "http://app.test", AUTHSVC_ENV="development")

    assert read(tmp_path, **local).passkeys.origins == ("http://localhost:3000",)
    assert only_problem(production(tmp_path, **other)).name == "WEBAUTHN_ORIGINS"


def test_an_rp_id_without_second_factors_is_a_warning(tmp_path):
    """It has no effect, and does no harm: the part is off."""
    off = passkeys() | {"SECOND_FACTORS": "off"}

    assert "WEBAUTHN_RP_ID has no effect: SECOND_FACTORS is off" in read(tmp_path, **off).warnings
