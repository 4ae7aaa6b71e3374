"""Passkeys in Chromium: the page of the documentation, and a virtual authenticator of the browser."""

from __future__ import annotations

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import jwt
import pytest

from tests import ROOT
from tests.e2e import chromium
from tests.processes import free_port
from tests.rig import PASSWORD, Service
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGES = ROOT / "docs" / "examples"


class Quiet(SimpleHTTPRequestHandler):
    """Files, without a line for each request."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def program() -> str:
    """The browser; on CI it is there."""
    found = chromium.find()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed: .ci/run installs it")
        pytest.skip("chromium is not installed")
    return found


@pytest.fixture
def site() -> Iterator[str]:
    """The origin of a site that has the page; ``localhost``, which browsers trust without TLS."""
    port = free_port()
    with ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(PAGES))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{port}"
        server.shutdown()
        thread.join()


def development(site: str) -> dict[str, str]:
    """What ``authsvc dev`` needs for passkeys of *site*."""
    return {
        "BCRYPT_COST": "4",
        # With it, an address must be proven before the account has a second factor.
        "MAIL_TRANSPORT": "off",
        "SECOND_FACTORS": "on",
        "WEBAUTHN_RP_ID": "localhost",
        "WEBAUTHN_ORIGINS": site,
        "CORS_ORIGINS": site,
    }


def click(browser: chromium.Chromium, button: str) -> str:
    """What the page says once *button* has done its work."""
    return str(
        browser.evaluate(f"""new Promise(done => {{
            const status = document.getElementById("status");
            const changed = () => status.textContent !== "…" && done(status.textContent);
            new MutationObserver(changed).observe(status, {{childList: true}});
            document.getElementById("{button}").click();
        }})""")
    )


def sign_in_as(browser: chromium.Chromium, email: str) -> str:
    """What the page says after signing in with the password."""
    browser.evaluate(f'document.getElementById("email").value = "{email}"')
    browser.evaluate(f'document.getElementById("password").value = "{PASSWORD}"')
    return click(browser, "sign-in")


def claims(browser: chromium.Chromium) -> dict[str, object]:
    """What the access token says that the page holds."""
    token = browser.evaluate("session.access_token")
    return jwt.decode(token, options={"verify_signature": False})


def test_a_browser_registers_a_passkey_and_signs_in_with_it(program, site, tmp_path):
    """Its parsers take our options as they are, and we take what its ``toJSON`` gives: on every way in."""
    service = Service(development(site), tmp_path, command="dev", entry=PATIENT)
    with service, chromium.Chromium(program, tmp_path) as browser:
        assert service.register("ada@example.com").status_code == 201
        browser.open(f"{site}/passkeys.html?api={service.url}")
        browser.add_authenticator()

        assert sign_in_as(browser, "ada@example.com") == "Signed in."
        added = click(browser, "add")
        again = click(browser, "add")
        alone = click(browser, "passkey"), claims(browser)
        second = sign_in_as(browser, "ada@example.com"), claims(browser)
        stepped_up = click(browser, "step-up")

    assert added.startswith("Added. Keep these codes: ")
    # excludeCredentials: the authenticator refuses to make another one for the same account.
    assert again == "Failed: InvalidStateError."
    assert alone[0] == "Signed in with a passkey."
    assert (alone[1]["acr"], alone[1]["amr"]) == ("phr", ["pop", "user", "mfa"])
    assert second[0] == "Signed in."
    assert (second[1]["acr"], second[1]["amr"]) == ("phr", ["pwd", "pop", "user", "mfa"])
    assert stepped_up == "Confirmed: phr."
