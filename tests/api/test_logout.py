"""POST /v1/auth/logout."""

from __future__ import annotations

import pytest

from tests.api.driver import Person, code_of


def is_over(person: Person) -> bool:
    """Both tokens of the session are dead."""
    answer = person.api.refresh(person.refresh_token)
    return not person.is_accepted() and answer.status_code == 401 and code_of(answer) == "session_ended"


@pytest.mark.parametrize("tokens", ["access", "refresh", "both"])
def test_either_token_or_both_end_the_session(person, tokens):
    """204 without a body; access and refresh token are dead on the next request, another session is not."""
    other = person.log_in()
    access = person.access if tokens != "refresh" else None
    refresh = person.refresh_token if tokens != "access" else None

    answer = person.api.log_out(access=access, refresh=refresh)

    assert (answer.status_code, answer.data) == (204, b"")
    assert "Content-Type" not in answer.headers
    assert is_over(person)
    assert other.is_accepted()


def test_tokens_of_one_session_from_before_and_after_a_refresh_agree(person):
    """Both name the session, whatever their number."""
    newer = person.refresh()

    answer = person.api.log_out(access=person.access, refresh=newer.refresh_token)

    assert answer.status_code == 204
    assert is_over(newer)


def test_repeating_it_is_harmless(person):
    """With either token, as often as wanted: 204."""
    for _ in range(2):
        assert person.api.log_out(access=person.access).status_code == 204
        assert person.api.log_out(refresh=person.refresh_token).status_code == 204
        assert person.api.log_out(access=person.access, refresh=person.refresh_token).status_code == 204


def test_a_consumed_refresh_token_ends_its_session_too(person):
    """It is genuine, and logging out is no reuse."""
    third = person.refresh().refresh()

    answer = person.api.log_out(refresh=person.refresh_token)

    assert answer.status_code == 204
    assert is_over(third)


def test_two_tokens_of_two_sessions_end_neither(person):
    """401 `token_invalid`, and both sessions live on."""
    other = person.log_in()
    stranger = person.api.someone()

    for refresh in (other.refresh_token, stranger.refresh_token):
        answer = person.api.log_out(access=person.access, refresh=refresh)

        assert (answer.status_code, code_of(answer)) == (401, "token_invalid")
    assert all(one.is_accepted() for one in (person, other, stranger))


def test_one_forged_token_of_two_ends_nothing(person):
    """Neither a good access token nor a good refresh token makes up for the other one."""
    forged_access = person.access[:-4] + "AAAA"
    refresh = person.refresh_token
    forged_refresh = refresh.replace(refresh[0], "B" if refresh[0] == "A" else "A", 1)

    answers = [
        person.api.log_out(access=forged_access, refresh=person.refresh_token),
        person.api.log_out(access=person.access, refresh=forged_refresh),
        person.api.log_out(access=forged_access),
        person.api.log_out(refresh=forged_refresh),
        person.api.log_out(refresh=""),
        person.api.log_out(access=""),
    ]

    assert {(answer.status_code, code_of(answer)) for answer in answers} == {(401, "token_invalid")}
    assert person.is_accepted()


@pytest.mark.parametrize("options", [{}, {"json": {}}, {"data": b"", "content_type": "application/json"}])
def test_without_any_token_it_is_refused(api, options):
    """No body, an empty one, or one without a token: 401 `token_invalid`."""
    answer = api.call("POST", "/v1/auth/logout", **options)

    assert (answer.status_code, code_of(answer)) == (401, "token_invalid")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_another_scheme_is_no_proof_and_spoils_a_good_refresh_token(person):
    """Credentials of another kind are refused, even with a valid refresh token."""
    headers = {"Authorization": "Basic YTpi"}
    body = {"refresh_token": person.refresh_token}

    answer = person.api.post("/v1/auth/logout", body, headers=headers)

    assert (answer.status_code, code_of(answer)) == (401, "token_invalid")
    assert person.is_accepted()


@pytest.mark.parametrize("body", [{"refresh_token": None}, {"refresh_token": 1}, {"token": "x"}, []])
def test_a_body_of_the_wrong_form_ends_nothing(person, body):
    """422, whatever the access token."""
    answer = person.call("POST", "/v1/auth/logout", json=body)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert person.is_accepted()


@pytest.mark.parametrize(
    ("data", "content_type", "status"),
    [(b"{", "application/json", 400), (b"x=1", "application/x-www-form-urlencoded", 415), (b"{}", None, 415)],
)
def test_a_body_that_is_no_json_ends_nothing(person, data, content_type, status):
    """400 or 415, whatever the access token."""
    answer = person.call("POST", "/v1/auth/logout", data=data, content_type=content_type)

    assert answer.status_code == status
    assert person.is_accepted()


def test_an_expired_access_token_still_ends_its_session(make_api):
    """Its signature is good, and that is what matters; the refresh token would have lived on."""
    api = make_api(REDIS_AUTH_TOKEN_TTL="60")
    person = api.someone()
    api.clock.tick(70)
    assert not person.is_accepted()

    answer = api.log_out(access=person.access)

    assert answer.status_code == 204
    assert code_of(api.refresh(person.refresh_token)) == "session_ended"


def test_the_token_of_a_deleted_user_is_met_with_calm(person):
    """There is nothing left to end: 204; their refresh token belongs to nothing any more: 401."""
    person.call("DELETE", "/v1/me", json={"password": person.password})

    assert person.api.log_out(access=person.access).status_code == 204
    assert code_of(person.api.log_out(refresh=person.refresh_token)) == "token_invalid"


def test_another_spelling_of_the_token_is_no_way_around(person):
    """base64url has spare bits at the end: whatever verified before, no spelling verifies after."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spellings = [person.access[:-1] + last for last in alphabet] + [person.access + "=", person.access + "=="]
    for spelling in spellings:
        person.api.verify(spelling)

    person.api.log_out(access=person.access)

    assert {person.api.verify(spelling) for spelling in spellings} == {401}
