"""Forgotten passwords: one use of a mail's code or link, and nothing older lives after it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from authsvc.api.frame.context import DEVICE_HEADER
from tests.api.driver import THREADS, Api, MakeApi, Person, at_once, code_of, json_of, new_email
from tests.api.mailing import MAIL, Postbox, code_in, token_in
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

NEW_PASSWORD = "a staple that no horse has seen"
OTHER_PASSWORD = "a horse that no staple has seen"
WIDE = {"RATE_LIMIT_MAIL_IP": "off", "RATE_LIMIT_MAIL_ADDRESS": "off", "RATE_LIMIT_CODE_IP": "off"}


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def api(make_module_api: MakeApi, request) -> Api:
    """Share one application that sends mails, over each database."""
    return make_module_api(sqlite=request.param == "sqlite", **MAIL, **WIDE)


def forget(api: Api, email: str, **options: Any) -> dict[str, Any]:
    """Ask for a reset mail."""
    answer = api.post("/v1/auth/password/forgot", {"email": email}, **options)
    assert answer.status_code == 202, answer.text
    return json_of(answer)


def reset(api: Api, **body: str) -> TestResponse:
    """Choose a password with a mail's proof."""
    return api.post("/v1/auth/password/reset", {"new_password": NEW_PASSWORD, **body})


def refused(answer: TestResponse) -> bool:
    """The one refusal, with a bare challenge."""
    assert (answer.status_code, code_of(answer)) == (401, "code_invalid"), answer.text
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    return True


def test_a_link_chooses_a_new_password_once_and_ends_all_else(api, postbox, replica):
    """Sessions, tokens, device tokens and other tickets die on the next request, in every process."""
    person = api.someone()
    other = Person(api=api, id=person.id, email=person.email).log_in()
    forget(api, person.email)
    spare = token_in(postbox.newest(person.email))
    forget(api, person.email)
    token = token_in(postbox.newest(person.email))

    answer = reset(api, token=token)

    assert answer.status_code == 204
    assert answer.headers[DEVICE_HEADER]
    assert [person.is_accepted(), other.is_accepted()] == [False, False]
    assert [replica.verify(one.access) for one in (person, other)] == [401, 401]
    assert api.refresh(person.refresh_token).status_code == 401
    assert refused(reset(api, token=token))
    assert refused(reset(api, token=spare))
    assert api.log_in(person.email).status_code == 401
    assert api.log_in(person.email, NEW_PASSWORD).status_code == 200
    assert "password" in postbox.newest(person.email)
    user = Person(api=api, id=person.id, email=person.email, password=NEW_PASSWORD).log_in()
    assert json_of(user.call("GET", "/v1/me"))["email_verified"] is True


def test_a_code_is_taken_with_its_ticket_however_it_is_typed(api, postbox):
    """Case, spaces and hyphens say nothing; a code belongs to one ticket."""
    person, stranger = api.someone(), api.someone()
    ticket = forget(api, person.email)["ticket"]
    theirs = forget(api, stranger.email)["ticket"]
    code = code_in(postbox.newest(person.email)).lower().replace("-", " ")

    assert refused(reset(api, ticket=theirs, code=code))
    assert reset(api, ticket=ticket.upper(), code=f" {code} ").status_code == 204


def test_a_weak_password_keeps_the_ticket(api, postbox):
    """422, and the same code then works."""
    person = api.someone()
    ticket = forget(api, person.email)["ticket"]
    code = code_in(postbox.newest(person.email))

    weak = [reset(api, ticket=ticket, code=code, new_password="short").status_code for _ in range(7)]

    assert weak == [422] * 7
    assert reset(api, ticket=ticket, code=code).status_code == 204


def test_five_wrong_codes_kill_the_code_and_not_the_link(api, postbox):
    """A code can be guessed at, a link cannot."""
    person = api.someone()
    ticket = forget(api, person.email)["ticket"]
    mail = postbox.newest(person.email)

    assert all(refused(reset(api, ticket=ticket, code="BBBB-BBBB")) for _ in range(5))
    assert refused(reset(api, ticket=ticket, code=code_in(mail)))
    assert reset(api, token=token_in(mail)).status_code == 204


def test_a_ticket_ends_after_an_hour(api, postbox):
    """Neither its code nor its link works any more."""
    person = api.someone()
    asked = forget(api, person.email)
    mail = postbox.newest(person.email)
    assert asked["expires_in"] == 3600
    api.clock.tick(3601)
    try:
        assert refused(reset(api, ticket=asked["ticket"], code=code_in(mail)))
        assert refused(reset(api, token=token_in(mail)))
    finally:
        api.clock.tick(-3601)


@pytest.mark.parametrize("end", ["password", "disable", "disable and enable", "lock"])
def test_a_ticket_dies_with_what_it_was_asked_for(api, postbox, end):
    """A new password, and a disabled account, also one that was enabled again."""
    person, admin = api.someone(), api.an_admin()
    forget(api, person.email)
    token = token_in(postbox.newest(person.email))

    def stand(status: str) -> None:
        answer = admin.call("PATCH", f"/v1/users/{person.id}", json={"status": status})
        assert answer.status_code == 200

    if end == "password":
        body = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
        assert person.call("POST", "/v1/me/password", json=body).status_code == 204
    elif end == "lock":
        answer = admin.call("POST", f"/v1/users/{person.id}/password-reset", json={"lock": True})
        assert answer.status_code == 202
    else:
        stand("disabled")
        if "enable" in end:
            stand("active")

    assert refused(reset(api, token=token))


@pytest.mark.parametrize("typed", ["nobody@example.com", "no address", "", "x" * 5000, "a@b\0.example"])
def test_nobody_learns_whether_an_address_has_an_account(api, postbox, typed):
    """The same status, members and headers; and no mail to anybody."""
    person = api.someone()
    postbox.deliver()
    before = len(postbox.sent)
    known = api.post("/v1/auth/password/forgot", {"email": person.email})
    unknown = api.post("/v1/auth/password/forgot", {"email": typed})
    postbox.deliver()

    assert known.status_code == unknown.status_code == 202
    assert json_of(known).keys() == json_of(unknown).keys() == {"ticket", "expires_in"}
    assert set(known.headers.keys()) == set(unknown.headers.keys())
    assert len(postbox.sent) == before + 1
    assert refused(reset(api, ticket=json_of(unknown)["ticket"], code="BBBB-BBBB"))


def test_a_disabled_account_gets_no_mail(api, postbox):
    """Neither when a stranger asks, nor when an admin does; both are answered 202."""
    person, admin = api.someone(), api.an_admin()
    admin.call("PATCH", f"/v1/users/{person.id}", json={"status": "disabled"})
    before = len(postbox.mails_to(person.email))

    forget(api, person.email)
    asked = admin.call("POST", f"/v1/users/{person.id}/password-reset", json={})

    assert asked.status_code == 202
    assert len(postbox.mails_to(person.email)) == before


def test_an_admin_sends_a_reset_and_may_lock_the_password(api, postbox, replica):
    """Locked: sessions end at once in every process, no password fits, the mail lets its reader in again."""
    person, admin = api.someone(), api.an_admin()
    path = f"/v1/users/{person.id}/password-reset"

    assert admin.call("POST", path, json={}).status_code == 202
    assert [person.is_accepted(), replica.verify(person.access)] == [True, 200]
    assert admin.call("POST", path, json={"lock": True}).status_code == 202

    assert [person.is_accepted(), replica.verify(person.access)] == [False, 401]
    assert [process.log_in(person.email).status_code for process in (api, replica)] == [401, 401]
    assert reset(api, token=token_in(postbox.newest(person.email))).status_code == 204
    assert api.log_in(person.email, NEW_PASSWORD).status_code == 200
    assert admin.call("POST", f"/v1/users/{'0' * 8}/password-reset", json={}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"token": "x", "ticket": "y", "code": "z"},
        {"token": "x", "code": "z"},
        {},
        {"code": "BBBB-BBBB"},
        {"token": 1},
        {"ticket": "x"},
    ],
)
def test_both_proofs_or_none_are_a_mistake(api, body):
    """422 before anything is looked at."""
    assert reset(api, **body).status_code == 422


@pytest.mark.parametrize("token", ["", "x", "A" * 64, "é" * 10, "\0", "AAAA" * 16 + "===="])
def test_what_is_no_token_is_refused_like_a_dead_one(api, token):
    """Whatever is wrong with it."""
    assert refused(reset(api, token=token))


def test_a_token_that_was_changed_is_refused(api, postbox):
    """Each of its characters counts."""
    person = api.someone()
    forget(api, person.email)
    token = token_in(postbox.newest(person.email))

    for index in range(0, len(token), 7):
        other = "A" if token[index] != "A" else "B"
        assert refused(reset(api, token=token[:index] + other + token[index + 1 :]))
    assert reset(api, token=token).status_code == 204


def test_one_link_that_many_use_at_once_works_once(api, replica, postbox):
    """A row decides, also between processes."""
    person = api.someone()
    forget(api, person.email)
    token = token_in(postbox.newest(person.email))

    # Three processes: in two, more might come at once than a hashing lane takes.
    with closing(Api(api.env)) as third:
        processes = (api, replica, third)

        def use(number: int) -> TestResponse:
            return reset(processes[number % 3], token=token, new_password=f"{NEW_PASSWORD} {number}")

        answers = at_once(use, range(50), threads=50)

    assert sorted(answer.status_code for answer in answers) == [204] + [401] * 49


def test_nothing_older_lives_after_a_reset_beside_logins_and_refreshes(api: Api, postbox: Postbox) -> None:
    """A login with the old password, or a refresh, that was in progress leaves no valid token."""
    person = api.someone()
    forget(api, person.email)
    token = token_in(postbox.newest(person.email))

    def act(number: int) -> TestResponse:
        if number == 3:
            return reset(api, token=token)
        return api.log_in(person.email) if number % 2 else api.refresh(person.refresh_token)

    answers = at_once(act, range(THREADS))

    assert answers[3].status_code == 204
    pairs = [
        json_of(answer) for number, answer in enumerate(answers) if number != 3 and answer.status_code == 200
    ]
    assert [api.verify(pair["access_token"]) for pair in pairs] == [401] * len(pairs)
    assert [api.refresh(pair["refresh_token"]).status_code for pair in pairs] == [401] * len(pairs)


def test_the_limits_of_mails_and_codes(make_api):
    """By caller 429; by recipient the same 202 and no mail; wrong codes shut out right ones, too."""
    api = make_api(
        **MAIL, RATE_LIMIT_MAIL_IP="4/hour", RATE_LIMIT_MAIL_ADDRESS="3/hour", RATE_LIMIT_CODE_IP="2/hour"
    )
    postbox, person = Postbox(api), api.someone()

    asked = [api.post("/v1/auth/password/forgot", {"email": person.email}).status_code for _ in range(5)]
    mails = postbox.mails_to(person.email)
    token = token_in(mails[-1])
    wrong = [reset(api, token="x").status_code for _ in range(3)]

    assert asked == [202] * 4 + [429]
    assert len(mails) == 3, "the one of the registration counts"
    assert wrong == [401, 401, 429]
    assert reset(api, token=token).status_code == 429
    answer = api.post(
        "/v1/auth/password/reset", {"token": token, "new_password": NEW_PASSWORD}, ip="198.51.100.9"
    )
    assert answer.status_code == 204


class TestInvitation:
    """POST /v1/users."""

    def test_who_is_invited_chooses_a_password_and_is_in(self, api, postbox, replica):
        """No password fits before; the address is proven by the mail; every process knows at once."""
        admin, email = api.an_admin(), new_email()

        answer = admin.call("POST", "/v1/users", json={"email": email, "name": "Ada", "roles": ["admin"]})
        user = json_of(answer)

        assert answer.status_code == 201
        assert answer.headers["Location"] == f"/v1/users/{user['id']}"
        assert (user["name"], user["roles"], user["email_verified"]) == ("Ada", ["user", "admin"], False)
        assert api.log_in(email, "!").status_code == 401
        assert reset(api, token=token_in(postbox.newest(email))).status_code == 204
        assert [process.log_in(email, NEW_PASSWORD).status_code for process in (api, replica)] == [200, 200]
        again = admin.call("POST", "/v1/users", json={"email": email.upper()})
        assert (again.status_code, code_of(again)) == (409, "email_taken")

    def test_only_admins_invite_and_only_into_roles_that_there_are(self, api):
        """403 and 422; no user is created."""
        person, admin, email = api.someone(), api.an_admin(), new_email()

        assert person.call("POST", "/v1/users", json={"email": email}).status_code == 403
        assert admin.call("POST", "/v1/users", json={"email": email, "roles": ["king"]}).status_code == 422
        assert admin.call("POST", "/v1/users", json={"email": "no address"}).status_code == 422
        assert json_of(admin.call("GET", f"/v1/users?email={email}"))["items"] == []

    @pytest.mark.parametrize(
        ("settings", "status"),
        [({}, 405), ({"MAIL_TRANSPORT": "file"}, 404), ({**MAIL, "REGISTRATION": "off"}, 405)],
        ids=["no mail", "no links", "off"],
    )
    def test_without_mail_or_links_nobody_is_invited(self, make_api, settings, status):
        """The path is there for lists; inviting is not."""
        admin = make_api(**settings).an_admin() if "REGISTRATION" not in settings else None
        if admin is None:
            api = make_api(**settings)
            assert api.call("POST", "/v1/users").status_code == status
            return

        assert admin.call("POST", "/v1/users", json={"email": new_email()}).status_code == status


def test_without_mail_none_of_it_exists(make_api):
    """404 on every route, and nothing of it in the description."""
    api = make_api()
    paths = {
        "/v1/auth/password/forgot", "/v1/auth/password/reset", "/v1/auth/email/resend",
        "/v1/auth/email/verify", "/v1/auth/register/confirm", "/v1/me/email", "/v1/me/email/confirm",
    }  # fmt: skip

    assert {path: api.post(path, {}).status_code for path in paths} == dict.fromkeys(paths, 404)
    assert not paths & json_of(api.call("GET", "/openapi.json"))["paths"].keys()
