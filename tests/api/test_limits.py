"""Limits by address and by account, and their headers."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import pytest

from tests.api.driver import Api, Person, at_once, code_of, new_email
from tests.rig import PASSWORD, operator_of

WRONG = "wrong horse battery staple"


def statuses(answers) -> list[int]:
    """In order."""
    return [answer.status_code for answer in answers]


def assert_limited(answer, name: str, quota: int, window_s: int) -> None:
    """The whole 429: code, integer Retry-After within the window, and the headers of the rule *name*."""
    assert (answer.status_code, code_of(answer)) == (429, "rate_limited")
    assert re.fullmatch("[1-9][0-9]*", answer.headers["Retry-After"])
    assert int(answer.headers["Retry-After"]) <= window_s
    assert answer.headers["RateLimit-Policy"] == f'"{name}";q={quota};w={window_s}'
    assert answer.headers["RateLimit"] == f'"{name}";r=0;t={answer.headers["Retry-After"]}'


def test_every_login_counts_against_its_address(make_api):
    """Good and bad ones: the sixth is refused, whoever it is for; another address is not affected."""
    api = make_api(RATE_LIMIT_LOGIN_IP="5/15minutes")
    person = api.someone()
    tries = [person.email, new_email(), person.email, new_email()]

    answers = [api.log_in(email, ip="192.0.2.1") for email in [*tries, "no address"]]

    assert statuses(answers) == [200, 401, 200, 401, 401]
    left = [answer.headers["RateLimit"].split(";")[:2] for answer in answers]
    assert left == [['"login-ip"', f"r={number}"] for number in (4, 3, 2, 1, 0)]
    assert_limited(api.log_in(person.email, ip="192.0.2.1"), "login-ip", 5, 900)
    assert api.log_in(person.email, ip="192.0.2.2").status_code == 200


def test_a_full_address_is_refused_before_anything_is_read(make_api):
    """Also what is no JSON: a flood is not worth parsing."""
    api = make_api(RATE_LIMIT_LOGIN_IP="1/hour")
    api.log_in(new_email())

    assert_limited(api.send_raw("/v1/auth/login", b"{"), "login-ip", 1, 3600)


def test_failures_count_against_the_account_and_successes_are_given_back(make_api):
    """Any number of good logins; the fourth failure is refused, and so is then the right password."""
    api = make_api(RATE_LIMIT_LOGIN_ACCOUNT="3/15minutes")
    person, other = api.someone(), api.someone()

    answers = [
        api.log_in(person.email, password)
        for password in (PASSWORD, WRONG, PASSWORD, WRONG, PASSWORD, PASSWORD, WRONG, WRONG)
    ]

    assert statuses(answers) == [200, 401, 200, 401, 200, 200, 401, 429]
    assert_limited(api.log_in(person.email), "login-account", 3, 900)
    assert api.log_in(other.email).status_code == 200
    assert person.is_accepted()
    assert person.refresh().is_accepted()


def test_all_spellings_of_an_address_share_one_bucket(make_api):
    """The counter is of the account, not of what was typed."""
    api = make_api(RATE_LIMIT_LOGIN_ACCOUNT="4/15minutes")
    api.register("anna@bücher.example")
    spellings = [
        "anna@bücher.example",
        "ANNA@BÜCHER.EXAMPLE",
        " anna@xn--bcher-kva.example",
        "Anna@bu\u0308cher.example",
    ]

    answers = [api.log_in(spelling, WRONG) for spelling in spellings]

    assert statuses(answers) == [401] * 4
    assert statuses(api.log_in(spelling) for spelling in spellings) == [429] * 4


def test_an_unknown_address_is_limited_like_a_known_one(make_api):
    """Same counts, same headers, same refusal: the limit tells nobody who has an account."""
    api = make_api(RATE_LIMIT_LOGIN_ACCOUNT="2/15minutes", RATE_LIMIT_LOGIN_IP="100/15minutes")
    known = api.someone().email

    def seen(email: str, ip: str) -> list[tuple[int, str | None, str | None, str]]:
        answers = [api.log_in(email, WRONG, ip=ip) for _ in range(4)]
        return [
            (
                answer.status_code,
                answer.headers["RateLimit-Policy"],
                re.sub("t=[0-9]+", "t", answer.headers["RateLimit"]),
                code_of(answer),
            )
            for answer in answers
        ]

    assert seen(known, "192.0.2.1") == seen(new_email(), "192.0.2.2") == seen("no address", "192.0.2.3")


@pytest.mark.parametrize("rule", ["RATE_LIMIT_LOGIN_ACCOUNT", "RATE_LIMIT_LOGIN_IP"])
def test_however_many_guess_at_once_the_count_is_exact(make_api, rule):
    """48 guesses in parallel, 10 are judged; one not told in time that it counts may be among them."""
    api = make_api(**{rule: "10/15minutes"})
    email = api.someone().email

    answers = at_once(lambda _: api.log_in(email, WRONG, ip="192.0.2.1"), range(48))

    seen = Counter(statuses(answers))
    assert set(seen) <= {401, 429, 503}
    assert 10 - seen[503] <= seen[401] <= 10
    assert 38 - seen[503] <= seen[429] <= 38


def test_registrations_count_by_address_where_they_were_judged(make_api):
    """201 and 409 do, 422 and what is no JSON do not."""
    api = make_api(RATE_LIMIT_REGISTER_IP="3/hour")
    email = new_email()

    answers = [
        api.register(email),
        api.register("no address"),
        api.register(email, "short"),
        api.send_raw("/v1/auth/register", b"{"),
        api.register(email),
        api.register(email, role="admin"),
        api.register(new_email()),
    ]

    assert statuses(answers) == [201, 422, 422, 400, 409, 422, 201]
    assert_limited(api.register(new_email()), "register-ip", 3, 3600)
    assert api.post("/v1/auth/register", {}, ip="192.0.2.9").status_code == 422


def test_of_many_registrations_at_once_the_quota_is_made(make_api):
    """32 at once, 5 accounts."""
    api = make_api(RATE_LIMIT_REGISTER_IP="5/hour")

    answers = at_once(lambda _: api.register(new_email()), range(32))

    assert Counter(statuses(answers)) == {201: 5, 429: 27}


def forged(token: str, position: int) -> str:
    """*token* with another character at *position*."""
    other = "A" if token[position] != "A" else "B"
    return token[:position] + other + token[position + 1 :]


def test_refreshes_count_by_session(make_api):
    """Each session has its own quota; a forged token does not count for any."""
    api = make_api(RATE_LIMIT_REFRESH="2/minute")
    person = api.someone()
    other = person.log_in()
    for position in range(30, 50):
        api.refresh(forged(person.refresh_token, position))
    latest = person.refresh().refresh()

    answer = api.refresh(latest.refresh_token)

    assert_limited(answer, "refresh", 2, 60)
    assert latest.is_accepted()
    assert other.refresh().is_accepted()


def change(person: Person, current: str = WRONG):
    """Ask for another password."""
    body = {"current_password": current, "new_password": PASSWORD * 2}
    return person.call("POST", "/v1/me/password", json=body)


def close(person: Person, password: str = WRONG):
    """Ask for the end of the account."""
    return person.call("DELETE", "/v1/me", json={"password": password})


@pytest.mark.parametrize("prove", [change, close])
def test_strangers_keep_no_signed_in_owner_from_their_password(make_api, prove):
    """While their guesses use the account's bucket up, without end, a session has one of its own."""
    api = make_api(RATE_LIMIT_LOGIN_ACCOUNT="3/15minutes")
    person = api.someone()
    assert statuses(api.log_in(person.email, WRONG) for _ in range(4)) == [401, 401, 401, 429]

    refused, done = prove(person), prove(person, PASSWORD)

    assert (refused.status_code, done.status_code) == (403, 204)
    assert api.log_in(person.email).status_code == 429


@pytest.mark.parametrize("first", [change, close])
def test_every_proof_of_a_session_shares_its_bucket(make_api, first):
    """A stolen session guesses three times, by whatever way; another session and a login go on."""
    api = make_api(RATE_LIMIT_PASSWORD_SESSION="3/15minutes")
    person = api.someone()
    other = person.log_in()
    assert statuses(first(person) for _ in range(3)) == [403] * 3

    for answer in (change(person, PASSWORD), close(person, PASSWORD), change(person.refresh(), PASSWORD)):
        assert_limited(answer, "password-session", 3, 900)

    assert person.is_accepted()
    assert api.log_in(person.email).status_code == 200
    assert change(other, PASSWORD).status_code == 204


def test_all_sessions_of_an_account_together_are_bounded(make_api):
    """Several stolen sessions together get the account's quota; a refused attempt is not counted."""
    api = make_api(RATE_LIMIT_PASSWORD_SESSION="3/15minutes", RATE_LIMIT_PASSWORD_ACCOUNT="5/15minutes")
    person = api.someone()
    one, other, third = (person.log_in() for _ in range(3))

    answers = at_once(change, [one, other] * 8)

    assert Counter(statuses(answers)) == {403: 5, 429: 11}
    assert_limited(change(third, PASSWORD), "password-account", 5, 900)
    assert api.log_in(person.email).status_code == 200


def test_proofs_that_succeed_are_given_back(make_api):
    """Both buckets are for failures."""
    api = make_api(RATE_LIMIT_PASSWORD_SESSION="1/15minutes", RATE_LIMIT_PASSWORD_ACCOUNT="1/15minutes")
    person = api.someone()

    answers = [
        person.call("POST", "/v1/me/password", json={"current_password": old, "new_password": new})
        for old, new in ((PASSWORD, PASSWORD * 2), (PASSWORD * 2, PASSWORD))
    ]

    assert statuses(answers) == [204, 204]


def test_unless_they_are_set_the_limits_of_sessions_follow_that_of_the_account(make_api):
    """As many tries for one session, twice as many for all: one alone cannot use up what the others need."""
    api = make_api(RATE_LIMIT_LOGIN_ACCOUNT="2/15minutes")
    person = api.someone()
    one, other, third = (person.log_in() for _ in range(3))

    assert statuses(change(session) for session in (one, one, one)) == [403, 403, 429]
    assert statuses(change(session) for session in (other, other, third)) == [403, 403, 429]
    assert_limited(change(third, PASSWORD), "password-account", 4, 900)


def test_where_guesses_at_an_account_are_not_bounded_neither_are_those_of_a_session(make_api):
    """`off` for strangers is `off` for whoever is logged in, unless set."""
    api = make_api(RATE_LIMIT_LOGIN_ACCOUNT="off")
    person = api.someone()

    assert statuses(change(person) for _ in range(12)) == [403] * 12


def test_a_change_of_password_that_is_refused_for_its_form_is_given_back(make_api):
    """The right current password with a bad new one is no guess."""
    api = make_api(RATE_LIMIT_LOGIN_ACCOUNT="2/15minutes")
    person = api.someone()
    body = {"current_password": PASSWORD, "new_password": "short"}

    answers = [person.call("POST", "/v1/me/password", json=body) for _ in range(5)]

    assert statuses(answers) == [422] * 5
    assert api.log_in(person.email).status_code == 200


def test_routes_without_a_limit_say_nothing_of_limits(make_api):
    """And none is said to be where it is switched off."""
    api = make_api(RATE_LIMIT_LOGIN_IP="5/minute")
    person = api.someone()

    for answer in (person.call("GET", "/v1/me"), api.refresh("x"), api.call("GET", "/v1/health")):
        assert not [name for name, _ in answer.headers if name.startswith("RateLimit")]


def test_the_tightest_rule_is_the_one_that_is_told(make_api):
    """Address or account, whichever is nearer to its end."""
    api = make_api(RATE_LIMIT_LOGIN_IP="10/minute", RATE_LIMIT_LOGIN_ACCOUNT="3/hour")
    email = new_email()

    first, second = api.log_in(email), api.log_in(email)

    assert first.headers["RateLimit-Policy"] == '"login-account";q=3;w=3600'
    assert re.fullmatch('"login-account";r=2;t=3[56][0-9]{2}', first.headers["RateLimit"])
    assert re.fullmatch('"login-account";r=1;t=3[56][0-9]{2}', second.headers["RateLimit"])


def keys_of(api: Api) -> dict[str, int]:
    """The counters of *api* in Redis, with what is left of their lives in seconds."""
    prefix = f"{api.env['CACHE_KEY_PREFIX']}:v1:auth:rate-limit:"
    with operator_of(api.env) as redis:
        return {key.removeprefix(prefix): redis.ttl(key) for key in redis.scan_iter(f"{prefix}*")}


def test_counters_are_kept_under_the_names_of_the_contract(make_api):
    """By rule and subject: address, hash of the canonical account, session; none lives for ever."""
    api = make_api(
        RATE_LIMIT_LOGIN_IP="9/minute",
        RATE_LIMIT_LOGIN_ACCOUNT="9/hour",
        RATE_LIMIT_REGISTER_IP="9/day",
        RATE_LIMIT_REFRESH="9/minute",
    )
    person = api.someone()
    person.refresh()
    api.log_in(person.email.upper(), WRONG, ip="2001:db8:1:2:3:4:5:6")

    keys = keys_of(api)

    assert {key.split(":", 1)[0] for key in keys} == {"login-ip", "login-account", "register-ip", "refresh"}
    assert f"login-account:{hashlib.sha256(person.email.encode()).hexdigest()}" in keys
    assert f"refresh:{person.session_id}" in keys
    assert "login-ip:127.0.0.1" in keys
    windows_s = {"login-ip": 60, "login-account": 3600, "register-ip": 86400, "refresh": 60}
    for key, ttl_s in keys.items():
        assert 0 < ttl_s <= 2 * windows_s[key.split(":", 1)[0]]
        assert person.email not in key
