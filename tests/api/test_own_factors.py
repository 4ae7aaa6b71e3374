"""Second factors as their owners, admins and operators handle them, and what that does to sessions."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from threading import Event, Thread
from typing import TYPE_CHECKING, Self
from uuid import uuid4

import psycopg
import pytest

from authsvc.api.frame.context import DEVICE_HEADER
from authsvc.domain.accounts.factors import FactorId
from authsvc.domain.errors import TokenInvalid
from authsvc.domain.values.encryption import DataKeys
from authsvc.domain.values.identifiers import UserId
from authsvc.settings import Settings
from authsvc.wiring.preflight import factor_problems
from tests.api.driver import Api, MakeApi, Person, at_once, code_of, json_of, new_email
from tests.api.mailing import MAIL, Postbox, code_in
from tests.api.second_factors import (
    OTHER_KEY,
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
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SETTINGS = UNLIMITED


@pytest.fixture(scope="module")
def mailing(make_module_api: MakeApi) -> Api:
    """The same with mail."""
    limits = {"RATE_LIMIT_MAIL_IP": "off", "RATE_LIMIT_MAIL_ADDRESS": "off", "RATE_LIMIT_CODE_IP": "off"}
    return make_module_api(**UNLIMITED, **MAIL, **limits)


def listed(person: Person) -> list[dict[str, Any]]:
    """Their factors as they see them."""
    found: list[dict[str, Any]] = json_of(person.call("GET", "/v1/me/factors"))["items"]
    return found


def test_the_first_factor_ends_every_other_session(api, replica):
    """On the next request, in every process; the session that added it goes on as it was."""
    person = api.someone()
    others = [person.log_in() for _ in range(2)]
    before = person.claims()

    them = guarded(api, person)

    assert them.person.is_accepted()
    assert person.refresh().is_accepted()
    assert [one.is_accepted() for one in others] == [False, False]
    assert [replica.verify(one.access) for one in others] == [401, 401]
    assert all(api.refresh(one.refresh_token).status_code == 401 for one in others)
    assert before["epoch"] == them.log_in().claims()["epoch"]


def test_removing_the_last_factor_ends_every_other_session(api, replica):
    """Recovery codes go with it, and a password is enough again."""
    them = guarded(api)
    person, other = them.log_in(), them.log_in()
    (factor,) = listed(person)
    challenge = them.challenge()

    answer = person.call("DELETE", f"/v1/me/factors/{factor['id']}")

    assert answer.status_code == 204
    assert person.is_accepted()
    assert not other.is_accepted()
    assert replica.verify(other.access) == 401
    assert refused(them.answer(challenge, recovery_code=them.recovery_codes[0]))
    assert json_of(person.call("GET", "/v1/me/factors")) == {"items": [], "recovery_codes_left": 0}
    assert api.log_in(them.email).status_code == 200
    assert person.call("DELETE", f"/v1/me/factors/{factor['id']}").status_code == 404


def test_a_new_app_replaces_the_old_one_when_it_is_confirmed(api):
    """Until then the old one is in force; recovery codes and other sessions stay."""
    them = guarded(api)
    person, other = them.log_in(), them.log_in()
    enrolment = enrol(person, name="New phone")
    new = App(enrolment["secret"], api.clock)
    assert them.log_in().is_accepted()
    assert len(listed(person)) == 1

    answer = confirm(person, enrolment["id"], new.code())

    assert (answer.status_code, json_of(answer)) == (200, {"recovery_codes": None})
    assert other.is_accepted()
    (factor,) = listed(person)
    assert (factor["id"], factor["name"]) == (enrolment["id"], "New phone")
    assert refused(them.answer(them.challenge(), code=them.next_code()))
    replaced = Guarded(person=person, app=new, recovery_codes=them.recovery_codes)
    assert replaced.log_in().is_accepted()
    assert them.answer(them.challenge(), recovery_code=them.recovery_codes[0]).status_code == 200


def test_an_enrolment_ends_after_ten_minutes_with_the_next_one_and_when_it_is_confirmed(api):
    """One that is gone is confirmed by no code."""
    person = api.someone()
    first, second = enrol(person), enrol(person)

    gone = confirm(person, first["id"], App(first["secret"], api.clock).code())
    app = App(second["secret"], api.clock)
    wrong = confirm(person, second["id"], app.wrong())
    taken = confirm(person, second["id"], app.code())
    stronger = Guarded(person=person, app=app, recovery_codes=[]).log_in()
    again = confirm(stronger, second["id"], app.code())

    assert (gone.status_code, code_of(gone)) == (404, "not_found")
    assert refused(wrong)
    assert taken.status_code == 200
    assert (again.status_code, code_of(again)) == (404, "not_found")
    late = api.someone()
    enrolment = enrol(late)
    api.clock.tick(600)
    code = App(enrolment["secret"], api.clock).code()
    assert confirm(late.log_in(), enrolment["id"], code).status_code == 404


def test_one_enrolment_that_many_confirm_at_once_is_confirmed_once(api):
    """The others find it gone, or their code used; there is one set of recovery codes."""
    person = api.someone()
    enrolment = enrol(person)
    code = App(enrolment["secret"], api.clock).code()

    answers = at_once(lambda _: confirm(person, enrolment["id"], code), range(8), threads=8)

    assert all(answer.status_code in {401, 404} for answer in answers if answer.status_code != 200)
    assert [answer.status_code for answer in answers].count(200) == 1
    assert json_of(person.call("GET", "/v1/me/factors"))["recovery_codes_left"] == 8


def test_a_factor_is_named_and_forgets_its_name(api):
    """A name is a text of at most 200 characters, or none."""
    them = guarded(api)
    (factor,) = listed(them.person)
    path = f"/v1/me/factors/{factor['id']}"

    named = them.person.call("PATCH", path, json={"name": "Old phone"})
    bare = them.person.call("PATCH", path, json={"name": None})

    assert (named.status_code, json_of(named)["name"]) == (200, "Old phone")
    assert (bare.status_code, json_of(bare)["name"]) == (200, None)
    for wrong in ({}, {"name": "x" * 201}, {"name": "\x00"}, {"name": 1}, {"kind": "passkey"}):
        assert them.person.call("PATCH", path, json=wrong).status_code == 422


def test_an_admin_resets_the_factors_of_others_but_not_their_own(api, replica):
    """Every session ends, the epoch rises, known devices are forgotten; the password stays."""
    them = guarded(api)
    answer = them.answer(them.challenge(), code=them.next_code())
    device = answer.headers[DEVICE_HEADER]
    person = Person(api=api, id=them.person.id, email=them.email, pair=json_of(answer))
    admin = api.an_admin()

    done = admin.call("DELETE", f"/v1/users/{person.id}/factors")

    assert done.status_code == 204
    assert not person.is_accepted()
    assert not them.person.is_accepted()
    assert replica.verify(person.access) == 401
    again = api.post(
        "/v1/auth/login", {"email": them.email, "password": PASSWORD}, headers={DEVICE_HEADER: device}
    )
    assert again.status_code == 200
    pair = Person(api=api, id=person.id, email=them.email, pair=json_of(again))
    assert pair.claims()["epoch"] == person.claims()["epoch"] + 1
    assert again.headers[DEVICE_HEADER][:20] != device[:20], "a new device, not the known one"
    own = admin.call("DELETE", f"/v1/users/{admin.id}/factors")
    assert (own.status_code, code_of(own)) == (403, "forbidden")
    nobody = admin.call("DELETE", f"/v1/users/{uuid4()}/factors")
    assert (nobody.status_code, code_of(nobody)) == (404, "not_found")


def test_an_address_is_proven_before_the_account_has_a_factor(mailing):
    """While mail is on: an address that somebody else reads must not be locked behind their factor."""
    person, postbox = mailing.someone(), Postbox(mailing)

    early = person.call("POST", "/v1/me/factors/totp", json={})
    code = code_in(postbox.newest(person.email))
    assert person.call("POST", "/v1/auth/email/verify", json={"code": code}).status_code == 204

    assert (early.status_code, code_of(early)) == (403, "email_unverified")
    assert guarded(mailing, person).log_in().is_accepted()


def proven(api: Api) -> Person:
    """Somebody whose address is proven."""
    person = api.someone()
    api.services.users.vouch_for(UserId(person.id))
    return person


def test_with_a_factor_an_address_is_changed_without_a_code_to_the_old_one(mailing):
    """The factor, freshly shown, proves more than a mail; the old address hears of it afterwards."""
    postbox, new = Postbox(mailing), new_email()
    person = guarded(mailing, proven(mailing)).log_in()

    asked = person.call("POST", "/v1/me/email", json={"email": new, "password": PASSWORD})
    body = {"ticket": json_of(asked)["ticket"], "code": code_in(postbox.newest(new))}
    done = person.call("POST", "/v1/me/email/confirm", json=body)

    assert (asked.status_code, json_of(asked)["needs"]) == (202, ["code"])
    assert (done.status_code, json_of(done)["email"]) == (200, new)
    subjects = [mail.splitlines()[0] for mail in postbox.mails_to(person.email)]
    assert subjects == ["A second factor was added", "Your e-mail address was changed"]


def test_people_are_told_what_was_done_to_their_factors(mailing):
    """One notice for each: added, used, renewed, wrong five times, locked, removed, reset."""
    postbox, admin = Postbox(mailing), mailing.an_admin()
    them = guarded(mailing, proven(mailing))
    assert them.answer(them.challenge(), recovery_code=them.recovery_codes[0]).status_code == 200
    assert all(refused(them.answer(them.challenge(), code=them.app.wrong())) for _ in range(5))
    person = them.log_in()
    assert person.call("POST", "/v1/me/recovery-codes").status_code == 201
    (factor,) = listed(person)
    assert person.call("DELETE", f"/v1/me/factors/{factor['id']}").status_code == 204
    guarded(mailing, person)
    assert admin.call("DELETE", f"/v1/users/{person.id}/factors").status_code == 204

    subjects = [mail.splitlines()[0] for mail in postbox.mails_to(them.email)]

    assert subjects == [
        "A second factor was added",
        "A recovery code was used",
        "Wrong second factors at your account",
        "You have new recovery codes",
        "A second factor was removed",
        "A second factor was added",
        "Your second factors were removed",
    ]
    assert all(secret not in str(postbox.sent) for secret in (*them.recovery_codes, them.app.secret))


def test_the_trail_has_what_happened_to_factors(api):
    """Events by name and kind, without a code."""
    them, admin = guarded(api), api.an_admin()
    assert refused(them.answer(them.challenge(), code=them.app.wrong()))
    assert them.answer(them.challenge(), recovery_code=them.recovery_codes[0]).status_code == 200
    person = them.log_in()
    assert person.call("POST", "/v1/me/recovery-codes").status_code == 201
    assert admin.call("DELETE", f"/v1/users/{person.id}/factors").status_code == 204

    found = admin.call("GET", f"/v1/audit?user_id={person.id}&limit=50")

    told = [(one["action"], one["detail"]) for one in reversed(json_of(found)["items"])]
    assert [one for one in told if one[0].startswith(("factor", "second", "recovery"))] == [
        ("factor.added", "totp"),
        ("second_factor.failed", "totp"),
        ("recovery.used", None),
        ("recovery.renewed", None),
        ("factors.reset", None),
    ]
    assert them.recovery_codes[0] not in found.text


def test_an_export_has_the_factors_without_their_secrets(api):
    """Once the part is on, for those who have none, too."""
    them = guarded(api)

    found = json_of(them.log_in().call("GET", "/v1/me/export"))

    assert set(found) == {"account", "preferences", "sessions", "factors", "events"}
    assert found["factors"] == listed(them.person)
    assert them.app.secret not in str(found)


def test_operators_reset_factors_and_see_them(api, command, capsys, monkeypatch):
    """For somebody who lost everything; there need be no admin."""
    for name, value in api.env.items():
        monkeypatch.setenv(name, value)
    them = guarded(api)

    assert command(["users", "show", them.email]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert command(["users", "reset-factors", them.email.upper()]) == 0
    done = json.loads(capsys.readouterr().out)
    assert command(["users", "reset-factors", "nobody@example.com"]) == 1

    assert shown["factors"] == ["totp"]
    assert done == {"id": them.person.id, "email": them.email}
    assert "no user has the address" in capsys.readouterr().err
    assert not them.person.is_accepted()
    assert api.log_in(them.email).status_code == 200


def test_secrets_move_to_another_key_while_both_are_known(make_api, command, capsys, monkeypatch):
    """Codes are good before, between and after; without the old key, a start is refused until they moved."""
    api = make_api(**UNLIMITED)
    them = guarded(api)
    new = {**api.env, "DATA_KEY": OTHER_KEY}
    both = {**new, "DATA_KEY_PREVIOUS": UNLIMITED["DATA_KEY"]}
    (early,) = factor_problems(Settings.from_env(new))
    assert list(factor_problems(Settings.from_env(both))) == []
    for name, value in both.items():
        monkeypatch.setenv(name, value)

    assert command(["keys", "reencrypt"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert command(["keys", "reencrypt"]) == 0
    second = json.loads(capsys.readouterr().out)

    assert early.name == "DATA_KEY"
    assert "does not decrypt 1 secrets" in early.message
    current = DataKeys.of(OTHER_KEY.encode()).current
    assert [first, second] == [
        {"reencrypted": 1, "key_id": current},
        {"reencrypted": 0, "key_id": current},
    ]
    assert list(factor_problems(Settings.from_env(new))) == []
    old = them.answer(them.challenge(), code=them.next_code())
    assert (old.status_code, code_of(old)) == (503, "unavailable"), "the old key alone reads nothing more"
    api.close()
    renewed = make_api(**UNLIMITED | {"DATABASE_URL": api.env["DATABASE_URL"], "DATA_KEY": OTHER_KEY})
    renewed.clock.tick(60)
    them = Guarded(person=them.person, app=App(them.app.secret, renewed.clock), recovery_codes=[])
    challenge = json_of(begun(renewed.log_in(them.email)))["challenge"]
    assert them.answer(challenge, api=renewed, code=them.app.code()).status_code == 200


def test_a_key_is_changed_under_load_without_a_failure(make_api, command, capsys, monkeypatch):
    """
    Two people add apps and log in with them, again and again, while two replicas change the key.

    First both know the new key, then both encrypt under it, then the rest is moved, then the old one is gone.
    """
    first = make_api(**UNLIMITED)
    old, data = UNLIMITED["DATA_KEY"], first.env
    steps = [
        {**data, "DATA_KEY": old, "DATA_KEY_PREVIOUS": OTHER_KEY},
        {**data, "DATA_KEY": OTHER_KEY, "DATA_KEY_PREVIOUS": old},
        {**data, "DATA_KEY": OTHER_KEY},
    ]
    with ExitStack() as stack, ExitStack() as rounds:
        replicas = [first, stack.enter_context(closing(Api(data)))]
        people = [Rounds(replicas, first.someone()) for _ in range(2)]
        for person in people:
            rounds.enter_context(person)
        for number, env in enumerate(steps):
            for place in range(len(replicas)):
                replicas[place] = stack.enter_context(closing(Api(env)))
                for person in people:
                    person.go_on()
            if number == 1:
                for name, value in env.items():
                    monkeypatch.setenv(name, value)
                assert command(["keys", "reencrypt"]) == 0
                for person in people:
                    person.go_on()
        monkeypatch.setenv("DATA_KEY_PREVIOUS", old)
        assert command(["keys", "reencrypt"]) == 0

    moved = [json.loads(line)["reencrypted"] for line in capsys.readouterr().out.splitlines()]
    assert [person.refused for person in people] == [[], []]
    assert all(person.done >= 7 for person in people)
    assert moved[1] == 0, "after the first run there was nothing left under the old key"


class Rounds:
    """Somebody who replaces their app and logs in with it, over and over, at one replica or another."""

    def __init__(self, replicas: list[Api], person: Person) -> None:
        self.replicas, self.person = replicas, person
        self.refused: list[str] = []
        self.done = 0
        self._ends = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def go_on(self) -> None:
        """Wait for two rounds more: one of them began after the call."""
        wanted = self.done + 2
        wait_until(lambda: self.done >= wanted or not self._thread.is_alive(), what="two rounds more")

    def _run(self) -> None:
        while not self._ends.is_set() and not self.refused:
            self._round()
            self.done += 1

    def _round(self) -> None:
        enrolment = self._ask("POST", "/v1/me/factors/totp", 201, {})
        app = App(enrolment["secret"], self.replicas[0].clock)
        path = f"/v1/me/factors/totp/{enrolment['id']}/confirm"
        self._ask("POST", path, 200, {"code": app.code()})
        login = {"email": self.person.email, "password": PASSWORD}
        challenge = self._ask("POST", "/v1/auth/login", 403, login)["challenge"]
        answer = {"challenge": challenge, "code": app.code(1)}
        self.person.pair = self._ask("POST", "/v1/auth/login/second", 200, answer)

    def _ask(self, method: str, path: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
        replica = self.replicas[self.done % 2 if path.endswith("confirm") else (self.done + 1) % 2]
        answer = replica.call(method, path, token=self.person.access, json=body)
        if answer.status_code != status:
            self.refused.append(f"{path}: {answer.text}")
        return json_of(answer)


def test_after_the_loss_of_the_key_people_get_in_with_a_recovery_code(make_api):
    """The apps are removed by hand, as the page on secrets says; a password alone is still not enough."""
    lost = make_api(**UNLIMITED)
    them = guarded(lost)
    lost.close()
    new = {**UNLIMITED, "DATABASE_URL": lost.env["DATABASE_URL"], "DATA_KEY": OTHER_KEY}
    (problem,) = factor_problems(Settings.from_env({**lost.env, **new}))
    with psycopg.connect(lost.env["DATABASE_URL"]) as connection:
        connection.execute("DELETE FROM factors WHERE kind = 'totp'")

    assert problem.name == "DATA_KEY"
    assert list(factor_problems(Settings.from_env({**lost.env, **new}))) == []
    api = make_api(**new)
    refusal = json_of(begun(api.log_in(them.email)))
    assert refusal["methods"] == ["recovery_code"]
    code = them.recovery_codes[0]
    answer = them.answer(refusal["challenge"], api=api, recovery_code=code)
    assert answer.status_code == 200
    again = guarded(api, Person(api=api, id=them.person.id, email=them.email, pair=json_of(answer)))
    assert again.log_in().is_accepted()


def test_switching_off_is_refused_while_anybody_has_a_factor(make_api, command, capsys, monkeypatch):
    """Their passwords alone would let people in; afterwards it starts."""
    api = make_api(**UNLIMITED)
    off = Settings.from_env({**api.env, "SECOND_FACTORS": "off"})
    assert list(factor_problems(off)) == []
    enrol(api.someone())
    assert list(factor_problems(off)) == []
    them = guarded(api)

    (problem,) = factor_problems(off)
    for name, value in {**api.env, "SECOND_FACTORS": "off"}.items():
        monkeypatch.setenv(name, value)
    assert command(["config", "check", "--connect"]) == 1
    assert "SECOND_FACTORS is off, and accounts have second factors" in capsys.readouterr().err
    api.services.second_factors.factors.reset(them.person.id, actor=None)

    assert problem.name == "SECOND_FACTORS"
    assert list(factor_problems(off)) == []


@pytest.mark.parametrize("act", ["confirm", "remove", "renew"])
def test_a_request_that_was_checked_before_its_session_ended_changes_no_factor(api, act):
    """It changes nothing after the end: else it would add a factor of a thief after the owner's reset."""
    them = guarded(api)
    person = them.log_in()
    (factor,), enrolment = listed(person), enrol(person)
    found, token = api.services.second_factors, api.services.checks.check(person.access)
    code = App(enrolment["secret"], api.clock).code()
    acts: dict[str, Callable[[], object]] = {
        "confirm": lambda: found.enrolments.confirm(token, FactorId(enrolment["id"]), code),
        "remove": lambda: found.factors.remove(token, FactorId(factor["id"])),
        "renew": lambda: found.factors.renew_codes(token),
    }
    assert person.call("POST", "/v1/auth/logout").status_code == 204

    with pytest.raises(TokenInvalid):
        acts[act]()

    assert [one["id"] for one in listed(them.log_in())] == [factor["id"]]
    assert them.answer(them.challenge(), recovery_code=them.recovery_codes[0]).status_code == 200
