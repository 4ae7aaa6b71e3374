"""POST /v1/auth/login."""

from __future__ import annotations

import re

import psycopg
import pytest

from authsvc.domain.values.identifiers import is_id
from tests.api.driver import code_of, new_email
from tests.rig import PASSWORD, operator_of


def test_a_login_gives_a_pair_of_tokens(api):
    """RFC 6749 §5.1, with the session's id and the refresh token's life."""
    person = api.someone()

    answer = api.log_in(person.email)

    pair = answer.json
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert set(pair) == {
        "access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in", "session_id",
    }  # fmt: skip
    assert (pair["token_type"], pair["expires_in"]) == ("Bearer", 3600)
    assert 604_790 <= pair["refresh_expires_in"] <= 604_800
    assert is_id(pair["session_id"])
    assert api.verify(pair["access_token"]) == 200


def test_each_login_is_a_session_of_its_own(api):
    """Two logins share no token and no session."""
    one = api.someone()
    two = one.log_in()

    assert one.session_id != two.session_id
    assert one.access != two.access
    assert one.refresh_token != two.refresh_token
    assert one.is_accepted()
    assert two.is_accepted()


def test_an_address_logs_in_however_it_is_spelled(api):
    """One canonical form, the same as at registration."""
    person = api.someone()

    for spelling in (person.email.upper(), f"  {person.email}\t"):
        assert api.log_in(spelling).status_code == 200


def test_the_login_is_noted(api):
    """``last_login`` is when it was; the session knows the device, the address and the client."""
    person = api.someone()
    assert person.call("GET", "/v1/me").json["last_login"] is not None
    headers = {"User-Agent": "tests/1.0 \x85\u00ad(ü)"}
    body = {"email": person.email, "password": PASSWORD, "device_id": "phone-7"}

    answer = api.post("/v1/auth/login", body, ip="2001:db8::7", headers=headers)

    (session,) = [
        one
        for one in person.call("GET", "/v1/me/sessions").json["items"]
        if one["id"] == answer.json["session_id"]
    ]
    assert (session["device_id"], session["ip"], session["user_agent"]) == (
        "phone-7", "2001:db8::7", "tests/1.0 (ü)",
    )  # fmt: skip


@pytest.mark.parametrize("agent", ["x" * 5000, "", "\x01\x02", "ÿ" * 600])
def test_no_user_agent_breaks_a_login(pg_api, agent):
    """It is cut and cleaned, whatever it is."""
    person = pg_api.someone()

    answer = pg_api.post(
        "/v1/auth/login",
        {"email": person.email, "password": PASSWORD},
        headers={"User-Agent": agent},
    )

    assert answer.status_code == 200


def without_ids(answer) -> tuple[object, ...]:
    """What may not differ between two failures: all but the request id."""
    headers = sorted((name, value) for name, value in answer.headers if name != "X-Request-Id")
    body = {name: value for name, value in answer.json.items() if name != "request_id"}
    return answer.status_code, headers, body


def test_every_failure_looks_the_same(api):
    """Unknown address, wrong password, disabled user with the right one: same status, headers and body."""
    person, disabled = api.someone(), api.someone()
    api.services.users.change_roles_or_status(disabled.id, roles=None, status="disabled", actor=None)

    failures = [
        api.log_in(new_email()),
        api.log_in(person.email, "wrong horse battery staple"),
        api.log_in(disabled.email),
        api.log_in(disabled.email, "wrong horse battery staple"),
        api.log_in("no address at all"),
        api.log_in("", ""),
    ]

    assert len({str(without_ids(answer)) for answer in failures}) == 1
    assert failures[0].status_code == 401
    assert code_of(failures[0]) == "invalid_credentials"
    assert failures[0].headers["WWW-Authenticate"].startswith("Bearer")


def hashes(api) -> float:
    """How many passwords were hashed or verified so far."""
    scrape = api.call("GET", "/metrics", environ={"SERVER_PORT": api.env["METRICS_PORT"]}).text
    found = re.search(r"^authsvc_password_hash_seconds_count (\S+)$", scrape, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_every_login_does_the_hashing_work_exactly_once(api):
    """Right or wrong, unknown, disabled or no address at all: neither no work nor twice tells them apart."""
    person, disabled = api.someone(), api.someone()
    api.services.users.change_roles_or_status(disabled.id, roles=None, status="disabled", actor=None)
    wrong = "wrong horse battery staple"
    attempts = [
        (person.email, PASSWORD),
        (person.email, wrong),
        (disabled.email, PASSWORD),
        (new_email(), wrong),
        ("no address at all", wrong),
        ("", ""),
        (new_email(), "nul\x00"),
    ]

    work = []
    for email, password in attempts:
        before = hashes(api)
        api.log_in(email, password)
        work.append(hashes(api) - before)

    assert work == [1.0] * len(attempts)


@pytest.mark.parametrize(
    "address",
    ["", "x", "a@b@c", "ä@example.com", "nul\x00@example.com", "half\ud800@example.com", "x" * 60_000],
)
def test_an_address_of_wrong_syntax_is_an_unknown_one(pg_api, address):
    """401 like any other; only another JSON type is a mistake in form."""
    answer = pg_api.log_in(address)

    assert (answer.status_code, code_of(answer)) == (401, "invalid_credentials")


@pytest.mark.parametrize(
    "password", ["", "\x00", "a\ud800b", PASSWORD + "\x00", "\x00" + PASSWORD, "x" * 60_000, PASSWORD * 50]
)
def test_any_text_is_a_wrong_password(pg_api, password):
    """NUL, half a surrogate pair, any length: an ordinary failure."""
    person = pg_api.someone()

    answer = pg_api.log_in(person.email, password)

    assert (answer.status_code, code_of(answer)) == (401, "invalid_credentials")


def test_the_password_is_compared_in_nfc(pg_api):
    """Composed at one keyboard, decomposed at another: one password."""
    email = new_email()
    pg_api.register(email, "caf\u00e9 au lait please")

    assert pg_api.log_in(email, "cafe\u0301 au lait please").status_code == 200


@pytest.mark.parametrize("field", ["email", "password"])
@pytest.mark.parametrize("value", [None, 1, True, [], {}, ["x"]])
def test_another_type_is_a_mistake_in_form(pg_api, field, value):
    """422, and the field is named."""
    body = {"email": "a@example.com", "password": PASSWORD, field: value}

    answer = pg_api.post("/v1/auth/login", body)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert list(answer.json["errors"]) == [field]


@pytest.mark.parametrize("device_id", ["a\x00", "\udfff", "x" * 201, 5])
def test_a_wrong_device_id_is_refused(pg_api, device_id):
    """As at registration."""
    person = pg_api.someone()

    answer = pg_api.log_in(person.email, device_id=device_id)

    assert (answer.status_code, list(answer.json["errors"])) == (422, ["device_id"])


def test_the_token_never_outlives_its_session(make_api):
    """``exp`` is the session's end where that comes first, and ``expires_in`` says so."""
    api = make_api(SESSION_MAX_TTL="3600", SESSION_IDLE_TTL="3600", REDIS_AUTH_TOKEN_TTL="3000")
    api.clock.stop()
    person = api.someone()
    assert person.pair["expires_in"] == 3000
    api.clock.tick(1800)

    late = person.refresh()

    assert late.pair["expires_in"] == 1800
    assert late.claims()["exp"] == person.claims()["iat"] + 3600
    assert late.pair["refresh_expires_in"] == 1800


def test_the_session_unused_for_longest_gives_way(make_api):
    """At most so many a user; a refresh is a use, a check is none."""
    api = make_api(SESSION_MAX_PER_USER="3")
    oldest = api.someone()
    api.clock.tick(1)
    middle = oldest.log_in()
    api.clock.tick(1)
    newest = oldest.log_in()
    api.clock.tick(1)
    oldest = oldest.refresh()
    assert middle.is_accepted()
    api.clock.tick(1)

    one_more = oldest.log_in()

    assert [person.is_accepted() for person in (oldest, middle, newest, one_more)] == [
        True,
        False,
        True,
        True,
    ]
    assert code_of(api.refresh(middle.refresh_token)) == "session_ended"
    assert len(oldest.call("GET", "/v1/me/sessions").json["items"]) == 3


def test_redis_holds_no_secret(pg_api):
    """Neither names nor values of keys contain a token, a password or its hash; names no address either."""
    person = pg_api.someone()
    person.call("GET", "/v1/me")
    with psycopg.connect(pg_api.env["DATABASE_URL"]) as connection:
        query = "SELECT password_hash FROM users WHERE id = %s"
        ((password_hash,),) = connection.execute(query, [person.id]).fetchall()

    with operator_of(pg_api.env) as redis:
        keys = list(redis.scan_iter(f"{pg_api.env['CACHE_KEY_PREFIX']}:*"))
        values = {key: redis.get(key) for key in keys if redis.type(key) == "string"}
        # Whose data it is holds for as long as there are any.
        lives = {key: redis.ttl(key) for key in keys if not key.endswith(":auth:installation")}

    assert any(f":auth:token:{person.claims()['jti']}" in key for key in keys)
    assert any(f":user:{person.id}" in key for key in keys)
    for secret in (person.access, person.access.split(".")[2], person.refresh_token, PASSWORD, password_hash):
        assert secret not in str(keys) + str(values)
    assert -1 not in lives.values()
