"""POST /v1/oauth2/revoke (RFC 7009)."""

from __future__ import annotations

import pytest

from tests.api.driver import Person, code_of
from tests.api.gateway import INACTIVE, REVOKE, Gateway


def is_over(person: Person) -> bool:
    """Both tokens of the session are dead."""
    return not person.is_accepted() and code_of(person.api.refresh(person.refresh_token)) == "session_ended"


@pytest.mark.parametrize("shown", ["access_token", "refresh_token"])
@pytest.mark.parametrize("hint", [None, "access_token", "refresh_token"])
def test_either_token_ends_the_session_whatever_the_hint(gateway, person, shown, hint):
    """200 with an empty body; another session of the user goes on."""
    other = person.log_in()

    answer = gateway.post(
        REVOKE, {"token": person.pair[shown], **({"token_type_hint": hint} if hint else {})}
    )

    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers["Cache-Control"] == "no-store"
    assert is_over(person)
    assert other.is_accepted()
    assert gateway.introspect(person.access) == gateway.introspect(person.refresh_token) == INACTIVE


def test_repeating_it_is_harmless(gateway, person):
    """With either token, as often as wanted: 200."""
    for token in (person.access, person.refresh_token) * 2:
        assert gateway.revoke(token) == 200
    assert is_over(person)


def test_what_is_not_one_of_ours_has_nothing_to_end(gateway, person):
    """200: for the client it is worth nothing already (RFC 7009 §2.2)."""
    refresh = person.refresh_token
    forged = refresh.replace(refresh[0], "B" if refresh[0] == "A" else "A", 1)
    for token in ("x", "a.b.c", "\x00", person.access[:-4] + "AAAA", forged):
        assert gateway.revoke(token) == 200

    assert person.is_accepted()
    assert person.refresh().is_accepted()


def test_a_consumed_refresh_token_ends_its_session_and_is_no_reuse(gateway, person):
    """It is genuine; no alarm is raised."""
    third = person.refresh().refresh()

    assert gateway.revoke(person.refresh_token) == 200

    assert is_over(third)


def test_an_expired_access_token_ends_its_session(make_api):
    """Its signature is good; the refresh token would have lived on."""
    api = make_api(REDIS_AUTH_TOKEN_TTL="60")
    gateway, person = Gateway.of(api), api.someone()
    api.clock.tick(70)

    assert gateway.revoke(person.access) == 200

    assert code_of(api.refresh(person.refresh_token)) == "session_ended"


def test_the_tokens_of_a_deleted_user_are_met_with_calm(gateway, person):
    """Nothing is left to end: 200."""
    person.call("DELETE", "/v1/me", json={"password": person.password})

    assert gateway.revoke(person.access) == gateway.revoke(person.refresh_token) == 200
