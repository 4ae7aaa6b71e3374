"""What passkeys leave behind and need: events, notices, warnings, figures; and what goes on without Redis."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from authsvc.settings import Settings
from authsvc.store.tables import users
from authsvc.wiring.preflight import stored_warnings
from authsvc.wiring.stores import open_database
from tests.api.driver import Api, code_of, json_of
from tests.api.mailing import MAIL, Postbox, code_in
from tests.api.passkeys import LOGIN, ME, PASSKEYS, SECOND, Owner, an_owner, sign_in
from tests.authenticator import Lies
from tests.processes import wait_until
from tests.servers.proxy import Mode, TcpProxy
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from tests.api.driver import MakeApi, Person


@pytest.fixture(scope="module")
def pg_site(make_module_api: MakeApi) -> Api:
    """Share an application with passkeys."""
    return make_module_api(**PASSKEYS)


@pytest.fixture(scope="module")
def mailing_site(make_module_api: MakeApi) -> Api:
    """Share one that sends mails, too."""
    return make_module_api(**PASSKEYS, **MAIL)


def proven(api: Api) -> Person:
    """A new user who has proven their address."""
    person = api.someone()
    code = code_in(Postbox(api).newest(person.email))
    assert person.call("POST", "/v1/auth/email/verify", json={"code": code}).status_code == 204
    return person


def events(person: Person) -> list[str]:
    """What they are told of their own account, the newest first."""
    return [one["action"] for one in json_of(person.call("GET", "/v1/me/events"))["items"]]


def test_a_copied_passkey_is_written_down_and_its_owner_is_told(mailing_site):
    """One event and one notice, however often it is tried; it is shown as locked, and not offered."""
    owner, postbox = Owner(proven(mailing_site)), Postbox(mailing_site)
    assert owner.register().status_code == 201
    owner.log_in()

    answers = [owner.log_in(Lies(counter=1)) for _ in range(3)]
    wait_until(lambda: "factor.locked" in events(owner.person), what="the event is stored")

    assert {code_of(answer) for answer in answers} == {"code_invalid"}
    assert events(owner.person).count("factor.locked") == 1
    (notice,) = [text for text in postbox.mails_to(owner.person.email) if "locked" in text]
    assert "copied" in notice
    (factor,) = json_of(owner.person.call("GET", "/v1/me/factors"))["items"]
    assert factor["locked"] is True
    assert owner.person.call("POST", "/v1/auth/step-up/options").status_code == 404
    assert json_of(mailing_site.log_in(owner.person.email))["methods"] == ["recovery_code"]


def test_a_new_passkey_is_written_down_and_its_owner_is_told(mailing_site):
    """Whoever did not add it hears of it."""
    owner, postbox = Owner(proven(mailing_site)), Postbox(mailing_site)

    assert owner.register().status_code == 201
    wait_until(lambda: "factor.added" in events(owner.person), what="the event is stored")

    assert [text for text in postbox.mails_to(owner.person.email) if "second factor was added" in text]


def test_an_address_is_proven_before_there_is_a_passkey(mailing_site):
    """Otherwise somebody could lock the owner of an address out of it."""
    person = mailing_site.someone()

    answer = person.call("POST", f"{ME}/options")

    assert (answer.status_code, code_of(answer)) == (403, "email_unverified")


def test_an_address_that_is_not_proven_any_more_keeps_a_passkey_out(mailing_site):
    """An operator set another one: as at a login with the password, it must be proven first."""
    owner = Owner(proven(mailing_site))
    assert owner.register().status_code == 201

    with variant(mailing_site, EMAIL_VERIFICATION="required") as strict:
        good = sign_in(strict, owner.assertion())
        set_unproven(mailing_site, owner.person)
        answer = sign_in(strict, owner.assertion())

    assert good.status_code == 200
    assert (answer.status_code, code_of(answer)) == (403, "email_unverified")


def variant(api: Api, **changes: str) -> closing[Api]:
    """The application over the stores of *api* with other settings."""
    return closing(Api({**api.env, **changes}, timings=UNHURRIED))


def set_unproven(api: Api, person: Person) -> None:
    """What an operator's change of an address does to it."""
    with closing(open_database(Settings.from_env(api.env))) as database, database.transaction() as connection:
        connection.execute(update(users).where(users.c.id == person.id).values(email_verified=False))


def test_a_passkey_goes_on_without_redis(make_api, redis_server):
    """Uncounted, and with a session: registering, signing in alone, and as a second factor."""
    with TcpProxy(redis_server.url) as proxy:
        limits = {"RATE_LIMIT_LOGIN_IP": "3/hour"}
        url = proxy.url_for(redis_server.url)
        api = make_api(**PASSKEYS, **limits, REDIS_URL=url)
        owner = an_owner(api)
        challenge = owner.challenge()
        counted = [owner.log_in().status_code for _ in range(2)]

        proxy.switch(Mode.REFUSE)
        alone = [owner.log_in().status_code for _ in range(3)]
        second = owner.finish(challenge, owner.second(challenge))
        another = owner.register()
        proxy.switch(Mode.PASS)

    assert counted == [200, 429]
    assert alone == [200] * 3
    assert second.status_code == 200
    assert another.status_code == 201


def test_without_sql_nothing_is_decided(make_api, postgres_server):
    """503, and the assertion is as good as before; options for anybody need no store."""
    with TcpProxy(postgres_server.url) as proxy:
        api = make_api(**PASSKEYS)
        with variant(api, DATABASE_URL=proxy.url_for(api.env["DATABASE_URL"])) as behind:
            owner = an_owner(api)
            assertion = owner.assertion()

            proxy.switch(Mode.REFUSE)
            answer = sign_in(behind, assertion)
            begun = behind.call("POST", f"{LOGIN}/options")
            proxy.switch(Mode.PASS)

    assert (answer.status_code, code_of(answer)) == (503, "unavailable")
    assert begun.status_code == 200
    assert sign_in(api, assertion).status_code == 200


def test_attempts_to_sign_in_count_for_the_address_that_makes_them(make_api):
    """With those that use a password, in one count."""
    api = make_api(**PASSKEYS, RATE_LIMIT_LOGIN_IP="4/hour")
    owner = an_owner(api)

    answers = [owner.log_in(Lies(rp_id="example.org")) for _ in range(3)]
    elsewhere = owner.log_in(ip="198.51.100.7")

    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert owner.log_in().status_code == 429
    assert elsewhere.status_code == 200


def test_another_rp_id_makes_passkeys_useless_and_start_says_so(pg_site):
    """They stay second factors, which nothing but a recovery code answers."""
    owner = an_owner(pg_site)
    other = {"WEBAUTHN_RP_ID": "example.net", "WEBAUTHN_ORIGINS": "https://example.net"}

    with variant(pg_site, **other) as api:
        asked = json_of(api.log_in(owner.person.email))
        options = api.post(f"{SECOND}/options", {"challenge": asked["challenge"]})
        warnings = stored_warnings(Settings.from_env(api.env), UNHURRIED)

    assert asked["methods"] == ["recovery_code"]
    assert options.status_code == 404
    assert stored_warnings(Settings.from_env(pg_site.env), UNHURRIED) == []
    (warning,) = warnings
    assert warning.startswith("WEBAUTHN_RP_ID is example.net, and passkeys belong to another one (")


def test_without_an_rp_id_there_are_no_passkeys(pg_site):
    """No route, no word in the description; who has one needs a recovery code beside the password."""
    owner = an_owner(pg_site)
    assertion = owner.assertion()
    env = {name: value for name, value in pg_site.env.items() if not name.startswith("WEBAUTHN_")}

    with closing(Api(env, timings=UNHURRIED)) as api:
        asked = json_of(api.log_in(owner.person.email))
        answer = api.post(SECOND, {"challenge": asked["challenge"], "credential": assertion})
        paths = [f"{LOGIN}/options", LOGIN, ME, f"{ME}/options", f"{SECOND}/options"]
        statuses = {api.post(path, {}, token=owner.person.access).status_code for path in paths}
        described = json_of(api.call("GET", "/openapi.json"))["paths"]

    assert asked["methods"] == ["recovery_code"]
    assert (answer.status_code, code_of(answer)) == (401, "code_invalid")
    assert statuses == {404}
    assert not [path for path in described if "passkey" in path or "webauthn" in path]


def test_logins_and_factors_are_counted(pg_site):
    """By their result, as those of other methods are."""
    owner = an_owner(pg_site)
    before = figures(pg_site)

    owner.log_in()
    owner.log_in(Lies(rp_id="example.org"))
    challenge = owner.challenge()
    owner.finish(challenge, owner.second(challenge))

    after = figures(pg_site)
    risen = {name: count - before.get(name, 0) for name, count in after.items()}
    assert risen['authsvc_second_factors_total{method="passkey",result="ok"}'] == 2
    assert risen['authsvc_second_factors_total{method="passkey",result="code_invalid"}'] == 1
    assert risen['authsvc_logins_total{result="ok"}'] == 2
    assert risen['authsvc_logins_total{result="code_invalid"}'] == 1


def figures(api: Api) -> dict[str, float]:
    """The counters of the scrape."""
    text = api.call("GET", "/metrics", environ={"SERVER_PORT": api.env["METRICS_PORT"]}).text
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("authsvc_")]
    return {name: float(value) for name, _, value in lines}
