"""What operators do about passwords and addresses, and what it means for codes and links."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from authsvc.domain.authentication import Registration
from authsvc.domain.users import Profile
from tests.api.driver import Api, MakeApi, code_of, json_of, new_email
from tests.api.mailing import MAIL, code_in, token_in
from tests.rig import PASSWORD

if TYPE_CHECKING:
    pass

NEW_PASSWORD = "a staple that no horse has seen"


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def api(make_module_api: MakeApi, request) -> Api:
    """Share one application that sends mails, over each database."""
    return make_module_api(sqlite=request.param == "sqlite", **MAIL, RATE_LIMIT_MAIL_ADDRESS="off")


def reset(api: Api, token: str) -> int:
    """Choose a password with a mail's link."""
    body = {"token": token, "new_password": NEW_PASSWORD}
    return int(api.post("/v1/auth/password/reset", body).status_code)


def test_an_operator_sends_a_reset(api, postbox, operate):
    """The workers send the mail; nobody but its reader chooses a password."""
    person = api.someone()

    shown = operate("users", "send-reset", person.email.upper())

    assert shown == {"id": person.id, "email": person.email}
    assert reset(api, token_in(postbox.newest(person.email))) == 204
    assert "no user has the address" in str(operate("users", "send-reset", new_email()))
    assert "MAIL_TRANSPORT is off" in str(
        operate("users", "send-reset", person.email, **{**api.env, "MAIL_TRANSPORT": "off"})
    )


def test_an_operator_invites_and_invites_again(api, postbox, operate):
    """Both links work as long as there is no password; then there is nothing to invite to."""
    email = new_email()

    made = operate("users", "invite", email)
    first = token_in(postbox.newest(email))
    again = operate("users", "invite", email)
    second = token_in(postbox.newest(email))

    assert made == again
    assert first != second
    assert reset(api, second) == 204
    assert reset(api, first) == 401
    assert "has an account with a password" in str(operate("users", "invite", email))


def test_without_links_an_operator_invites_nobody(make_api, operate):
    """A code alone has no page to be typed into; the command says what to set."""
    env = make_api(MAIL_TRANSPORT="file").env

    answer = operate("users", "invite", new_email(), **env)

    assert "set LINK_URL" in answer


def test_an_operator_takes_addresses_for_proven(api, operate):
    """One by name, or all that were made before a time; users see it on their next request."""
    early, late = api.someone(), api.someone()
    at = json_of(late.call("GET", "/v1/me"))["created_at"]

    assert operate("users", "verify", "--created-before", at)["verified"] >= 1
    seen = [json_of(one.call("GET", "/v1/me"))["email_verified"] for one in (early, late)]
    assert seen == [True, False]
    assert operate("users", "verify", late.email) == {"verified": 1}
    assert json_of(late.call("GET", "/v1/me"))["email_verified"] is True
    assert "TIME" in str(operate("users", "verify", "--created-before", "yesterday"))
    assert "TIME" in str(operate("users", "verify", "--created-before", "2026-11-30T00:00:00"))


def test_accounts_of_operators_are_proven_those_of_a_batch_are_not(api, operate):
    """`users create` vouches for the address."""
    created, batched = new_email(), new_email()
    operate("users", "create", created, "--password-stdin", stdin=PASSWORD)
    users = [{"email": batched, "password": PASSWORD}]
    admin = api.an_admin()
    assert admin.call("POST", "/v1/batch/users/create", json={"users": users}).status_code == 200

    shown = [operate("users", "show", email) for email in (created, batched)]

    assert [one["email_verified"] for one in shown] == [True, False]


@pytest.mark.parametrize("act", ["set-password", "set-email"])
def test_open_links_die_with_a_password_or_address_that_an_operator_sets(api, postbox, operate, act):
    """The owner hears of it, at either address; a new address is not proven."""
    person, new = api.someone(), new_email()
    person.call("POST", "/v1/auth/email/verify", json={"code": code_in(postbox.newest(person.email))})
    api.post("/v1/auth/password/forgot", {"email": person.email})
    token = token_in(postbox.newest(person.email))

    if act == "set-email":
        operate("users", "set-email", person.email, new)
    else:
        operate("users", "set-password", person.email, "--password-stdin", stdin=NEW_PASSWORD)

    assert reset(api, token) == 401
    assert "changed" in postbox.newest(person.email)
    assert not person.is_accepted()
    if act == "set-email":
        assert "changed" in postbox.newest(new)
        shown = operate("users", "show", new)
        assert shown["email_verified"] is False


def test_a_password_changed_in_a_session_is_told_to_its_owner(api, postbox):
    """The mail names neither the old one nor the new one."""
    person = api.someone()
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}

    assert person.call("POST", "/v1/me/password", json=body).status_code == 204

    mail = postbox.newest(person.email)
    assert "password" in mail
    assert PASSWORD not in mail
    assert NEW_PASSWORD not in mail


def test_a_mail_is_never_about_two_accounts(api, postbox):
    """Who registers an address that was given up does not get what its former owner asked for."""
    person, new = api.someone(), new_email()
    api.post("/v1/auth/password/forgot", {"email": person.email})
    token = token_in(postbox.newest(person.email))
    asked = person.call("POST", "/v1/me/email", json={"email": new, "password": PASSWORD})
    body = {"ticket": json_of(asked)["ticket"], "code": code_in(postbox.newest(new))}
    assert person.call("POST", "/v1/me/email/confirm", json=body).status_code == 200

    form = Registration(email=person.email, password=PASSWORD, profile=Profile())
    api.services.authentication.register(form, by_operator=True)

    answer = api.post("/v1/auth/password/reset", {"token": token, "new_password": NEW_PASSWORD})
    assert (answer.status_code, code_of(answer)) == (401, "code_invalid")
    assert api.log_in(person.email).status_code == 200
