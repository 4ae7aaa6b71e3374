"""A login in two steps: what a second factor opens, once, and what wrong ones lead to."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from redis import Redis
from sqlalchemy import text

from authsvc.api.frame.context import DEVICE_HEADER
from authsvc.settings import Settings
from authsvc.wiring.stores import open_database
from tests.api.driver import Api, Person, at_once, code_of, json_of
from tests.api.second_factors import (
    FACTORS,
    STEP_S,
    UNLIMITED,
    App,
    Guarded,
    begun,
    confirm,
    enrol,
    guarded,
    refused,
)
from tests.processes import wait_until
from tests.rig import development
from tests.servers import RedisServer, drop_database
from tests.servers.proxy import Mode, TcpProxy

if TYPE_CHECKING:
    from typing import Any

SETTINGS = UNLIMITED
NEW_PASSWORD = "a staple that no horse has seen"
#: NIST SP 800-63B allows so many wrong ones in a row.
MOST_FAILURES = 100


def sql(api: Api, statement: str, **values: Any) -> list[Any]:
    """What a statement of an operator's own finds, or does."""
    with closing(open_database(Settings.from_env(api.env))) as database, database.transaction() as connection:
        result = connection.execute(text(statement), values)
        return list(result) if result.returns_rows else []


def count_of(api: Api, table: str) -> int:
    """How many rows a table has."""
    ((count,),) = sql(api, f"SELECT count(*) FROM {table}")
    return int(count)


def test_without_a_factor_a_login_is_as_it_was(api):
    """One step."""
    person = api.someone()

    answer = person.call("GET", "/v1/me/factors")

    assert person.is_accepted()
    assert json_of(answer) == {"items": [], "recovery_codes_left": 0}


def test_an_app_is_added_with_its_first_code_and_recovery_codes_come_with_it(api):
    """Shown once: afterwards the list tells how many there are."""
    person = api.someone()
    enrolment = enrol(person, name="My phone")
    app = App(enrolment["secret"], api.clock)

    before = json_of(person.call("GET", "/v1/me/factors"))
    answer = confirm(person, enrolment["id"], app.code())
    after = json_of(person.call("GET", "/v1/me/factors"))

    assert enrolment["expires_in"] == 600
    assert len(enrolment["secret"]) == 32
    assert enrolment["uri"].startswith("otpauth://totp/127.0.0.1:person")
    assert f"secret={enrolment['secret']}" in enrolment["uri"]
    assert before == {"items": [], "recovery_codes_left": 0}
    codes = json_of(answer)["recovery_codes"]
    assert len(set(codes)) == 8
    assert all(len(code.replace("-", "")) == 24 for code in codes)
    (factor,) = after["items"]
    assert factor == {
        "id": enrolment["id"],
        "kind": "totp",
        "name": "My phone",
        "created_at": factor["created_at"],
        "last_used_at": None,
        "locked": False,
    }
    assert after["recovery_codes_left"] == 8


def test_nothing_of_a_login_exists_before_its_second_factor(api):
    """No session, no token, no last login, no device token (I46); then all of them, once."""
    them = guarded(api)
    sessions = count_of(api, "sessions")
    last_login = json_of(them.person.call("GET", "/v1/me"))["last_login"]

    first = json_of(begun(api.log_in(them.email, device_id="laptop-1")))

    assert first["expires_in"] == 300
    assert first["methods"] == ["totp", "recovery_code"]
    assert count_of(api, "sessions") == sessions
    assert json_of(them.person.call("GET", "/v1/me"))["last_login"] == last_login
    answer = them.answer(first["challenge"], code=them.next_code())
    assert answer.status_code == 200
    assert answer.headers[DEVICE_HEADER]
    person = Person(api=api, id=them.person.id, email=them.email, pair=json_of(answer))
    assert person.is_accepted()
    assert person.refresh().is_accepted()
    assert count_of(api, "sessions") == sessions + 1
    (current,) = [one for one in json_of(person.call("GET", "/v1/me/sessions"))["items"] if one["current"]]
    assert current["device_id"] == "laptop-1"
    assert json_of(person.call("GET", "/v1/me"))["last_login"] != last_login


def test_a_wrong_password_tells_nothing_of_second_factors(api):
    """The challenge is for those who know the password."""
    them = guarded(api)

    answer = api.log_in(them.email, "wrong horse battery staple")

    assert (answer.status_code, code_of(answer)) == (401, "invalid_credentials")


def test_a_challenge_opens_one_session(api):
    """Also with a code that is good: its id is used up."""
    them = guarded(api)
    challenge = them.challenge()
    assert them.answer(challenge, code=them.next_code()).status_code == 200

    assert refused(them.answer(challenge, code=them.next_code()))
    assert refused(them.answer(challenge, recovery_code=them.recovery_codes[0]))
    # Refused as a whole: the recovery code is not used up.
    assert them.answer(them.challenge(), recovery_code=them.recovery_codes[0]).status_code == 200


def test_a_step_opens_one_session_and_confirming_uses_it_up(api):
    """Neither the code of the confirmation nor an older one is good again; the next one is."""
    person = api.someone()
    api.clock.stop()
    enrolment = enrol(person)
    app = App(enrolment["secret"], api.clock)
    used = app.code()
    assert confirm(person, enrolment["id"], used).status_code == 200
    them = Guarded(person=person, app=app, recovery_codes=[])

    assert refused(them.answer(them.challenge(), code=used))
    assert refused(them.answer(them.challenge(), code=app.code(-1)))
    challenge = them.challenge()
    assert them.answer(challenge, code=app.code(1)).status_code == 200
    assert refused(them.answer(them.challenge(), code=app.code(1)))


@pytest.mark.parametrize(("steps", "status"), [(-2, 401), (-1, 200), (0, 200), (1, 200), (2, 401)])
def test_codes_of_the_step_before_and_after_are_taken(pg_api, steps, status):
    """Clocks differ a little; no code is good for longer."""
    them = guarded(pg_api)
    pg_api.clock.tick(10 * STEP_S)

    assert them.answer(them.challenge(), code=them.app.code(steps)).status_code == status


@pytest.mark.parametrize("code", ["", "12345", "1234567", "١٢٣٤٥٦", "12 345", "abcdef", "0x1234"])
def test_what_is_no_code_is_refused_like_a_wrong_one(pg_api, code):
    """The same answer for every cause."""
    them = guarded(pg_api)

    assert refused(them.answer(them.challenge(), code=code))


def test_a_recovery_code_works_once_however_it_is_typed(api):
    """Case, spaces and hyphens say nothing."""
    them = guarded(api)
    typed = f" {them.recovery_codes[3].lower().replace('-', ' ')} "

    first = them.answer(them.challenge(), recovery_code=typed)
    again = them.answer(them.challenge(), recovery_code=them.recovery_codes[3])

    assert first.status_code == 200
    assert refused(again)
    assert json_of(them.person.call("GET", "/v1/me/factors"))["recovery_codes_left"] == 7


def test_a_recovery_code_of_somebody_else_opens_nothing(api):
    """A digest is bound to its user."""
    them, other = guarded(api), guarded(api)

    assert refused(them.answer(them.challenge(), recovery_code=other.recovery_codes[0]))
    assert other.answer(other.challenge(), recovery_code=other.recovery_codes[0]).status_code == 200


def test_new_recovery_codes_kill_the_older_ones(api):
    """There are eight again."""
    them = guarded(api)
    person = them.log_in()

    answer = person.call("POST", "/v1/me/recovery-codes")

    assert answer.status_code == 201
    codes = json_of(answer)["recovery_codes"]
    assert len(codes) == 8
    assert refused(them.answer(them.challenge(), recovery_code=them.recovery_codes[0]))
    assert them.answer(them.challenge(), recovery_code=codes[0]).status_code == 200


def test_without_a_factor_there_are_no_recovery_codes(api):
    """They come with the first factor and go with the last."""
    answer = api.someone().call("POST", "/v1/me/recovery-codes")

    assert (answer.status_code, code_of(answer)) == (404, "not_found")


@pytest.mark.parametrize(
    "answer", [{}, {"code": "123456", "recovery_code": "x"}, {"code": 123456}, {"code": None}]
)
def test_exactly_one_answer_is_taken(pg_api, answer):
    """Anything else is a mistake of the caller, and no try."""
    them = guarded(pg_api)
    challenge = them.challenge()

    assert them.answer(challenge, **answer).status_code == 422
    assert tries(pg_api, them) == 0


def tries(api: Api, them: Guarded) -> int:
    """How many tries are counted."""
    address = them.email
    ((count,),) = sql(api, "SELECT factor_tries FROM users WHERE email = :email", email=address)
    return int(count)


def test_challenges_that_are_not_ours_are_refused_and_not_counted(pg_api):
    """Forged, cut, of another kind, or no base64 at all."""
    them = guarded(pg_api)
    good = them.challenge()
    other = "A" if good[20] != "A" else "B"
    bad = ["", "x", "\ud800", good[:-1], good + "A", good + "=", good[:20] + other + good[21:], "é" * 40]

    assert all(refused(them.answer(challenge, code=them.app.code())) for challenge in bad)
    assert tries(pg_api, them) == 0
    assert them.answer(good, code=them.next_code()).status_code == 200


@pytest.mark.parametrize("end", ["time", "password", "disable", "reset", "deleted"])
def test_a_challenge_dies_with_what_it_was_made_for(api, end):
    """Five minutes, another password, a disabled or deleted account, factors that are gone."""
    them, admin = guarded(api), api.an_admin()
    challenge = them.challenge()
    if end == "time":
        api.clock.tick(300)
    elif end == "password":
        api.services.account.set_password(them.email, NEW_PASSWORD)
    elif end == "disable":
        admin.call("PATCH", f"/v1/users/{them.person.id}", json={"status": "disabled"})
    elif end == "reset":
        assert admin.call("DELETE", f"/v1/users/{them.person.id}/factors").status_code == 204
    else:
        assert admin.call("DELETE", f"/v1/users/{them.person.id}").status_code == 204

    assert refused(them.answer(challenge, code=them.app.code()))
    assert refused(them.answer(challenge, recovery_code=them.recovery_codes[0]))


def test_five_wrong_answers_end_every_open_challenge(api):
    """Of whatever kind; a login begun after them goes on, and a right answer sets the count back."""
    them = guarded(api)
    challenges = [them.challenge() for _ in range(3)]

    wrong = [them.answer(challenges[number % 2], code=them.app.wrong()) for number in range(4)]
    wrong.append(them.answer(challenges[0], recovery_code="AAAA-" * 5 + "AAAA"))

    assert all(refused(answer) for answer in wrong)
    assert all(refused(them.answer(challenge, code=them.next_code())) for challenge in challenges)
    later, another = them.challenge(), them.challenge()
    assert all(refused(them.answer(later, code=them.app.wrong())) for _ in range(4))
    assert them.answer(later, code=them.next_code()).status_code == 200
    assert all(refused(them.answer(another, code=them.app.wrong())) for _ in range(4))
    assert them.answer(another, code=them.next_code()).status_code == 200


def test_of_100_guesses_over_20_challenges_five_are_judged(api):
    """However many come at once: they are counted before they are compared."""
    them = guarded(api)
    challenges = [them.challenge() for _ in range(20)]
    wrong = them.app.wrong()

    answers = at_once(lambda number: them.answer(challenges[number % 20], code=wrong), range(100))

    assert Counter(answer.status_code for answer in answers) == {401: 100}
    ((judged,),) = sql(
        api, "SELECT failures FROM factors JOIN users ON users.id = user_id WHERE email = :e", e=them.email
    )
    assert judged == 5
    assert all(refused(them.answer(challenge, code=them.next_code())) for challenge in challenges[:3])
    assert them.log_in().is_accepted()


def test_one_code_that_many_use_at_once_opens_one_session(api):
    """Each with a challenge of its own, as a thief beside the owner."""
    them = guarded(api)
    challenges = [them.challenge() for _ in range(50)]
    sessions, code = count_of(api, "sessions"), them.next_code()

    answers = at_once(lambda challenge: them.answer(challenge, code=code), challenges)

    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 49}
    assert count_of(api, "sessions") == sessions + 1


def test_one_recovery_code_that_many_use_at_once_opens_one_session(api):
    """The same."""
    them = guarded(api)
    challenges = [them.challenge() for _ in range(20)]

    answers = at_once(
        lambda challenge: them.answer(challenge, recovery_code=them.recovery_codes[0]), challenges
    )

    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 19}


def test_100_wrong_codes_in_a_row_lock_the_app(api):
    """Nothing unlocks it; a recovery code still opens a session, in which the app can be replaced."""
    them, other = guarded(api), guarded(api)
    sql(api, "UPDATE factors SET failures = :many", many=MOST_FAILURES)
    # As after the end of a process that had counted the last one, and written nothing more.
    assert refused(other.answer(other.challenge(), code=other.next_code()))
    sql(api, "UPDATE factors SET failures = :many", many=MOST_FAILURES - 2)
    challenge = them.challenge()
    assert refused(them.answer(challenge, code=them.app.wrong()))
    (listed,) = json_of(them.person.call("GET", "/v1/me/factors"))["items"]
    assert listed["locked"] is False

    assert refused(them.answer(challenge, code=them.app.wrong()))

    (listed,) = json_of(them.person.call("GET", "/v1/me/factors"))["items"]
    assert listed["locked"] is True
    first = json_of(begun(api.log_in(them.email)))
    assert first["methods"] == ["recovery_code"]
    assert refused(them.answer(first["challenge"], code=them.next_code()))
    assert them.answer(first["challenge"], recovery_code=them.recovery_codes[0]).status_code == 200


def test_a_right_code_sets_the_count_of_the_lock_back(api):
    """Only wrong ones in a row count."""
    them = guarded(api)
    sql(api, "UPDATE factors SET failures = :many", many=MOST_FAILURES - 1)

    assert them.log_in().is_accepted()
    assert refused(them.answer(them.challenge(), code=them.app.wrong()))
    assert them.log_in().is_accepted()


def test_wrong_ones_are_limited_by_account_and_by_known_device(make_api):
    """A stranger's wrong codes do not keep the owner out, whose device logged in before."""
    api = make_api(**FACTORS)
    them = guarded(api)
    answer = them.answer(them.challenge(), code=them.next_code())
    device = {DEVICE_HEADER: answer.headers[DEVICE_HEADER]}

    for _ in range(5):
        assert refused(them.answer(them.challenge(), code=them.app.wrong()))

    stopped = them.answer(them.challenge(), code=them.next_code())
    assert (stopped.status_code, code_of(stopped)) == (429, "rate_limited")
    assert int(stopped.headers["Retry-After"]) > 600
    assert them.answer(them.challenge(), recovery_code=them.recovery_codes[0]).status_code == 429
    renewed = them.answer(them.challenge(), code=them.next_code(), headers=device)
    assert renewed.status_code == 200
    known = {DEVICE_HEADER: renewed.headers[DEVICE_HEADER]}
    for _ in range(5):
        assert refused(them.answer(them.challenge(), code=them.app.wrong(), headers=known))
    assert them.answer(them.challenge(), code=them.next_code(), headers=known).status_code == 429


@pytest.mark.parametrize("loss", ["flush", "old dump"])
def test_a_loss_of_redis_makes_no_code_good_again(make_api, loss):
    """What is used up is used up in SQL: Redis may be empty, or as it was before the login."""
    with RedisServer() as redis, Redis.from_url(redis.url) as client:
        api = make_api(**UNLIMITED, REDIS_URL=redis.url)
        them = guarded(api)
        spare, challenge, code = them.challenge(), them.challenge(), them.next_code()
        dump = {key: client.dump(key) for key in client.scan_iter()}
        assert them.answer(challenge, code=code).status_code == 200

        client.flushall()
        for key, value in dump.items() if loss == "old dump" else ():
            client.restore(key, 0, value)
        api.prove_redis()

        assert refused(them.answer(challenge, code=code))
        assert refused(them.answer(spare, code=code))
        assert refused(them.answer(challenge, recovery_code=them.recovery_codes[0]))
        assert them.log_in().is_accepted()


def test_without_redis_a_recovery_code_goes_on_and_an_app_waits(make_api, postgres_server):
    """Six digits can be guessed where nothing counts; 120 bits cannot."""
    with RedisServer() as redis:
        api = make_api(**FACTORS, REDIS_URL=redis.url)
        them = guarded(api)
        challenges = [them.challenge() for _ in range(2)]
        code = them.next_code()
        redis.kill()

        waits = them.answer(challenges[0], code=code)
        goes_on = them.answer(challenges[1], recovery_code=them.recovery_codes[0])

    assert (waits.status_code, code_of(waits)) == (503, "unavailable")
    assert int(waits.headers["Retry-After"]) >= 1
    assert goes_on.status_code == 200


def test_without_sql_nothing_is_judged_and_nothing_used_up(postgres_server, template, redis_server, tmp_path):
    """503 for every kind of answer; the same code is good afterwards."""
    url = postgres_server.create_database(template=template)
    with ExitStack() as stack:
        stack.callback(drop_database, postgres_server.url, url)
        proxy = stack.enter_context(TcpProxy(url))
        settings = UNLIMITED | {"CACHE_KEY_PREFIX": "factors"}
        api = Api(development(proxy.url_for(url), redis_server.url, tmp_path, **settings))
        stack.callback(api.close)
        them = guarded(api)
        challenge, code = them.challenge(), them.next_code()
        proxy.switch(Mode.REFUSE)

        without = [
            them.answer(challenge, code=code),
            them.answer(challenge, recovery_code=them.recovery_codes[0]),
            them.person.call("GET", "/v1/me/factors"),
        ]
        proxy.switch(Mode.PASS)
        wait_until(
            lambda: them.person.call("GET", "/v1/me/factors").status_code == 200, what="SQL after the fault"
        )

        assert [(answer.status_code, code_of(answer)) for answer in without] == [(503, "unavailable")] * 3
        assert them.answer(challenge, code=code).status_code == 200
        assert them.answer(them.challenge(), recovery_code=them.recovery_codes[0]).status_code == 200


def test_a_process_without_second_factors_lets_nobody_past_them(make_api):
    """While they are being switched on: whoever has one is sent to another process."""
    api = make_api(**FACTORS)
    them, without = guarded(api), api.someone()
    with closing(Api({**api.env, "SECOND_FACTORS": "off"})) as old:
        stopped = old.log_in(them.email)

        assert (stopped.status_code, code_of(stopped)) == (503, "unavailable")
        assert old.log_in(without.email).status_code == 200


def test_a_login_beside_the_first_factor_is_over_or_was_before(pg_api):
    """Of a session that a password alone opened, none is alive once there is a factor."""
    for _ in range(5):
        person = pg_api.someone()
        enrolment = enrol(person)
        code = App(enrolment["secret"], pg_api.clock).code()
        calls = [partial(pg_api.log_in, person.email)] * 7
        calls.append(partial(confirm, person, enrolment["id"], code))

        *logins, confirmed = at_once(lambda call: call(), calls, threads=8)

        assert confirmed.status_code == 200
        for answer in logins:
            assert answer.status_code in {200, 401, 403}
            if answer.status_code == 200:
                assert pg_api.verify(json_of(answer)["access_token"]) == 401
        assert person.is_accepted()


def test_a_factor_of_somebody_else_does_not_exist(pg_api):
    """Nor does one of nobody, or what is no id."""
    them, other = guarded(pg_api), guarded(pg_api)
    (theirs,) = json_of(other.person.call("GET", "/v1/me/factors"))["items"]
    person = them.log_in()

    for factor_id in (str(uuid4()), theirs["id"], "x", theirs["id"].upper()):
        path = f"/v1/me/factors/{factor_id}"
        assert person.call("PATCH", path, json={"name": "mine"}).status_code == 404
        assert person.call("DELETE", path).status_code == 404
        assert confirm(person, factor_id, "123456").status_code == 404
