"""People with a second factor: their authenticator app, their recovery codes, their logins in two steps."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.hotp import HOTP

from authsvc.api.frame.context import DEVICE_HEADER
from authsvc.domain.values.identifiers import UserId
from tests.api.driver import Api, Person, code_of, json_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from werkzeug.test import TestResponse

#: Settings of an application with second factors.
FACTORS = {"SECOND_FACTORS": "on", "DATA_KEY": "tests-data-key-" + "89abcdef01234567" * 2}
#: The same without a limit but the one in SQL.
UNLIMITED = FACTORS | {"RATE_LIMIT_SECOND_FACTOR": "off"}
#: Another key than theirs.
OTHER_KEY = "tests-other-key-" + "76543210fedcba98" * 2

STEP_S = 30


@dataclass(slots=True)
class App:
    """An authenticator app that was given *secret*, in base32."""

    secret: str
    clock: Callable[[], datetime]

    def code(self, steps: int = 0) -> str:
        """The code of now, or of so many steps later."""
        padded = self.secret + "=" * (-len(self.secret) % 8)
        number = int(self.clock().timestamp()) // STEP_S + steps
        return HOTP(base64.b32decode(padded), 6, SHA1()).generate(number).decode()

    def wrong(self) -> str:
        """A code of none of the steps around now."""
        near = {self.code(steps) for steps in range(-3, 4)}
        return next(code for code in map("{:06}".format, range(10)) if code not in near)


@dataclass(slots=True, kw_only=True)
class Guarded:
    """Somebody with an authenticator app; *person* has the session that added it."""

    person: Person
    app: App
    recovery_codes: list[str] = field(repr=False)

    @property
    def api(self) -> Api:
        """Where they are."""
        return self.person.api

    @property
    def email(self) -> str:
        """Their address."""
        return self.person.email

    def next_code(self) -> str:
        """A code that was not used yet: time passes until there is one."""
        self.api.clock.tick(STEP_S)
        return self.app.code()

    def challenge(self, **options: Any) -> str:
        """Begin a login."""
        return str(json_of(begun(self.api.log_in(self.email, **options)))["challenge"])

    def answer(self, challenge: str, *, api: Api | None = None, **answer: Any) -> TestResponse:
        """Go on with a login."""
        headers = answer.pop("headers", None)
        body = {"challenge": challenge, **answer}
        return (api or self.api).post("/v1/auth/login/second", body, headers=headers)

    def log_in(self) -> Person:
        """A session in two steps."""
        answer = self.answer(self.challenge(), code=self.next_code())
        assert answer.status_code == 200, answer.text
        pair = json_of(answer)
        return Person(api=self.api, id=self.person.id, email=self.email, pair=pair)


def enrol(person: Person, **body: Any) -> dict[str, Any]:
    """Begin with an authenticator app."""
    answer = person.call("POST", "/v1/me/factors/totp", json=body)
    assert answer.status_code == 201, answer.text
    return json_of(answer)


def confirm(person: Person, factor_id: str, code: str) -> TestResponse:
    """Put an app in force."""
    return person.call("POST", f"/v1/me/factors/totp/{factor_id}/confirm", json={"code": code})


def verified(api: Api, person: Person) -> Person:
    """The same person, whose address is proven, as a factor needs it where mails are sent."""
    api.services.users.store.change(UserId(person.id), lambda user: replace(user, email_verified=True))
    return person


def guarded(api: Api, person: Person | None = None) -> Guarded:
    """Somebody who has just added an authenticator app."""
    person = person or api.someone()
    enrolment = enrol(person)
    app = App(enrolment["secret"], api.clock)
    answer = confirm(person, enrolment["id"], app.code())
    assert answer.status_code == 200, answer.text
    return Guarded(person=person, app=app, recovery_codes=json_of(answer)["recovery_codes"])


def begun(answer: TestResponse) -> TestResponse:
    """The first step of a login, which gave nothing but a challenge."""
    assert (answer.status_code, code_of(answer)) == (403, "second_factor_required"), answer.text
    assert DEVICE_HEADER not in answer.headers
    assert not {"access_token", "refresh_token", "session_id"} & json_of(answer).keys()
    return answer


def refused(answer: TestResponse) -> bool:
    """The one refusal, with a bare challenge."""
    assert (answer.status_code, code_of(answer)) == (401, "code_invalid"), answer.text
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    return True
