"""Addresses are proven by mail: after a registration, before one, and when they change."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from authsvc.domain.accounts.requests import Shown
from authsvc.domain.errors import TokenInvalid
from tests.api.driver import THREADS, Api, MakeApi, at_once, code_of, json_of, new_email
from tests.api.mailing import MAIL, Postbox, code_in, token_in
from tests.api.watching import Shelf
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

    from tests.api.driver import Person

WRONG = "wrong horse battery staple"
WIDE = {
    "RATE_LIMIT_MAIL_IP": "off",
    "RATE_LIMIT_MAIL_ADDRESS": "off",
    "RATE_LIMIT_CODE_IP": "off",
    "RATE_LIMIT_REGISTER_IP": "off",
}


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def api(make_module_api: MakeApi, request) -> Api:
    """Share one application that sends mails, over each database."""
    return make_module_api(sqlite=request.param == "sqlite", **MAIL, **WIDE)


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def quiet(make_module_api: MakeApi, request) -> Api:
    """Share one application in which accounts are made when their address is proven."""
    return make_module_api(sqlite=request.param == "sqlite", **MAIL, **WIDE, REGISTRATION="quiet")


@pytest.fixture(scope="module")
def quiet_box(quiet: Api) -> Postbox:
    """What its sender hands over."""
    return Postbox(quiet)


def refused(answer: TestResponse) -> bool:
    """The one refusal."""
    assert (answer.status_code, code_of(answer)) == (401, "code_invalid"), answer.text
    return True


def is_cached(api: Api, email: str) -> bool:
    """True if the address is noted in Redis, and the user whose id is noted lies there."""
    with closing(Shelf(api)) as shelf:
        noted = shelf.get(f"user:email:{email}")
        return noted is not None and shelf.get(f"user:{noted}") is not None


def is_proven(person: Person) -> bool:
    """Whether the account's address is verified."""
    return bool(json_of(person.call("GET", "/v1/me"))["email_verified"])


class TestVerification:
    """POST /v1/auth/email/verify and resend."""

    @pytest.mark.parametrize("face", ["code", "token"])
    def test_a_registration_sends_a_mail_that_proves_the_address_in_a_session(self, api, postbox, face):
        """With the code or the link; once."""
        person = api.someone()
        mail = postbox.newest(person.email)
        body = {"code": code_in(mail)} if face == "code" else {"token": token_in(mail)}
        assert not is_proven(person)

        answer = person.call("POST", "/v1/auth/email/verify", json=body)

        assert answer.status_code == 204
        assert is_proven(person)
        assert refused(person.call("POST", "/v1/auth/email/verify", json=body))

    def test_a_registration_with_a_mail_leaves_the_user_in_the_cache(self, api):
        """As one without: the first read of any process is a hit, now and when the log was replayed."""
        email = new_email()
        assert api.register(email).status_code == 201

        assert is_cached(api, email)
        api.prove_redis()
        assert is_cached(api, email)

    def test_it_is_proven_with_the_password_where_there_is_no_session(self, api, postbox):
        """A wrong password is 401 as at login, and the ticket stays."""
        person = api.someone()
        body = {"email": person.email, "code": code_in(postbox.newest(person.email))}

        wrong = api.post("/v1/auth/email/verify", {**body, "password": WRONG})
        right = api.post("/v1/auth/email/verify", {**body, "password": PASSWORD})

        assert (wrong.status_code, code_of(wrong)) == (401, "invalid_credentials")
        assert right.status_code == 204

    def test_passwords_that_are_guessed_there_count_as_at_the_login(self, make_api):
        """By the caller's address and by account."""
        api = make_api(**MAIL, RATE_LIMIT_LOGIN_IP="3/hour", RATE_LIMIT_LOGIN_ACCOUNT="2/hour")
        email, other = new_email(), new_email()
        body = {"password": WRONG, "code": "BBBB-BBBB"}

        by_account = [
            api.post("/v1/auth/email/verify", {**body, "email": email}).status_code for _ in range(3)
        ]
        by_ip = api.post("/v1/auth/email/verify", {**body, "email": other})

        assert by_account == [401, 401, 429]
        assert (by_ip.status_code, code_of(by_ip)) == (429, "rate_limited")
        assert api.log_in(email, ip="198.51.100.9").status_code == 429

    def test_a_mail_alone_proves_nothing(self, api, postbox):
        """Neither without session or password, nor in somebody else's session."""
        person, stranger = api.someone(), api.someone()
        mail = postbox.newest(person.email)

        nobody = api.post("/v1/auth/email/verify", {"token": token_in(mail)})

        assert (nobody.status_code, code_of(nobody)) == (401, "token_missing")
        for body in ({"token": token_in(mail)}, {"code": code_in(mail)}):
            assert refused(stranger.call("POST", "/v1/auth/email/verify", json=body))
        assert not is_proven(person)

    def test_any_open_code_will_do_and_a_wrong_one_counts_on_each(self, api, postbox):
        """Asking again does not burn the first mail; five wrong codes end all of them."""
        person = api.someone()
        first = code_in(postbox.newest(person.email))
        assert api.post("/v1/auth/email/resend", {"email": person.email}).status_code == 202
        second = code_in(postbox.newest(person.email))

        for _ in range(5):
            assert refused(person.call("POST", "/v1/auth/email/verify", json={"code": "BBBB-BBBB"}))

        assert first != second
        for code in (first, second):
            assert refused(person.call("POST", "/v1/auth/email/verify", json={"code": code}))

    def test_who_has_proven_their_address_gets_no_other_mail(self, api, postbox):
        """Nor does an address that nobody has; the answer is the same."""
        person = api.someone()
        person.call("POST", "/v1/auth/email/verify", json={"code": code_in(postbox.newest(person.email))})
        before = len(postbox.sent)

        answers = [
            api.post("/v1/auth/email/resend", {"email": email})
            for email in (person.email, new_email(), "odd")
        ]

        postbox.deliver()
        assert [(one.status_code, json_of(one)) for one in answers] == [(202, {})] * 3
        assert len(postbox.sent) == before

    def test_where_it_is_required_nobody_logs_in_before(self, make_api):
        """403 for the right password alone, and one mail in ten minutes."""
        api = make_api(**MAIL, **WIDE, EMAIL_VERIFICATION="required")
        postbox, email = Postbox(api), new_email()
        api.register(email)

        refusals = [api.log_in(email) for _ in range(3)]
        assert [(one.status_code, code_of(one)) for one in refusals] == [(403, "email_unverified")] * 3
        assert code_of(api.log_in(email, WRONG)) == "invalid_credentials"
        assert len(postbox.mails_to(email)) == 1
        api.clock.tick(601)
        assert {one.status_code for one in at_once(lambda _: api.log_in(email), range(THREADS))} == {403}
        assert len(postbox.mails_to(email)) == 2

        body = {"email": email, "password": PASSWORD, "code": code_in(postbox.newest(email))}
        assert api.post("/v1/auth/email/verify", body).status_code == 204
        assert api.log_in(email).status_code == 200


class TestQuietRegistration:
    """REGISTRATION=quiet."""

    def ask(self, quiet: Api, email: str, password: str = PASSWORD, **fields: str) -> str:
        """Ask for an account; the ticket."""
        answer = quiet.register(email, password, **fields)
        assert (answer.status_code, set(json_of(answer))) == (202, {"ticket", "expires_in"}), answer.text
        return str(json_of(answer)["ticket"])

    def confirm(self, quiet: Api, **body: str) -> TestResponse:
        """Prove the address."""
        return quiet.post("/v1/auth/register/confirm", body)

    @pytest.mark.parametrize("face", ["code", "token"])
    def test_the_account_is_made_when_the_address_is_proven(self, quiet, quiet_box, face):
        """With the ticket and the code, or with the link and the password; proven from the start."""
        email = new_email()
        ticket = self.ask(quiet, email, name="Ada")
        assert code_of(quiet.log_in(email)) == "invalid_credentials"
        mail = quiet_box.newest(email)
        code = {"ticket": ticket, "code": code_in(mail)}
        body = code if face == "code" else {"token": token_in(mail), "password": PASSWORD}

        user = self.confirm(quiet, **body)

        assert user.status_code == 201
        assert is_cached(quiet, email)
        assert user.headers["Location"] == f"/v1/users/{json_of(user)['id']}"
        assert (json_of(user)["name"], json_of(user)["email_verified"]) == ("Ada", True)
        assert quiet.log_in(email).status_code == 200
        assert refused(self.confirm(quiet, **body))

    def test_an_address_with_an_account_gets_another_mail_and_the_same_answer(self, quiet, quiet_box):
        """Its owner is told by mail; nobody else learns it."""
        email = new_email()
        ticket = self.ask(quiet, email)
        self.confirm(quiet, ticket=ticket, code=code_in(quiet_box.newest(email)))

        again = self.ask(quiet, email, WRONG)

        mail = quiet_box.newest(email)
        assert "?t=" not in mail
        assert refused(self.confirm(quiet, ticket=again, code="BBBB-BBBB"))
        assert quiet.log_in(email).status_code == 200

    def test_the_link_of_a_strangers_registration_needs_the_strangers_password(self, quiet, quiet_box):
        """Whoever opens it makes no account whose password somebody else chose."""
        email = new_email()
        self.ask(quiet, email)
        token = token_in(quiet_box.newest(email))

        assert refused(self.confirm(quiet, token=token))
        assert refused(self.confirm(quiet, token=token, password=WRONG))
        assert self.confirm(quiet, token=token, password=PASSWORD).status_code == 201

    def test_the_first_confirmed_of_one_address_wins(self, quiet, quiet_box):
        """Of as many as there are at once: one owner, 409 for the others."""
        email = new_email()
        tickets = [self.ask(quiet, email) for _ in range(THREADS)]
        codes = [code_in(mail) for mail in quiet_box.mails_to(email)]

        answers = at_once(
            lambda pair: self.confirm(quiet, ticket=pair[0], code=pair[1]),
            list(zip(tickets, codes, strict=True)),
        )

        assert sorted(one.status_code for one in answers) == [201] + [409] * (THREADS - 1)
        assert {code_of(one) for one in answers if one.status_code == 409} == {"email_taken"}

    def test_a_bad_registration_is_told_at_once(self, quiet):
        """422 says nothing of the address."""
        assert quiet.register("no address").status_code == 422
        assert quiet.register(new_email(), "short").status_code == 422


@pytest.mark.parametrize("mode", ["invited", "off"])
def test_where_registration_is_closed_nobody_registers(make_api, mode):
    """403; operators make accounts."""
    api = make_api(**MAIL, REGISTRATION=mode)

    answer = api.register(new_email())

    assert (answer.status_code, code_of(answer)) == (403, "registration_closed")


class TestChange:
    """POST /v1/me/email and its confirmation."""

    def ask(self, person: Person, new: str, password: str = PASSWORD) -> TestResponse:
        """Ask for a change."""
        return person.call("POST", "/v1/me/email", json={"email": new, "password": password})

    def confirm(self, person: Person, **body: str) -> TestResponse:
        """Show the codes."""
        return person.call("POST", "/v1/me/email/confirm", json=body)

    def proven(self, api: Api, postbox: Postbox) -> Person:
        """Somebody with a proven address."""
        person = api.someone()
        person.call("POST", "/v1/auth/email/verify", json={"code": code_in(postbox.newest(person.email))})
        return person

    def test_both_ends_of_a_proven_address_agree(self, api, postbox, replica):
        """
        All other sessions end in all processes; the old address is free at once; both addresses get a notice.
        """
        person, new = self.proven(api, postbox), new_email()
        old, kept = person.email, person.access
        other = api.log_in(old)
        asked = json_of(self.ask(person, new))
        assert asked["needs"] == ["code", "old_code"]
        body = {"ticket": asked["ticket"], "code": code_in(postbox.newest(new))}
        assert refused(self.confirm(person, **body))
        assert refused(self.confirm(person, **body, old_code=body["code"]))

        answer = self.confirm(person, **body, old_code=code_in(postbox.newest(old)))

        assert answer.status_code == 200
        assert (json_of(answer)["email"], json_of(answer)["email_verified"]) == (new, True)
        for process in (api, replica):
            assert [process.verify(kept), process.verify(json_of(other)["access_token"])] == [200, 401]
            assert process.log_in(old).status_code == 401
        with closing(Shelf(api)) as shelf:
            assert shelf.get(f"user:email:{old}") is None
        assert "changed" in postbox.newest(old)
        assert "changed" in postbox.newest(new)
        assert api.register(old).status_code == 201
        assert api.log_in(new).status_code == 200

    def test_a_taken_address_gets_no_mail_and_the_same_answer(self, api, postbox):
        """The old address gets its mail in both cases."""
        person, owner = self.proven(api, postbox), api.someone()
        before = len(postbox.mails_to(owner.email))

        free = self.ask(person, new_email())
        postbox.deliver()
        taken = self.ask(person, owner.email)

        assert free.status_code == taken.status_code == 202
        assert json_of(free).keys() == json_of(taken).keys()
        assert len(postbox.mails_to(owner.email)) == before
        assert len(postbox.mails_to(person.email)) == 3

    def test_a_newer_request_voids_the_older(self, api, postbox):
        """Also of those that are asked for at once: one ticket is left."""
        person = api.someone()
        news = [new_email() for _ in range(THREADS)]
        asked = at_once(lambda new: json_of(self.ask(person, new)), news)
        bodies = [
            {"ticket": one["ticket"], "code": code_in(mails[-1])}
            for one, mails in zip(asked, map(postbox.mails_to, news), strict=True)
            if mails
        ]

        assert len(bodies) == 1, "of the others there is nothing to send any more"
        assert self.confirm(person, **bodies[0]).status_code == 200

    def test_a_wrong_password_and_somebody_elses_ticket(self, api, postbox):
        """403 and 401."""
        person, stranger, new = api.someone(), api.someone(), new_email()

        assert code_of(self.ask(person, new, WRONG)) == "wrong_password"
        ticket = json_of(self.ask(person, new))["ticket"]
        body = {"ticket": ticket, "code": code_in(postbox.newest(new))}
        assert refused(self.confirm(stranger, **body))
        assert self.confirm(person, **body).status_code == 200

    def test_a_confirmation_that_was_checked_before_its_session_ended_comes_too_late(self, api, postbox):
        """The address stays; the codes are not used up."""
        person, new = api.someone(), new_email()
        ticket = json_of(self.ask(person, new))["ticket"]
        code = code_in(postbox.newest(new))
        token, later = api.services.checks.check(person.access), person.log_in()
        assert person.call("POST", "/v1/auth/logout").status_code == 204

        with pytest.raises(TokenInvalid):
            api.services.recovery.addresses.confirm_change(
                token.user_id, token.session_id, Shown(ticket=ticket, code=code), "192.0.2.1"
            )

        assert json_of(later.call("GET", "/v1/me"))["email"] == person.email
        assert self.confirm(later, ticket=ticket, code=code).status_code == 200

    def test_many_who_change_to_one_address_are_one_owner(self, api, postbox):
        """Beside somebody who registers it: the unique index decides."""
        people, new = [api.someone() for _ in range(THREADS - 1)], new_email()
        tickets = [json_of(self.ask(person, new))["ticket"] for person in people]
        codes = [code_in(mail) for mail in postbox.mails_to(new)]
        bodies: list[dict[str, Any]] = [
            {"ticket": ticket, "code": code} for ticket, code in zip(tickets, codes, strict=True)
        ]

        def act(number: int) -> int:
            if number == THREADS - 1:
                return int(api.register(new).status_code)
            return int(self.confirm(people[number], **bodies[number]).status_code)

        statuses = at_once(act, range(THREADS))

        won = [status for status in statuses if status in {200, 201}]
        assert len(won) == 1
        assert set(statuses) - set(won) <= {409}


class TestExport:
    """GET /v1/me/export."""

    def test_it_has_all_that_is_kept_and_no_secret(self, api, postbox):
        """Exactly its members; of mails that they were sent, not what they said."""
        person = api.someone(name="Ada")
        mail = postbox.newest(person.email)

        found = json_of(person.call("GET", "/v1/me/export"))

        assert set(found) == {"account", "preferences", "sessions", "mails", "events"}
        assert (found["account"]["id"], found["account"]["name"]) == (person.id, "Ada")
        assert [one["id"] for one in found["sessions"]] == [person.session_id]
        assert [(one["template"], one["state"]) for one in found["mails"]] == [("verify", "sent")]
        assert code_in(mail) not in str(found)

    def test_it_is_there_without_mail_and_a_few_times_a_day(self, make_api):
        """429 beyond; without a member for what is off."""
        person = make_api(RATE_LIMIT_EXPORT="2/day").someone()

        answers = [person.call("GET", "/v1/me/export") for _ in range(3)]

        assert [one.status_code for one in answers] == [200, 200, 429]
        assert set(json_of(answers[0])) == {"account", "preferences", "sessions", "events"}
