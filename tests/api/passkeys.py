"""People with passkeys: an application that has them, and what its pages send."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from authsvc.settings import Settings
from authsvc.store.tables import metadata
from authsvc.wiring.stores import open_database
from tests.api.driver import Api, Person, json_of
from tests.api.second_factors import FACTORS
from tests.authenticator import HONEST, ORIGIN, RP_ID, Authenticator, Lies

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

PASSKEYS = {
    **FACTORS,
    "WEBAUTHN_RP_ID": RP_ID,
    "WEBAUTHN_RP_NAME": "Example",
    "WEBAUTHN_ORIGINS": f"{ORIGIN},https://example.org",
}
ME, LOGIN = "/v1/me/passkeys", "/v1/auth/passkey"
SECOND, STEP_UP = "/v1/auth/login/second", "/v1/auth/step-up"


@dataclass(slots=True)
class Owner:
    """A user and their authenticator."""

    person: Person
    authenticator: Authenticator = field(default_factory=Authenticator)

    @property
    def api(self) -> Api:
        """Where they have their account."""
        return self.person.api

    def attestation(self, lies: Lies = HONEST) -> dict[str, Any]:
        """A new passkey, over options of the service; with a step-up before it where that is asked for."""
        if self.authenticator.keys and self.person.claims().get("acr") == "aal1":
            self.step_up()
        return self.authenticator.create(json_of(self.person.call("POST", f"{ME}/options")), lies)

    def register(self, **fields: Any) -> TestResponse:
        """Register a passkey."""
        return self.person.call("POST", ME, json={"credential": self.attestation(), **fields})

    def stepping_up(self, lies: Lies = HONEST) -> dict[str, Any]:
        """What a page sends for a step-up."""
        return self.authenticator.get(json_of(self.person.call("POST", f"{STEP_UP}/options")), lies)

    def step_up(self, lies: Lies = HONEST) -> dict[str, Any]:
        """Step up with a passkey, and go on with the new access token."""
        answer = self.person.call("POST", STEP_UP, json={"credential": self.stepping_up(lies)})
        assert answer.status_code == 200, answer.text
        stepped_up = json_of(answer)
        self.person.pair = self.person.pair | {"access_token": stepped_up["access_token"]}
        return stepped_up

    def assertion(self, lies: Lies = HONEST) -> dict[str, Any]:
        """What a page sends to sign in with a passkey alone."""
        return self.authenticator.get(json_of(self.api.call("POST", f"{LOGIN}/options")), lies)

    def log_in(self, lies: Lies = HONEST, **options: Any) -> TestResponse:
        """Sign in with a passkey alone."""
        return sign_in(self.api, self.assertion(lies), **options)

    def challenge(self) -> str:
        """Begin a login with the password."""
        return str(json_of(self.api.log_in(self.person.email))["challenge"])

    def second(self, challenge: str, lies: Lies = HONEST) -> dict[str, Any]:
        """An assertion that answers the *challenge* of a login."""
        options = json_of(self.api.post(f"{SECOND}/options", {"challenge": challenge}))
        return self.authenticator.get(options, lies)

    def finish(self, challenge: str, assertion: dict[str, Any]) -> TestResponse:
        """Go on with a login by *assertion*."""
        return self.api.post(SECOND, {"challenge": challenge, "credential": assertion})


def sign_in(api: Api, assertion: dict[str, Any], **options: Any) -> TestResponse:
    """Sign in with *assertion*."""
    return api.post(LOGIN, {"credential": assertion}, **options)


def an_owner(api: Api, authenticator: Authenticator | None = None) -> Owner:
    """A new user with one passkey."""
    owner = Owner(api.someone(), authenticator or Authenticator())
    answer = owner.register()
    assert answer.status_code == 201, answer.text
    return owner


def row_counts(api: Api) -> dict[str, int]:
    """How many rows each table has."""
    database = open_database(Settings.from_env(api.env))
    try:
        with database.read() as connection:
            return {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in metadata.sorted_tables
            }
    finally:
        database.close()
