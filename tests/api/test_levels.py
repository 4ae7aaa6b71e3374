"""Levels: what tokens say of a login, what a step-up makes of it, and who asks for it (RFC 9470)."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.api.driver import Api, Person, at_once, code_of, json_of
from tests.api.gateway import Gateway
from tests.api.mailing import MAIL
from tests.api.second_factors import FACTORS, UNLIMITED, guarded, refused, verified
from tests.rig import PASSWORD
from tests.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from werkzeug.test import TestResponse

VERIFY = "/v1/auth/verify"
STEP_UP = "/v1/auth/step-up"
CLAIMS = {"acr", "amr", "auth_time"}
FRESH_S = 600


@pytest.fixture(scope="module")
def levels_api(make_module_api) -> Api:
    """An application with second factors, whose clock moves only when a test moves it."""
    made: Api = make_module_api(**UNLIMITED)
    made.clock.stop()
    return made


def now_s(api: Api) -> int:
    """The time of *api*, in whole seconds."""
    return int(api.clock().timestamp())


def level_in(person: Person) -> tuple[Any, Any, Any]:
    """The level in the access token."""
    claims = person.claims()
    return claims["acr"], claims["amr"], claims["auth_time"]


def step_up(person: Person, **proof: Any) -> TestResponse:
    """Ask for a step-up."""
    return person.call("POST", STEP_UP, json=proof)


def stepped_up(person: Person, **proof: Any) -> Person:
    """The same session with the access token of a step-up."""
    answer = step_up(person, **proof)
    assert answer.status_code == 200, answer.text
    pair = person.pair | {"access_token": json_of(answer)["access_token"]}
    return Person(api=person.api, id=person.id, email=person.email, pair=pair)


def asked_for(answer: TestResponse) -> str:
    """What the challenge of a refusal names."""
    assert (answer.status_code, code_of(answer)) == (401, "step_up_required"), answer.text
    challenge = answer.headers["WWW-Authenticate"]
    begin = 'Bearer error="insufficient_user_authentication"'
    assert challenge.startswith(begin)
    return challenge.removeprefix(begin).removeprefix(", ")


def test_a_login_with_a_password_is_aal1(levels_api):
    """All three claims, of the second of the login."""
    assert level_in(levels_api.someone()) == ("aal1", ["pwd"], now_s(levels_api))


def test_a_login_with_a_code_is_aal2(levels_api):
    """By the app or by a recovery code."""
    alice = guarded(levels_api)
    with_app = alice.log_in()
    challenge = alice.challenge()
    with_code = json_of(alice.answer(challenge, recovery_code=alice.recovery_codes[0]))

    of_code = Person(api=levels_api, id=alice.person.id, email=alice.email, pair=with_code)
    assert level_in(with_app) == level_in(of_code) == ("aal2", ["pwd", "otp", "mfa"], now_s(levels_api))


def test_a_refresh_keeps_the_level(levels_api):
    """Its time, too: a refresh proves nothing about anybody."""
    alice = guarded(levels_api).log_in()
    before = level_in(alice)
    levels_api.clock.tick(100)

    refreshed = alice.refresh()
    repeated = alice.refresh()

    assert level_in(refreshed) == level_in(repeated) == before


def test_confirming_a_factor_changes_no_level(levels_api):
    """The session stays as it was until it steps up."""
    alice = guarded(levels_api)
    before = level_in(alice.person)

    assert level_in(alice.person.refresh()) == before
    assert before[0] == "aal1"


def test_a_step_up_by_code_raises_the_level(levels_api):
    """The answer says what the token says; refreshes keep it; the token before is good as it was."""
    alice = guarded(levels_api)
    before = level_in(alice.person)
    code = alice.next_code()

    answer = step_up(alice.person, code=code)

    found = json_of(answer)
    stepped = Person(api=levels_api, id=alice.person.id, email=alice.email, pair=alice.person.pair | found)
    assert answer.status_code == 200
    assert found.keys() == {"access_token", "expires_in", *CLAIMS}
    assert level_in(stepped) == ("aal2", ["pwd", "otp", "mfa"], now_s(levels_api))
    assert level_in(stepped) == (found["acr"], found["amr"], found["auth_time"])
    assert found["expires_in"] == 3600
    assert stepped.claims()["sid"] == alice.person.session_id
    assert level_in(alice.person.refresh()) == level_in(stepped)
    assert stepped.is_accepted()
    assert alice.person.is_accepted()
    assert level_in(alice.person) == before


def test_a_step_up_by_recovery_code_is_one_use(levels_api):
    """In any case and grouping, and then never again."""
    alice = guarded(levels_api)
    typed = alice.recovery_codes[1].lower().replace("-", " ")

    assert stepped_up(alice.person, recovery_code=typed).claims()["acr"] == "aal2"
    assert refused(step_up(alice.person, recovery_code=alice.recovery_codes[1]))


def test_a_code_is_used_up_by_whatever_it_opened(levels_api):
    """A step-up, or the second step of a login: not both."""
    alice = guarded(levels_api)
    code = alice.next_code()

    stepped_up(alice.person, code=code)

    assert refused(step_up(alice.person, code=code))
    assert refused(alice.answer(alice.challenge(), code=code))


def test_a_password_renews_the_time_of_an_account_without_a_factor(levels_api):
    """Its class stays what a password is."""
    person = levels_api.someone()
    levels_api.clock.tick(50)

    assert level_in(stepped_up(person, password=PASSWORD)) == ("aal1", ["pwd"], now_s(levels_api))


def test_a_password_is_not_enough_for_an_account_with_a_factor(levels_api):
    """403, right or wrong: nothing is said about the password."""
    alice = guarded(levels_api)

    for password in (PASSWORD, "wrong"):
        answer = step_up(alice.person, password=password)
        assert (answer.status_code, code_of(answer)) == (403, "forbidden")


def test_a_wrong_password_is_told_and_ends_nothing(levels_api):
    """As for a change of password."""
    person = levels_api.someone()

    answer = step_up(person, password="wrong")

    assert (answer.status_code, code_of(answer)) == (403, "wrong_password")
    assert person.is_accepted()
    assert person.refresh().is_accepted()


def test_wrong_answers_end_no_session_but_every_open_challenge(levels_api):
    """Five of them, wherever they were given."""
    alice = guarded(levels_api)
    session, challenge = alice.log_in(), alice.challenge()

    assert all(refused(step_up(session, code=alice.app.wrong())) for _ in range(5))

    assert session.is_accepted()
    assert refused(alice.answer(challenge, code=alice.next_code()))
    assert stepped_up(session, code=alice.next_code()).is_accepted()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"password": PASSWORD, "code": "123456"},
        {"code": "123456", "recovery_code": "x"},
        {"code": 123456},
        {"code": None},
        {"credential": {}},
        {"code": "123456", "more": 1},
        [],
    ],
)
def test_a_step_up_takes_one_proof(levels_api, body):
    """None, two, or something else: 422 before anything is judged."""
    alice = guarded(levels_api)

    answer = alice.person.call("POST", STEP_UP, json=body)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")


@pytest.mark.parametrize("code", ["", "12345", "1234567", "12 345", "١٢٣٤٥٦", "\x00", "x" * 10_000, "\ud800"])
def test_whatever_is_no_code_is_a_wrong_one(levels_api, code):
    """Never a 500."""
    assert refused(step_up(guarded(levels_api).person, code=code))


def test_a_dead_session_cannot_step_up(levels_api):
    """Nor is the code used up that it showed."""
    alice = guarded(levels_api)
    living, dead = alice.log_in(), alice.log_in()
    levels_api.log_out(access=dead.access)
    code = alice.next_code()

    answer = step_up(dead, code=code)

    assert (answer.status_code, code_of(answer)) == (401, "token_invalid")
    assert stepped_up(living, code=code).is_accepted()


@pytest.mark.parametrize(
    ("query", "weak", "strong"),
    [
        ("acr=aal1", None, None),
        ("acr=aal2", 'acr_values="aal2"', None),
        ("acr=phr", 'acr_values="phr"', 'acr_values="phr"'),
        ("max_age=300", None, None),
        ("max_age=99", 'max_age="99"', 'max_age="99"'),
        ("max_age=100", None, None),
        ("max_age=0", 'max_age="0"', 'max_age="0"'),
        ("acr=aal2&max_age=100", 'max_age="100", acr_values="aal2"', None),
        ("acr=aal1&acr=aal2", 'acr_values="aal2"', None),
        ("acr=aal2&acr=aal1", 'acr_values="aal2"', None),
        ("max_age=99&max_age=300", 'max_age="99"', 'max_age="99"'),
        ("max_age=300&max_age=99", 'max_age="99"', 'max_age="99"'),
        ("role=user&acr=aal2", 'acr_values="aal2"', None),
        ("%61cr=aal2", 'acr_values="aal2"', None),
        ("acr=%61al2&x=1", 'acr_values="aal2"', None),
    ],
)
def test_a_gateway_can_ask_for_a_level(pair, query, weak, strong):
    """A class or a stronger one, an age, both; the strictest where repeated. 401 says what was asked for."""
    for person, expected in zip(pair, (weak, strong), strict=True):
        answer = person.call("GET", f"{VERIFY}?{query}")
        if expected is None:
            assert (answer.status_code, answer.data) == (200, b""), answer.text
        else:
            assert asked_for(answer) == expected


@pytest.fixture(scope="module")
def pair(levels_api) -> tuple[Person, Person]:
    """A session at aal1 and one at aal2, both 100 seconds old; the clock stands still."""
    alice = guarded(levels_api)
    strong = alice.log_in()
    weak = levels_api.someone()
    levels_api.clock.tick(100)
    return weak, strong


MALFORMED = [
    *("acr=", "acr", "acr=AAL2", "acr=aal3", "acr=aal2,phr", "acr=aal2%20phr", "acr=aal2&acr=x"),
    *("acr=aal2%00", "acr=aal2;max_age=1"),
    *("max_age=", "max_age", "max_age=-1", "max_age=+1", "max_age=1.5", "max_age=1e3", "max_age=%D9%A3"),
    *("max_age=01", "max_age=300s", "max_age=%20300", "max_age=9999999999", "max_age=300&max_age=x"),
]


@pytest.mark.parametrize("query", MALFORMED)
def test_what_cannot_be_asked_for_is_403(pair, query):
    """
    A mistake in a gateway's configuration grants no access, and asks for no step-up that would not help.
    """
    for person in pair:
        answer = person.call("GET", f"{VERIFY}?{query}")
        assert (answer.status_code, code_of(answer)) == (403, "forbidden")


def test_a_role_comes_before_a_level_and_the_token_before_both(pair):
    """No step-up is asked for that would not grant access."""
    weak, _ = pair

    missing_role = weak.call("GET", f"{VERIFY}?role=admin&acr=aal2")
    forged = weak.api.call("GET", f"{VERIFY}?acr=aal3", token="x")

    assert code_of(missing_role) == "forbidden"
    assert code_of(forged) == "token_invalid"


@pytest.mark.parametrize("query", ["acr=aal1", "max_age=9999", *MALFORMED[:2]])
def test_nothing_can_be_asked_for_while_there_are_no_second_factors(pg_api, query):
    """A gateway that asks for a level would otherwise rely on a protection that does not exist."""
    answer = pg_api.someone().call("GET", f"{VERIFY}?{query}")

    assert (answer.status_code, code_of(answer)) == (403, "forbidden")


def test_without_second_factors_there_is_nothing_of_this(pg_api):
    """No claims, no route, nothing in the description."""
    person = pg_api.someone()
    description = json_of(pg_api.call("GET", "/openapi.json"))
    verify = description["paths"][VERIFY]["get"]

    assert not CLAIMS & person.claims().keys()
    assert step_up(person, password=PASSWORD).status_code == 404
    assert STEP_UP not in description["paths"]
    assert [parameter["name"] for parameter in verify["parameters"]] == ["role"]


def test_with_second_factors_the_description_says_it(levels_api):
    """The parameters of a check, and the route."""
    description = json_of(levels_api.call("GET", "/openapi.json"))
    verify = description["paths"][VERIFY]["get"]

    assert {parameter["name"] for parameter in verify["parameters"]} == {"role", "acr", "max_age"}
    assert STEP_UP in description["paths"]


FRESH_ROUTES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/me/password", {"current_password": PASSWORD, "new_password": "another battery staple"}),
    ("POST", "/v1/me/email", {"email": "new@example.com", "password": PASSWORD}),
    ("GET", "/v1/me/export", None),
    ("DELETE", "/v1/me", {"password": PASSWORD}),
]
FACTOR_ROUTES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/me/factors/totp", {}),
    ("POST", "/v1/me/factors/totp/7d8b1d0e-0a53-4be4-93f9-0b0a8bfc1c11/confirm", {"code": "123456"}),
    ("DELETE", "/v1/me/factors/7d8b1d0e-0a53-4be4-93f9-0b0a8bfc1c11", None),
    ("POST", "/v1/me/recovery-codes", None),
]


@pytest.fixture(scope="module")
def fresh_api(make_module_api) -> Api:
    """The same with mails, so that every route is there."""
    made: Api = make_module_api(
        **MAIL | UNLIMITED | {"RATE_LIMIT_EXPORT": "off", "RATE_LIMIT_MAIL_IP": "off"}
    )
    return made


def options_of(body: dict[str, Any] | None) -> dict[str, Any]:
    """A request with *body*."""
    return {} if body is None else {"json": body}


@pytest.mark.parametrize(("method", "path", "body"), FRESH_ROUTES, ids=lambda part: str(part)[:20])
def test_what_ends_or_changes_an_account_asks_for_a_fresh_second_factor(fresh_api, method, path, body):
    """Of those who have one: strong and recent. 401 comes first, and a step-up opens the route."""
    alice = guarded(fresh_api, verified(fresh_api, fresh_api.someone()))
    weak = alice.person
    fresh_api.clock.tick(FRESH_S + 1)
    stale = stepped_up(weak, code=alice.next_code())
    fresh_api.clock.tick(FRESH_S + 1)

    for person in (weak, stale):
        answer = person.call(method, path, **options_of(body))
        assert asked_for(answer) == 'max_age="600", acr_values="aal2"'

    again = stepped_up(weak, code=alice.next_code())
    assert again.call(method, path, **options_of(body)).status_code in {200, 202, 204}


@pytest.mark.parametrize(("method", "path", "body"), FRESH_ROUTES, ids=lambda part: str(part)[:20])
def test_without_a_factor_these_routes_are_as_before(fresh_api, method, path, body):
    """However long ago the login was."""
    person = fresh_api.someone()
    fresh_api.clock.tick(FRESH_S + 1)

    assert person.call(method, path, **options_of(body)).status_code in {200, 202, 204}


@pytest.mark.parametrize(("method", "path", "body"), FACTOR_ROUTES, ids=lambda part: str(part)[:20])
def test_whoever_touches_factors_has_proven_who_they_are(fresh_api, method, path, body):
    """By their password, before they have a factor; a login is such a proof."""
    person = fresh_api.someone()
    assert person.call(method, path, **options_of(body)).status_code != 401 or path.endswith("confirm")
    fresh_api.clock.tick(FRESH_S + 1)

    assert asked_for(person.call(method, path, **options_of(body))) == 'max_age="600"'

    again = stepped_up(person, password=PASSWORD)
    assert code_or_none(again.call(method, path, **options_of(body))) != "step_up_required"


def test_a_fresh_proof_lasts_as_long_as_is_set(make_api):
    """FRESH_AUTH_SECONDS, to the second."""
    api = make_api(**UNLIMITED | {"FRESH_AUTH_SECONDS": "90"})
    api.clock.stop()
    person = api.someone()
    api.clock.tick(90)
    assert person.call("POST", "/v1/me/factors/totp", json={}).status_code == 201
    api.clock.tick(1)

    assert asked_for(person.call("POST", "/v1/me/factors/totp", json={})) == 'max_age="90"'


def code_or_none(answer: TestResponse) -> str | None:
    """The code of a refusal."""
    return code_of(answer) if answer.status_code >= 400 else None


@pytest.fixture(scope="module")
def admin(make_module_api) -> Person:
    """An admin at aal1, where ADMIN_ACR asks for aal2."""
    api: Api = make_module_api(**UNLIMITED | {"ADMIN_ACR": "aal2"})
    return api.an_admin()


def test_a_user_without_the_role_is_told_so_first(admin):
    """No step-up would make an admin of them."""
    assert code_of(admin.api.someone().call("GET", "/v1/users")) == "forbidden"


def test_an_admin_reaches_what_is_their_own_at_any_level(admin):
    """So that they can add the second factor that the other routes ask for."""
    for path in ("/v1/me", "/v1/me/factors", f"{VERIFY}?role=admin"):
        assert admin.call("GET", path).status_code == 200
    assert asked_for(admin.call("GET", "/v1/users")) == 'acr_values="aal2"'


def test_introspection_says_the_level(levels_api):
    """As the token says it; a refresh token says nothing of it."""
    gateway, alice = Gateway.of(levels_api), guarded(levels_api).log_in()

    of_access = gateway.introspect(alice.access)
    of_refresh = gateway.introspect(alice.refresh_token)

    assert {name: of_access[name] for name in sorted(CLAIMS)} == {
        "acr": "aal2",
        "amr": ["pwd", "otp", "mfa"],
        "auth_time": now_s(levels_api),
    }
    assert of_refresh["active"]
    assert not CLAIMS & of_refresh.keys()


def test_a_step_up_is_counted_and_written_down(levels_api):
    """In the metric by result, and in the caller's own events with the level."""
    alice = guarded(levels_api)
    before = results(levels_api)

    stepped_up(alice.person, code=alice.next_code())
    step_up(alice.person, code=alice.app.wrong())
    step_up(alice.person, password=PASSWORD)
    alice.person.call("POST", STEP_UP, data=b"{")

    after = results(levels_api)
    events = json_of(alice.person.call("GET", "/v1/me/events"))["items"]
    stepped = [event for event in events if event["action"] == "session.stepped_up"]
    assert {
        result: after[result] - before[result] for result in after if after[result] != before[result]
    } == {
        "ok": 1,
        "code_invalid": 1,
        "forbidden": 1,
        "malformed": 1,
    }
    assert [event["session_id"] for event in stepped] == [alice.person.session_id]


def results(api: Api) -> dict[str, float]:
    """The step-ups so far, by result."""
    text = api.call("GET", "/metrics", environ={"SERVER_PORT": api.env["METRICS_PORT"]}).text
    return {
        found[1]: float(found[2])
        for found in re.finditer(r'^authsvc_step_ups_total\{result="(\w+)"\} (\S+)$', text, re.MULTILINE)
    }


def test_many_step_ups_with_one_code_are_one(levels_api):
    """A row decides; the losers count as wrong answers, and the session lives."""
    alice = guarded(levels_api)
    code = alice.next_code()

    answers = at_once(lambda _: step_up(alice.person, code=code), range(50))

    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 49}
    assert alice.person.is_accepted()


def test_a_refresh_beside_a_step_up_loses_no_level(levels_api):
    """Whichever comes first: the session ends with the level, and no token says more than was shown."""
    for _ in range(5):
        alice = guarded(levels_api)
        code, session = alice.next_code(), alice.person

        requests: list[Callable[[], TestResponse]] = [
            partial(step_up, session, code=code),
            *[partial(levels_api.refresh, session.refresh_token)] * 3,
        ]

        answers = at_once(lambda request: request(), requests, threads=4)

        assert [answer.status_code for answer in answers] == [200] * 4
        again = levels_api.refresh(json_of(answers[1])["refresh_token"])
        claims = Person(api=levels_api, id=session.id, email=session.email, pair=json_of(again)).claims()
        assert (claims["acr"], claims["auth_time"]) == ("aal2", now_s(levels_api))


def test_nothing_of_a_step_up_outlives_a_reset_of_factors(levels_api):
    """Ten at once beside the reset: whatever they got is dead when it has answered."""
    alice = guarded(levels_api)
    session = alice.log_in()
    codes = alice.recovery_codes[:8]

    def act(code: str | None) -> TestResponse | None:
        if code is None:
            levels_api.services.second_factors.factors.reset(session.id, actor=None)
            return None
        return step_up(session, recovery_code=code)

    answers = [answer for answer in at_once(act, [*codes[:4], None, *codes[4:]], threads=9) if answer]

    assert {answer.status_code for answer in answers} <= {200, 401}
    tokens = [json_of(answer)["access_token"] for answer in answers if answer.status_code == 200]
    assert [levels_api.verify(token) for token in tokens] == [401] * len(tokens)
    assert not session.is_accepted()


def test_a_session_of_an_earlier_version_gets_a_level_by_a_step_up(levels_api):
    """Until then its tokens say nothing, and satisfy nothing; it was begun with a password."""
    person = levels_api.someone()
    with psycopg.connect(levels_api.env["DATABASE_URL"]) as connection:
        connection.execute(
            "UPDATE sessions SET acr = NULL, amr = NULL, auth_time = NULL WHERE id = %s", [person.session_id]
        )

    old = person.refresh()

    assert not CLAIMS & old.claims().keys()
    assert old.is_accepted()
    assert asked_for(old.call("GET", f"{VERIFY}?acr=aal1")) == 'acr_values="aal1"'
    assert asked_for(old.call("POST", "/v1/me/factors/totp", json={})) == 'max_age="600"'
    assert level_in(stepped_up(old, password=PASSWORD)) == ("aal1", ["pwd"], now_s(levels_api))
    assert level_in(old.refresh()) == ("aal1", ["pwd"], now_s(levels_api))


@pytest.fixture(scope="module")
def switched(make_module_api, levels_api) -> Iterator[Api]:
    """Another process over the same stores, where SECOND_FACTORS is still off."""
    off = {name: value for name, value in levels_api.env.items() if name != "SECOND_FACTORS"}
    with closing(Api(off)) as other:
        other.clock.stop()
        other.clock.tick((levels_api.clock() - other.clock()).total_seconds())
        yield other


def test_both_sides_of_the_switch_take_each_others_tokens(levels_api, switched):
    """While replicas are replaced one by one: nobody is logged out, a refresh at either goes on."""
    there = levels_api.someone()
    here = Person(api=switched, id=there.id, email=there.email, pair=there.pair)
    assert here.is_accepted()
    assert there.claims().keys() >= CLAIMS

    without = here.refresh()
    back = Person(api=levels_api, id=there.id, email=there.email, pair=without.pair)

    assert not CLAIMS & without.claims().keys()
    assert back.is_accepted()
    assert level_in(back.refresh())[:2] == ("aal1", ["pwd"])


def test_without_redis_a_recovery_code_steps_up_and_nothing_else_does(make_api):
    """What a guess could hit is not judged where nothing counts; the new token is good from SQL."""
    with RedisServer() as redis:
        api = make_api(**FACTORS, REDIS_URL=redis.url, RATE_LIMIT_LOGIN_ACCOUNT="10/15minutes")
        alice, bob = guarded(api), api.someone()
        code = alice.next_code()
        redis.kill()

        waiting = [step_up(alice.person, code=code), step_up(bob, password=PASSWORD)]
        stepped = stepped_up(alice.person, recovery_code=alice.recovery_codes[0])
        checked = stepped.call("GET", f"{VERIFY}?acr=aal2&max_age=300")

    assert [(answer.status_code, code_of(answer)) for answer in waiting] == [(503, "unavailable")] * 2
    assert checked.status_code == 200
