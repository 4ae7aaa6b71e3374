"""People who do what is worth an event, and the rows that it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bcrypt
from sqlalchemy import select, update

from authsvc.settings import Settings
from authsvc.store.tables import audit_events, factors, users
from authsvc.wiring.stores import open_database
from tests.api.driver import Api, Person, code_of, json_of, new_email
from tests.api.mailing import Postbox, code_in, token_in
from tests.api.second_factors import Guarded, guarded, refused
from tests.rig import PASSWORD
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from authsvc.store.sql import Database

WRONG = "wrong horse battery staple"
AGENT = "Browser/1.0"
IP = "198.51.100.7"


@dataclass(slots=True)
class Stage:
    """An application, an admin, a user, and the rows of the trail."""

    api: Api
    admin: Person
    database: Database
    postbox: Postbox
    user: Person
    seen: set[str] = field(default_factory=set)

    def rows(self) -> list[dict[str, Any]]:
        """The rows since this was last asked, the oldest first."""
        with self.database.read() as connection:
            found = connection.execute(select(audit_events).order_by(audit_events.c.id)).mappings()
            new = [dict(row) for row in found if row["id"] not in self.seen]
        self.seen |= {row["id"] for row in new}
        return new

    def set_hash(self, password_hash: str) -> None:
        """Put something in the place of the user's password hash."""
        with self.database.transaction() as connection:
            connection.execute(
                update(users).where(users.c.id == self.user.id).values(password_hash=password_hash)
            )

    def log_in(self, password: str = PASSWORD, **fields: Any):
        """Log the user in, from a certain place."""
        body = {"email": self.user.email, "password": password, **fields}
        return self.api.post("/v1/auth/login", body, ip=IP, headers={"User-Agent": AGENT})

    def foreign_hash(self) -> None:
        """Log in with a hash from elsewhere."""
        self.set_hash(bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(5)).decode())
        assert self.log_in().status_code == 200

    def broken_hash(self) -> None:
        """Log in while the stored value is not a hash."""
        self.set_hash("nonsense")
        assert self.log_in().status_code == 401

    def reuse(self) -> None:
        """Use a refresh token up, and present it long afterwards."""
        self.user.refresh()
        self.api.clock.tick(60)
        assert code_of(self.api.refresh(self.user.refresh_token)) == "refresh_reused"
        self.api.clock.tick(-60)

    def exhaust(self) -> None:
        """Fail until the account's limit refuses."""
        assert [self.log_in(WRONG).status_code for _ in range(6)] == [401] * 5 + [429]

    def forgot(self) -> None:
        """Ask for a reset mail."""
        assert self.api.post("/v1/auth/password/forgot", {"email": self.user.email}).status_code == 202

    def reset(self) -> None:
        """Forget the password, and choose another by the mail's link."""
        self.forgot()
        body = {"token": token_in(self.postbox.newest(self.user.email)), "new_password": WRONG}
        answer = self.api.post("/v1/auth/password/reset", body)
        assert answer.status_code == 204, answer.text

    def prove(self) -> None:
        """Show the code of the mail that came with the registration."""
        body = {"code": code_in(self.postbox.newest(self.user.email))}
        self.call("POST", "/v1/auth/email/verify", 204, body)

    def move(self) -> None:
        """Change the address."""
        email = new_email()
        asked = self.user.call("POST", "/v1/me/email", json={"email": email, "password": PASSWORD})
        body = {"ticket": json_of(asked)["ticket"], "code": code_in(self.postbox.newest(email))}
        self.call("POST", "/v1/me/email/confirm", 200, body)

    def guard(self) -> Guarded:
        """Prove the address, and add an authenticator app."""
        self.prove()
        return guarded(self.api, self.user)

    def step_up(self) -> None:
        """Show the app's code in a session."""
        body = {"code": self.guard().next_code()}
        self.call("POST", "/v1/auth/step-up", 200, body)

    def use_a_recovery_code(self) -> None:
        """Enter a wrong code of the app, then a recovery code."""
        them = self.guard()
        challenge = them.challenge()
        assert refused(them.answer(challenge, code=them.app.wrong()))
        assert them.answer(challenge, recovery_code=them.recovery_codes[0]).status_code == 200

    def take_the_factor_away(self) -> None:
        """Log in with it, renew the recovery codes, and remove it."""
        self.user = self.guard().log_in()
        self.call("POST", "/v1/me/recovery-codes", 201)
        (factor,) = json_of(self.user.call("GET", "/v1/me/factors"))["items"]
        self.call("DELETE", f"/v1/me/factors/{factor['id']}", 204)

    def lock_the_factor(self) -> None:
        """Enter the last of 100 wrong codes in a row."""
        them = self.guard()
        with self.database.transaction() as connection:
            connection.execute(update(factors).values(failures=99))
        assert refused(them.answer(them.challenge(), code=them.app.wrong()))

    def lose_the_factor(self) -> None:
        """Have an admin remove it."""
        self.guard()
        self.administer("DELETE", "/v1/users/{}/factors", 204)

    def call(self, method: str, path: str, status: int, body: dict[str, Any] | None = None) -> None:
        """One request of the user."""
        options = {} if body is None else {"json": body}
        assert self.user.call(method, path, **options).status_code == status

    def administer(self, method: str, path: str, status: int, body: dict[str, Any] | None = None) -> None:
        """One request of the admin."""
        options = {} if body is None else {"json": body}
        assert self.admin.call(method, path.format(self.user.id), **options).status_code == status


class Theatre:
    """What many stages share: an application, its admin, and a way to its database."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.admin = api.an_admin()
        self.database = open_database(Settings.from_env(api.env), UNHURRIED)
        self.postbox = Postbox(api)

    def stage(self) -> Stage:
        """A new user; what is there already has been seen."""
        made = Stage(
            api=self.api,
            admin=self.admin,
            database=self.database,
            postbox=self.postbox,
            user=self.api.someone(),
        )
        made.rows()
        return made

    def close(self) -> None:
        """Let the connections go."""
        self.database.close()
