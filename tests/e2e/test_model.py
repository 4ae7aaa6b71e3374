"""
Anything that people, admins and broken stores do, in any order, against a model of a hundred lines.

After every step some live and some dead access tokens are shown to every worker of two replicas; at the
end all of them are.  ``MODEL_EXAMPLES`` and ``MODEL_STEPS`` say how long to look.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, invariant, multiple, rule, run_state_machine_as_test

from tests import times
from tests.e2e.estate import ROOT, Estate, open_estate
from tests.e2e.faults import Faults
from tests.e2e.model import MOST_LOGINS, Account, Login
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.stateful import MultipleResults

pytestmark = [pytest.mark.e2e, pytest.mark.fault, pytest.mark.slow]

EXAMPLES, STEPS = times("MODEL_EXAMPLES", 4), times("MODEL_STEPS", 35)
#: Tokens of each kind after each step.
SHOWN = 2
WRONG = "no password of anybody"
#: How a genuine refresh token is bent; its text is base64url of session, counter and tag.
BENT = {
    "another tag": lambda text: text[:-2] + ("AA" if text[-2:] != "AA" else "BA"),
    "another session": lambda text: ("A" if text[0] != "A" else "B") + text[1:],
    "cut": lambda text: text[:-1],
    "longer": lambda text: text + "A",
    "padded": lambda text: text + "==",
}

logins: Bundle[Login] = Bundle("logins")
WHO = PICK = st.integers(0, 9)


class Life(Faults):
    """One life of the service: every rule asks over HTTP, and tells the model what must have come of it."""

    @initialize(seed=st.integers(0, 2**32 - 1), target=logins)
    def begin(self, seed: int) -> MultipleResults[Login] | Login:
        """The admin logs in, and somebody signs up and logs in."""
        self.random.seed(seed)
        self.root = self.admit(ROOT)
        self.sign_up(0)
        return self.log_in(1, is_right=True)

    @rule(number=st.integers(0, 2))
    def sign_up(self, number: int) -> None:
        """A free address is registered, a taken one is not, one that was given up begins anew."""
        email = f"p{number}.{self.name}@example.com"
        is_free = not any(account.exists and account.email == email for account in self.people)
        reply = self.estate.ask("POST", "/v1/auth/register", body={"email": email, "password": PASSWORD})
        if not self.refused(reply, "email_taken", unless=is_free, status=409) and self.took(reply, 201):
            self.people.append(Account(reply.json["id"], email))

    @rule(who=WHO, is_right=st.booleans(), target=logins)
    def log_in(self, who: int, *, is_right: bool) -> MultipleResults[Login]:
        """Right password and active: a new session."""
        account = self.person(who)
        password = account.password if is_right else WRONG
        reply = self.estate.ask("POST", "/v1/auth/login", body={"email": account.email, "password": password})
        may = is_right and account.exists and account.is_active
        if self.refused(reply, "invalid_credentials", unless=may) or not self.took(reply, 200):
            return multiple()
        return multiple(account.begin(reply.json))

    @rule(login=logins, back=st.integers(0, 3), is_patient=st.booleans())
    def refresh(self, login: Login, back: int, *, is_patient: bool) -> None:
        """Any token that the session ever had, at the replica with grace or the one without."""
        back = min(back, len(login.refresh_tokens) - 1)
        line = self.random.choice(self.estate.patient if is_patient else self.estate.strict)
        reply = line.refresh(login.refresh_tokens[-1 - back])

        if self.refused(reply, "refresh_invalid", unless=login.account.exists):
            return
        if self.refused(reply, "session_ended", unless=login.is_alive):
            return
        if self.refused(reply, "refresh_reused", unless=back == 0 or (back == 1 and is_patient)):
            login.is_over = login.is_over or reply.status == 401
        elif self.took(reply, 200):
            assert back == 0 or reply.json["refresh_token"] == login.refresh_tokens[-1]
            assert back == 1 or reply.json["refresh_token"] not in login.refresh_tokens
            login.take(reply.json)

    @rule(login=logins, how=st.sampled_from(sorted(BENT)))
    def forge(self, login: Login, how: str) -> None:
        """What is no token of ours harms no session."""
        reply = self.estate.ask(
            "POST", "/v1/auth/refresh", body={"refresh_token": BENT[how](login.refresh_tokens[-1])}
        )

        assert reply.status in {401, *self.estate.allows(401)}
        assert reply.status == 503 or reply.code == "refresh_invalid"

    @rule(login=logins, pick=PICK, by=st.sampled_from(["access", "refresh", "both"]))
    def log_out(self, login: Login, pick: int, by: str) -> None:
        """By any token that the session ever had; repeating it is harmless."""
        access = login.access_tokens[pick % len(login.access_tokens)].text
        refresh = {"refresh_token": login.refresh_tokens[pick % len(login.refresh_tokens)]}
        reply = self.estate.ask(
            "POST",
            "/v1/auth/logout",
            token=access if by != "refresh" else None,
            body=refresh if by != "access" else {},
        )

        if self.refused(reply, "token_invalid", unless=login.account.exists or by == "access"):
            return
        # Of somebody who is gone nothing is left to be written.
        if self.took(reply, 204, revokes=login.account.exists):
            login.is_over = True

    @rule(one=logins, other=logins)
    def log_two_out(self, one: Login, other: Login) -> None:
        """Two tokens that disagree end nothing."""
        if one is other:
            return
        refresh = {"refresh_token": other.refresh_tokens[-1]}
        reply = self.estate.ask("POST", "/v1/auth/logout", token=one.newest.text, body=refresh)

        self.took(reply, 401)

    @rule(by=logins, pick=PICK, other=logins)
    def end_one(self, by: Login, pick: int, other: Login) -> None:
        """One's own living session, and no other."""
        access = by.access_tokens[pick % len(by.access_tokens)]
        reply = self.as_user(access, "DELETE", f"/v1/me/sessions/{other.id}")
        if reply is None:
            return
        is_mine = other.account is by.account and other.is_alive
        if self.refused(reply, "not_found", unless=is_mine, status=404):
            return
        if self.took(reply, 204, revokes=True):
            other.is_over = True

    @rule(by=logins, keeps=st.booleans())
    def end_all(self, by: Login, *, keeps: bool) -> None:
        """All of one's sessions, or all but this one."""
        path = "/v1/me/sessions?except=current" if keeps else "/v1/me/sessions"
        reply = self.as_user(by.newest, "DELETE", path)
        if reply is not None and self.took(reply, 204, revokes=True):
            by.account.end_all(keep=by if keeps else None)

    @rule(by=logins, is_right=st.booleans(), number=PICK)
    def change_password(self, by: Login, number: int, *, is_right: bool) -> None:
        """With the current one alone; every other session ends."""
        new = f"{PASSWORD} number {number}"
        passwords = {"current_password": by.account.password if is_right else WRONG, "new_password": new}
        reply = self.as_user(by.newest, "POST", "/v1/me/password", body=passwords)
        if reply is None or self.refused(reply, "wrong_password", unless=is_right, status=403):
            return
        if self.took(reply, 204, revokes=True):
            by.account.password = new
            by.account.end_all(keep=by)

    @rule(by=logins, is_right=st.booleans())
    def close_account(self, by: Login, *, is_right: bool) -> None:
        """With the password alone; nothing of it is left."""
        body = {"password": by.account.password if is_right else WRONG}
        reply = self.as_user(by.newest, "DELETE", "/v1/me", body=body)
        if reply is None or self.refused(reply, "wrong_password", unless=is_right, status=403):
            return
        if self.took(reply, 204, revokes=True):
            by.account.close()

    @rule(who=WHO, is_admin=st.booleans())
    def appoint(self, who: int, *, is_admin: bool) -> None:
        """Other roles hold on the next request."""
        roles = ("user", "admin") if is_admin else ("user",)
        if self.as_admin(self.person(who), "PATCH", "", 200, body={"roles": list(roles)}):
            self.person(who).appoint(roles)

    @rule(who=WHO, is_active=st.booleans())
    def switch(self, who: int, *, is_active: bool) -> None:
        """Disabled, and enabled again."""
        if self.as_admin(
            self.person(who), "PATCH", "", 200, body={"status": "active" if is_active else "disabled"}
        ):
            self.person(who).switch(is_active=is_active)

    @rule(who=WHO)
    def throw_out(self, who: int) -> None:
        """An admin ends all sessions of somebody."""
        if self.as_admin(self.person(who), "DELETE", "/sessions", 204):
            self.person(who).end_all()

    @rule(who=WHO)
    def remove(self, who: int) -> None:
        """An admin deletes somebody."""
        if self.as_admin(self.person(who), "DELETE", "", 204):
            self.person(who).close()

    @rule(by=logins, number=PICK, match=st.sampled_from([None, "current", "stale"]))
    def prefer(self, by: Login, number: int, match: str | None) -> None:
        """A write that names another version is none."""
        tag = {"If-Match": '"stale"'} if match == "stale" else {}
        if match == "current":
            found = self.estate.ask("GET", "/v1/me/preferences", token=by.newest.text)
            tag = {"If-Match": found.headers["etag"]} if found.status == 200 else tag
        line = self.random.choice(self.estate.lines)
        wanted: dict[str, object] = {"number": number}
        reply = line.ask("PUT", "/v1/me/preferences", token=by.newest.text, body=wanted, headers=tag)

        if not self.passed(by.newest, reply):
            return
        if self.refused(reply, "precondition_failed", unless=match != "stale", status=412):
            return
        if self.took(reply, 200):
            by.account.preferences = wanted

    @rule(by=logins)
    def read(self, by: Login) -> None:
        """Profile and sessions, the same from every worker."""
        alive = {login.id for login in by.account.alive()}
        for reply in self.estate.everywhere(lambda line: line.ask("GET", "/v1/me", token=by.newest.text)):
            if self.passed(by.newest, reply) and reply.status == 200:
                assert reply.json["id"] == by.account.id
                assert tuple(reply.json["roles"]) == by.account.roles
                assert reply.json["preferences"] == by.account.preferences
        reply = self.estate.ask("GET", "/v1/me/sessions", token=by.newest.text)
        if self.passed(by.newest, reply) and reply.status == 200:
            assert {session["id"] for session in reply.json["items"]} == alive

    @invariant()
    def show_some(self) -> None:
        """Dead tokens are refused and live ones accepted, by every worker."""
        self.count_step()
        tokens = self.tokens()
        for wanted in (True, False):
            kind = [token for token in tokens if token.is_live is wanted]
            self.show(self.random.sample(kind, min(SHOWN, len(kind))))

    def teardown(self) -> None:
        """Whatever happened: whole again in time, and nothing forgotten."""
        self.estate.recover()
        self.show(self.tokens())


@pytest.fixture(scope="module")
def estate(tmp_path_factory) -> Iterator[Estate]:
    """Open two replicas for all lives."""
    folder = tmp_path_factory.mktemp("estate")
    with open_estate(folder, SESSION_MAX_PER_USER=str(MOST_LOGINS)) as opened:
        yield opened


def test_no_dead_token_lives_and_no_live_one_dies_whatever_happens(estate):
    """The promise of the whole service; the same lives on every run, others where a length is set."""
    Life.estate = estate
    looks_long = "MODEL_EXAMPLES" in os.environ

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=not looks_long,
            phases=[Phase.generate],  # a life is not lived again: the stores would not be the same
            suppress_health_check=list(HealthCheck),
        ),
    )

    print(f"{Life.lives} lives, {Life.steps} steps, {estate.checks} checks")  # noqa: T201 - for long runs
    assert Life.steps > EXAMPLES
