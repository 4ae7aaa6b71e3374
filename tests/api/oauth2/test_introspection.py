"""POST /v1/oauth2/introspect (RFC 7662)."""

from __future__ import annotations

import base64

import pytest

from tests.api.driver import Api, Person, code_of
from tests.api.gateway import INACTIVE, INTROSPECT, Gateway


def test_an_active_access_token_is_described(gateway, person):
    """Its claims, with the member names of RFC 7662, and nothing else."""
    claims = person.claims()

    found = gateway.introspect(person.access)

    told = {name: claims[name] for name in ("sub", "sid", "iss", "aud", "iat", "exp", "roles", "jti")}
    assert found == {"active": True, "token_type": "access_token", **told}


def test_an_active_refresh_token_is_described(gateway, person):
    """By its session: it ends with it, and has no `jti`."""
    claims = person.claims()

    found = gateway.introspect(person.refresh_token)

    told = {name: claims[name] for name in ("sub", "sid", "iss", "aud", "roles")}
    assert {name: found.pop(name) for name in ("iat", "exp")} == {
        "iat": pytest.approx(claims["iat"], abs=60),
        "exp": pytest.approx(claims["iat"] + person.pair["refresh_expires_in"], abs=60),
    }
    assert found == {"active": True, "token_type": "refresh_token", **told}


@pytest.mark.parametrize("hint", ["access_token", "refresh_token", "id_token", "x" * 5000, "\x00"])
def test_a_hint_is_a_hint(gateway, person, hint):
    """Wrong, unknown or odd: the token is found all the same."""
    assert gateway.introspect(person.access, token_type_hint=hint)["active"]
    assert gateway.introspect(person.refresh_token, token_type_hint=hint)["active"]


def test_other_parameters_are_ignored(gateway, person):
    """RFC 6749 §3.2: what is not known, and what has no value."""
    data = f"unknown=1&token={person.access}&token_type_hint=&resource=https%3A%2F%2Fexample.com"

    answer = gateway.post(INTROSPECT, data, content_type="application/x-www-form-urlencoded")

    assert answer.json["active"]


def test_asking_about_a_refresh_token_is_no_use_of_it(gateway, person):
    """It neither rotates, nor counts as reuse, nor ends anything, nor keeps the session from being idle."""
    before = person.call("GET", "/v1/me/sessions").json
    second = person.refresh()
    third = second.refresh()

    for _ in range(3):
        assert gateway.introspect(person.refresh_token) == INACTIVE
        assert gateway.introspect(third.refresh_token)["active"]

    assert third.is_accepted()
    after = third.call("GET", "/v1/me/sessions").json
    assert after["items"][0]["id"] == before["items"][0]["id"]
    assert third.refresh().is_accepted()


def test_the_parent_of_a_refresh_token_is_active_while_it_yields_its_successor(make_api):
    """Within the grace time it works, so it is active until its end; afterwards it is not."""
    api = make_api(REFRESH_GRACE_SECONDS="30")
    gateway, person = Gateway.of(api), api.someone()
    api.clock.stop()
    child = person.refresh()
    now_s = int(api.clock().timestamp())

    within = gateway.introspect(person.refresh_token)
    api.clock.tick(31)
    beyond = gateway.introspect(person.refresh_token)

    assert (within["active"], within["exp"]) == (True, now_s + 30)
    assert beyond == INACTIVE
    assert gateway.introspect(child.refresh_token)["active"]
    assert child.refresh().is_accepted()


def forged(person: Person) -> list[str]:
    """Tokens that nobody issued, near to good ones."""
    raw = base64.urlsafe_b64decode(person.refresh_token + "==")
    # Session and counter are right, the tag is not; the counter is the next; the session is somebody else's.
    flipped = [
        base64.urlsafe_b64encode(bytes([*raw[:at], raw[at] ^ 1, *raw[at + 1 :]])).rstrip(b"=").decode()
        for at in (51, 20, 19, 0)
    ]
    header, payload, _ = person.access.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    return [
        "x", "a.b.c", "..", "\x00", "ä", "\N{PILE OF POO}", "%00", "A" * 60_000, "A" * 70,
        person.access[:-4] + "AAAA", person.access + "=", person.access + " ", f"{none}.{payload}.",
        f"{header}.{payload}", person.refresh_token + "=", *flipped,
        person.session_id, person.claims()["jti"],
    ]  # fmt: skip


def test_whatever_is_not_one_of_ours_is_inactive_and_nothing_more(gateway, person):
    """Nobody learns why, and no session is harmed."""
    answers = [gateway.introspect(token) for token in forged(person)]

    assert answers == [INACTIVE] * len(answers)
    assert person.is_accepted()
    assert person.refresh().is_accepted()


def test_tokens_of_an_ended_session_are_inactive(gateway, person):
    """Both, on the very next request; another session of the user is not touched."""
    other = person.log_in()
    person.api.log_out(access=person.access)

    assert gateway.introspect(person.access) == INACTIVE
    assert gateway.introspect(person.refresh_token) == INACTIVE
    assert gateway.introspect(other.access)["active"]
    assert gateway.introspect(other.refresh_token)["active"]


@pytest.mark.parametrize("change", ["disabled", "deleted", "all sessions ended"])
def test_tokens_of_somebody_who_may_not_be_here_are_inactive(gateway, person, change):
    """Disabled, deleted, everything ended: in force at once."""
    admin = person.api.an_admin()
    path = f"/v1/users/{person.id}"
    if change == "disabled":
        admin.call("PATCH", path, json={"status": "disabled"})
    else:
        admin.call("DELETE", path if change == "deleted" else f"{path}/sessions")

    assert gateway.introspect(person.access) == INACTIVE
    assert gateway.introspect(person.refresh_token) == INACTIVE


def test_after_a_change_of_roles_only_new_access_tokens_are_active(gateway, person):
    """The refresh token lives on, and says the roles of now."""
    person.api.an_admin().call("PATCH", f"/v1/users/{person.id}", json={"roles": ["admin"]})

    assert gateway.introspect(person.access) == INACTIVE
    assert gateway.introspect(person.refresh_token)["roles"] == ["user", "admin"]
    assert gateway.introspect(person.refresh().access)["roles"] == ["user", "admin"]


def test_an_expired_token_is_inactive(make_api):
    """The access token after its life and the leeway, the refresh token after the idle time."""
    api = make_api(REDIS_AUTH_TOKEN_TTL="60", SESSION_IDLE_TTL="600", SESSION_MAX_TTL="900")
    gateway, person = Gateway.of(api), api.someone()

    api.clock.tick(66)
    assert gateway.introspect(person.access) == INACTIVE
    assert gateway.introspect(person.refresh_token)["active"]

    api.clock.tick(540)
    assert gateway.introspect(person.refresh_token) == INACTIVE


def test_access_tokens_are_checked_as_everywhere_and_counted_so(gateway, person):
    """By the same check, in the same figures; whoever is asked about needs no role, whoever asks no token."""
    before = checks_of(gateway.api)

    gateway.introspect(person.access)
    gateway.introspect("a.b.c")

    counted = {key: value - before.get(key, 0) for key, value in checks_of(gateway.api).items()}
    assert {key: value for key, value in counted.items() if value} == {
        ("active", "redis"): 1,
        ("invalid", "none"): 1,
    }


def checks_of(api: Api) -> dict[tuple[str, str], float]:
    """`authsvc_token_checks_total` by result and source."""
    api.prove_redis()
    text, _ = api.services.metrics.exposition()
    found = {}
    for line in text.decode().splitlines():
        if line.startswith("authsvc_token_checks_total{"):
            labels, _, value = line.partition("} ")
            result, source = (label.split('"')[1] for label in labels.split(","))
            found[result, source] = float(value)
    return found


def test_a_token_is_no_client(gateway, person):
    """A bearer of whatever role has no business here; and a client none elsewhere."""
    admin = person.api.an_admin()

    answer = person.api.call("POST", INTROSPECT, token=admin.access, data={"token": person.access})
    elsewhere = person.api.call("GET", "/v1/users", headers=gateway.headers)

    assert (answer.status_code, answer.json["error"]) == (401, "invalid_client")
    assert code_of(elsewhere) == "token_missing"
