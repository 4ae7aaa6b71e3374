"""Passkeys: registered, used to sign in, and refused wherever anything about them is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jwt
import pytest

from tests import times
from tests.api.driver import at_once, code_of, json_of
from tests.api.passkeys import LOGIN, ME, PASSKEYS, SECOND, STEP_UP, Owner, an_owner, row_counts, sign_in
from tests.authenticator import EDDSA, ES256, ORIGIN, RP_ID, RS256, UP, UV, Authenticator, Lies, b64
from tests.rig import operator_of

if TYPE_CHECKING:
    from tests.api.driver import Api, MakeApi


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def site(make_module_api: MakeApi, request) -> Api:
    """Share an application with passkeys, once over each database."""
    return make_module_api(sqlite=request.param == "sqlite", **PASSKEYS)


@pytest.fixture(scope="module")
def pg_site(make_module_api: MakeApi) -> Api:
    """The same over PostgreSQL alone."""
    return make_module_api(**PASSKEYS)


def refused(answer) -> bool:
    """The one refusal for everything that is wrong with an answer."""
    return (answer.status_code, code_of(answer), answer.headers["WWW-Authenticate"]) == (
        401,
        "code_invalid",
        "Bearer",
    )


@pytest.mark.parametrize("algorithm", [ES256, EDDSA, RS256])
def test_who_registered_a_passkey_signs_in_with_it_alone(site, algorithm):
    """The first one brings recovery codes; the answer to the login is that of every login."""
    owner = Owner(site.someone(), Authenticator(algorithm=algorithm))

    registered = owner.register(name="Ada's phone")
    another = owner.register()
    answer = owner.log_in()

    factor = json_of(registered)
    assert (registered.status_code, another.status_code, answer.status_code) == (201, 201, 200), answer.text
    assert (factor["kind"], factor["name"], factor["locked"]) == ("passkey", "Ada's phone", False)
    assert len(set(factor["recovery_codes"])) == 8
    assert json_of(another)["recovery_codes"] is None
    assert answer.headers["X-Device-Token"]
    person = site.call("GET", "/v1/me", token=json_of(answer)["access_token"])
    assert json_of(person)["id"] == owner.person.id


def test_the_first_passkey_ends_every_other_session(site):
    """Whoever was in before it was there is out; the session that registered it goes on."""
    person = site.someone()
    elsewhere = person.log_in()

    an = Owner(person)
    assert an.register().status_code == 201

    assert person.is_accepted()
    assert not elsewhere.is_accepted()


def test_of_first_passkeys_in_many_sessions_one_is_added(site):
    """It ends the other sessions, and what they asked for at the same moment comes too late."""
    person = site.someone()
    owners = [Owner(person), *(Owner(person.log_in()) for _ in range(7))]
    attestations = [owner.attestation() for owner in owners]

    def register(number: int) -> int:
        body = {"credential": attestations[number]}
        return owners[number].person.call("POST", ME, json=body).status_code

    answers = at_once(register, range(8), threads=8)

    assert sorted(answers) == [201, *[401] * 7]
    (winner,) = (owner.person for owner in owners if owner.person.is_accepted())
    assert len(json_of(winner.call("GET", "/v1/me/factors"))["items"]) == 1


def test_a_password_alone_is_not_enough_any_more(site):
    """A passkey is a second factor: a login with the password asks for it."""
    owner = an_owner(site)

    answer = site.log_in(owner.person.email)

    assert (answer.status_code, code_of(answer)) == (403, "second_factor_required")
    assert json_of(answer)["methods"] == ["passkey", "recovery_code"]


def test_a_passkey_is_a_second_factor(site):
    """The password, then an assertion: over options for the login's challenge. A security key will do."""
    owner = an_owner(site, Authenticator(verifies_user=False))
    challenge = owner.challenge()

    answer = owner.finish(challenge, owner.second(challenge))

    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Device-Token"]
    assert refused(owner.log_in())


@pytest.mark.parametrize("verifies_user", [True, False])
def test_levels_say_whether_the_user_was_verified(site, verifies_user):
    """Alone, as a second factor and in a step-up; a key that does not verify its user is half of it."""
    owner = an_owner(site, Authenticator(verifies_user=verifies_user))
    stepped_up = owner.step_up()
    challenge = owner.challenge()
    second = claims(owner.finish(challenge, owner.second(challenge)))

    acr, user = ("phr", ["user"]) if verifies_user else ("aal2", [])
    assert (stepped_up["acr"], stepped_up["amr"]) == (acr, ["pwd", "pop", *user, "mfa"])
    assert (second["acr"], second["amr"]) == (acr, ["pwd", "pop", *user, "mfa"])
    if verifies_user:
        alone = claims(owner.log_in())
        assert (alone["acr"], alone["amr"]) == ("phr", ["pop", "user", "mfa"])


def claims(answer) -> dict[str, Any]:
    """What the access token in *answer* says."""
    return jwt.decode(json_of(answer)["access_token"], options={"verify_signature": False})


def test_a_step_up_takes_an_assertion_for_a_step_up_once(site):
    """Of this account, over its options; a wrong one ends no session."""
    owner, other = an_owner(site, Authenticator(counts=False)), an_owner(site)
    assertion, challenge = owner.stepping_up(), owner.challenge()

    wrong = [owner.assertion(), owner.second(challenge), other.stepping_up()]
    answers = [owner.person.call("POST", STEP_UP, json={"credential": shown}) for shown in wrong]
    good, again = (owner.person.call("POST", STEP_UP, json={"credential": assertion}) for _ in range(2))

    assert all(refused(answer) for answer in answers)
    assert good.status_code == 200
    assert refused(again)
    assert owner.person.is_accepted()


def test_another_passkey_wants_a_proof_that_is_fresh(site):
    """The session that registered the first one knows the password alone: whoever stole it adds none."""
    owner = an_owner(site)

    options = owner.person.call("POST", f"{ME}/options")
    registration = owner.person.call("POST", ME, json={"credential": owner.assertion()})

    assert {code_of(options), code_of(registration)} == {"step_up_required"}
    assert 'acr_values="aal2"' in options.headers["WWW-Authenticate"]
    owner.step_up()
    assert owner.person.call("POST", f"{ME}/options").status_code == 200


def test_an_answer_to_a_login_is_used_once(site):
    """Both challenges are used up by what they open: neither is good beside a new one of the other."""
    owner = an_owner(site, Authenticator(counts=False))
    challenge, another = owner.challenge(), owner.challenge()
    assertion = owner.second(challenge)
    assert owner.finish(challenge, assertion).status_code == 200

    assert refused(owner.finish(another, assertion))
    assert refused(owner.finish(challenge, owner.second(challenge)))


def test_a_second_factor_is_for_its_own_account(pg_site):
    """Not somebody else's passkey, not an assertion that was made to sign in alone or to step up."""
    owner, other = an_owner(pg_site), an_owner(pg_site)
    challenge = owner.challenge()
    options = json_of(pg_site.post(f"{SECOND}/options", {"challenge": challenge}))
    foreign = other.authenticator.get(options | {"allowCredentials": []})

    for assertion in (foreign, other.second(other.challenge()), owner.assertion(), owner.stepping_up()):
        assert refused(owner.finish(challenge, assertion))
    assert owner.finish(challenge, owner.second(challenge)).status_code == 200


#: How many ceremonies begin and are not finished.
BEGUN = times("BEGUN_CEREMONIES", 100)
LIES = {
    "another origin": Lies(client_data={"origin": "https://evil.example"}),
    "a page in a frame": Lies(client_data={"crossOrigin": True}),
    "another type": Lies(client_data={"type": "webauthn.create"}),
    "another relying party": Lies(rp_id="example.org"),
    "nobody present": Lies(without=UP),
    "no user verification": Lies(without=UV),
    "another user": Lies(user_handle=bytes(16)),
    "a challenge that nobody made": Lies(client_data={"challenge": b64(bytes(89))}),
}


@pytest.mark.parametrize("lies", LIES.values(), ids=LIES)
def test_a_login_with_anything_wrong_is_refused(pg_site, lies):
    """Though the signature is right: the same refusal for every cause, and the passkey stays good."""
    owner = an_owner(pg_site)

    assert refused(owner.log_in(lies))
    assert owner.log_in().status_code == 200


WRONG_KINDS: tuple[object, ...] = (7, [], {}, True)
FIELDS = ("id", "rawId", "clientDataJSON", "authenticatorData", "signature", "userHandle")


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_was_altered_is_refused(pg_site, name):
    """Each field of an assertion in turn: changed, emptied, taken from another one, of the wrong kind."""
    owner, other = an_owner(pg_site), an_owner(pg_site)
    other.log_in()
    good, foreign = owner.assertion(), other.assertion()

    for text in ("AAAA", "", "!", foreign.get(name) or foreign["response"][name]):
        altered = {**good, "response": dict(good["response"])}
        (altered if name in good else altered["response"])[name] = text
        assert refused(sign_in(pg_site, altered)), text
    for wrong in WRONG_KINDS:
        altered = {**good, "response": dict(good["response"])}
        (altered if name in good else altered["response"])[name] = wrong
        assert sign_in(pg_site, altered).status_code == 422
    assert sign_in(pg_site, good).status_code == 200


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_missing_is_refused(pg_site, name):
    """422 for what every assertion has; without a user handle nobody is named: 401."""
    owner = an_owner(pg_site)
    assertion = owner.assertion()
    del (assertion if name in assertion else assertion["response"])[name]

    answer = sign_in(pg_site, assertion)

    assert answer.status_code == (401 if name == "userHandle" else 422)


@pytest.mark.parametrize(
    "body", [{}, {"credential": None}, {"credential": []}, {"credential": "x"}, {"credential": {}}]
)
@pytest.mark.parametrize("path", [LOGIN, ME])
def test_a_body_without_a_credential_is_malformed(pg_site, path, body):
    """422, whoever sends it."""
    token = pg_site.someone().access

    assert pg_site.post(path, body, token=token).status_code == 422


def test_members_that_browsers_add_are_ignored(pg_site):
    """The specification grows; what it adds changes nothing."""
    owner = an_owner(pg_site)
    assertion = owner.assertion()
    assertion["response"]["extra"] = {"new": 1}

    assert sign_in(pg_site, assertion | {"extra": "new"}).status_code == 200


def test_one_assertion_opens_one_session(site):
    """50 parallel uses: one session, through a loss of Redis, too; the passkey is not locked by it."""
    owner = an_owner(site, Authenticator(counts=False))
    assertion, before = owner.assertion(), row_counts(site)["sessions"]

    answers = at_once(lambda _: sign_in(site, assertion), range(50))
    with operator_of(site.env) as redis:
        redis.flushdb()
    again = sign_in(site, assertion)

    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 49
    assert refused(again)
    assert row_counts(site)["sessions"] == before + 1
    assert owner.log_in().status_code == 200


@pytest.mark.parametrize("counter", [1, 2])
def test_a_counter_that_does_not_rise_locks_the_passkey(site, counter):
    """It may have been copied: the copy and the original are refused from then on."""
    owner = an_owner(site)
    owner.log_in()

    copied = owner.log_in(Lies(counter=counter))
    original = owner.log_in()

    assert refused(copied)
    assert refused(original)


def test_a_copy_is_noticed_on_every_way_in(pg_site):
    """As a second factor and in a step-up, too; the session that asked for it goes on."""
    second, stepping_up = an_owner(pg_site), an_owner(pg_site)
    challenge = second.challenge()
    copied = Lies(counter=1)

    answers = [
        second.finish(challenge, second.second(challenge, copied)),
        stepping_up.person.call("POST", STEP_UP, json={"credential": stepping_up.stepping_up(copied)}),
    ]

    assert all(refused(answer) for answer in answers)
    for owner in (second, stepping_up):
        (factor,) = json_of(owner.person.call("GET", "/v1/me/factors"))["items"]
        assert factor["locked"] is True


def test_a_passkey_without_a_counter_is_not_locked(site):
    """0 each time is what most passkeys show; from a counter back to 0 is none."""
    owner, counting = an_owner(site, Authenticator(counts=False)), an_owner(site)

    assert [owner.log_in().status_code for _ in range(3)] == [200] * 3
    assert refused(counting.log_in(Lies(counter=0)))
    assert refused(counting.log_in())


def test_a_replay_locks_nothing(site):
    """An assertion that was used is refused for that, before its counter is looked at."""
    owner = an_owner(site)
    assertion = owner.assertion()
    assert sign_in(site, assertion).status_code == 200

    assert refused(sign_in(site, assertion))
    assert owner.log_in().status_code == 200


def test_a_challenge_is_good_for_five_minutes(pg_site):
    """And not a second longer."""
    owner = an_owner(pg_site)
    early, late = owner.assertion(), owner.assertion()
    pg_site.clock.tick(295)
    assert sign_in(pg_site, early).status_code == 200

    pg_site.clock.tick(10)

    assert refused(sign_in(pg_site, late))


def test_a_challenge_is_good_for_what_it_was_made_for(pg_site):
    """Registration, login and step-up do not take each other's, nor does another user."""
    owner, other = an_owner(pg_site), Owner(pg_site.someone())
    owner.step_up()
    step_up = json_of(owner.person.call("POST", f"{STEP_UP}/options"))
    registration = json_of(owner.person.call("POST", f"{ME}/options"))
    login = json_of(pg_site.call("POST", f"{LOGIN}/options"))

    wrong_for_login = [
        owner.authenticator.get(step_up),
        owner.authenticator.get(login | {"challenge": registration["challenge"]}),
    ]
    wrong_for_registration = [
        owner.authenticator.create(registration | {"challenge": login["challenge"]}),
        owner.authenticator.create(registration | {"challenge": step_up["challenge"]}),
        other.attestation(),
    ]

    for assertion in wrong_for_login:
        assert refused(sign_in(pg_site, assertion))
    for credential in wrong_for_registration:
        assert refused(owner.person.call("POST", ME, json={"credential": credential}))


def test_a_registration_is_used_once(site):
    """The same answer again, and another one over the same challenge, are refused."""
    owner = an_owner(site)
    owner.step_up()
    options = json_of(owner.person.call("POST", f"{ME}/options"))
    one, other = (owner.authenticator.create(options) for _ in range(2))

    answers = [owner.person.call("POST", ME, json={"credential": shown}) for shown in (one, one, other)]

    assert answers[0].status_code == 201
    assert refused(answers[1])
    assert refused(answers[2])


def test_a_known_passkey_is_not_registered_again(site):
    """Not by its owner, and not by somebody else."""
    owner, other = an_owner(site), Owner(site.someone())
    (credential_id,) = owner.authenticator.keys
    owner.step_up()

    for each in (owner, other):
        answer = register_again(each, credential_id)
        assert (answer.status_code, code_of(answer)) == (409, "passkey_known")


def register_again(owner: Owner, credential_id: bytes):
    """Register another key under an id that is known."""
    options = json_of(owner.person.call("POST", f"{ME}/options"))
    shown = owner.authenticator.create(options, Lies(registers=credential_id))
    return owner.person.call("POST", ME, json={"credential": shown})


def test_ten_passkeys_are_enough(site):
    """The eleventh is refused: at its options, and where they were given before; also at once."""
    owner = Owner(site.someone(), Authenticator(counts=False))
    first = [owner.register() for _ in range(8)]
    waiting = [owner.attestation() for _ in range(6)]

    answers = at_once(
        lambda shown: owner.person.call("POST", ME, json={"credential": shown}), waiting, threads=6
    )
    options = owner.person.call("POST", f"{ME}/options")

    assert [answer.status_code for answer in first] == [201] * 8
    assert sorted(answer.status_code for answer in answers) == [201] * 2 + [409] * 4
    assert {code_of(answer) for answer in answers if answer.status_code == 409} == {"too_many"}
    assert (options.status_code, code_of(options)) == (409, "too_many")


def test_beginning_stores_nothing(site):
    """Options of every kind, asked for many times: no row and no key more."""
    owner = an_owner(site)
    owner.step_up()
    challenge = owner.challenge()
    kinds = [
        lambda: site.call("POST", f"{LOGIN}/options"),
        lambda: owner.person.call("POST", f"{ME}/options"),
        lambda: owner.person.call("POST", f"{STEP_UP}/options"),
        lambda: site.post("/v1/auth/login/second/options", {"challenge": challenge}),
    ]

    with operator_of(site.env) as redis:
        before = row_counts(site), redis.dbsize()
        answers = [begin() for begin in kinds for _ in range(BEGUN // len(kinds))]
        after = row_counts(site), redis.dbsize()

    assert {answer.status_code for answer in answers} == {200}
    assert len({json_of(answer)["challenge"] for answer in answers}) == BEGUN
    assert after == before


def test_options_of_an_account_name_its_passkeys(pg_site):
    """Those of others and locked ones are not among them; somebody without any is told so."""
    owner, without = an_owner(pg_site), pg_site.someone()
    (credential_id,) = owner.authenticator.keys
    owner.step_up()

    options = json_of(owner.person.call("POST", f"{STEP_UP}/options"))
    more = json_of(owner.person.call("POST", f"{ME}/options"))
    nobody = json_of(pg_site.call("POST", f"{LOGIN}/options"))

    assert [one["id"] for one in options["allowCredentials"]] == [b64(credential_id)]
    assert (options["rpId"], options["userVerification"]) == (RP_ID, "preferred")
    assert [one["id"] for one in more["excludeCredentials"]] == [b64(credential_id)]
    assert (nobody["allowCredentials"], nobody["userVerification"]) == ([], "required")
    assert without.call("POST", f"{STEP_UP}/options").status_code == 404


def test_a_disabled_owner_is_refused_as_everything_else(pg_site):
    """Nobody learns that the account is disabled, or that it is gone."""
    disabled, gone, admin = an_owner(pg_site), an_owner(pg_site), pg_site.an_admin()
    admin.call("PATCH", f"/v1/users/{disabled.person.id}", json={"status": "disabled"})
    admin.call("DELETE", f"/v1/users/{gone.person.id}")

    assert refused(disabled.log_in())
    assert refused(gone.log_in())


def test_related_origins_are_published(pg_site):
    """Browsers look there before a page outside the RP ID uses its passkeys; any page may read it."""
    answer = pg_site.call("GET", "/.well-known/webauthn")

    assert answer.content_type == "application/json"
    assert json_of(answer) == {"origins": [ORIGIN, "https://example.org"]}
