"""The verifier as services use it, over a fake of authsvc: yes, no, and what it says when it cannot know."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from authsvc.verifier import (
    Acr,
    FeedStale,
    KeysUnknown,
    Level,
    Options,
    RoleMissing,
    ScopeMissing,
    StepUpRequired,
    TokenInvalid,
    TokenMissing,
    Unavailable,
    Verifier,
    WhenStale,
    WrongKind,
)
from authsvc.verifier.transport import Answer
from tests.processes import wait_until
from tests.unit.domain.samples import (
    ALICE_ID,
    CLAIMS,
    ISSUED_AT,
    LEVEL_CLAIMS,
    MACHINE,
    SESSION_ID,
    TOKEN_ID,
    claiming,
    signed,
    signing_key,
)
from tests.unit.verifier.fake_service import FEED, INTROSPECTION, JWKS, FakeService
from tests.unit.verifier.samples import RULES, Hands, claims_of, item, jwks, page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKEN = claiming()
Make = Any


@pytest.fixture
def hands() -> Hands:
    """Clocks that tests move; the feed goes on asking meanwhile."""
    return Hands()


@pytest.fixture
def make(service, hands) -> Iterator[Callable[..., Verifier]]:
    """Verifiers over the fake service, closed at the end."""
    made: list[Verifier] = []

    def verifier(*, url: str = service.url, on_lag: Any = None, **options: Any) -> Verifier:
        named = Options(
            url=url,
            client_id="client",
            client_secret="secret",
            issuer=RULES.issuer,
            audience=RULES.audience,
            lifetime_s=3600,
            **options,
        )
        clocks = {"wall_s": hands.clocks.wall_s, "monotonic_s": hands.clocks.monotonic_s}
        made.append(Verifier(named, on_lag=on_lag, **clocks))
        return made[-1]

    yield verifier
    for one in made:
        one.close()


def silence(service: FakeService) -> None:
    """Let the feed answer 503 from now on, and wait until that has been heard."""
    service.answers[FEED] = lambda _: Answer(503, {}, b"")
    asked = service.asked[FEED]
    wait_until(lambda: service.asked[FEED] > asked + 1)


def active(**changes: Any) -> Callable[[Any], Answer]:
    """An introspection of the sample token, changed."""
    document = {"active": True, "jti": TOKEN_ID, "sub": ALICE_ID} | changes
    return lambda _: Answer(200, {}, json.dumps(document).encode())


def test_a_good_token_is_its_claims(make, service):
    """From the first call on: it waits for the feed, and asks for the keys once."""
    verifier = make()

    found = [verifier.verify(TOKEN) for _ in range(5)]

    assert found == [claims_of()] * 5
    assert service.asked[JWKS] == 1
    assert service.asked[INTROSPECTION] == 0


@pytest.mark.parametrize(
    "news",
    [
        item("session", SESSION_ID),
        item("token", TOKEN_ID),
        item("user", ALICE_ID, epoch=4),
    ],
    ids=["session", "token", "user"],
)
def test_a_revoked_token_is_refused(make, service, news):
    """Whether it was revoked before the start or is now."""
    verifier = make()
    verifier.verify(TOKEN)
    service.news.append(news)

    def is_refused(one: Verifier) -> bool:
        try:
            one.verify(TOKEN)
        except TokenInvalid:
            return True
        return False

    wait_until(lambda: is_refused(verifier))
    assert is_refused(make())


def test_roles_are_asked_for_by_name(make):
    """All of them; one that does not exist is had by nobody."""
    verifier = make()
    admin = claiming(roles=["user", "admin"])

    assert verifier.verify(admin, {"admin", "user"}).roles == ("user", "admin")
    assert verifier.verify(TOKEN, ["user"]).roles == ("user",)
    for token, roles in ((TOKEN, {"admin"}), (admin, {"root"}), (TOKEN, ["user", "admin"])):
        with pytest.raises(RoleMissing):
            verifier.verify(token, roles)


#: The token of a machine, whose client and secret have the ids of Alice and her session.
MACHINE_TOKEN = claiming(**MACHINE)
LEVELLED = claiming(**LEVEL_CLAIMS)


def test_a_machine_is_told_from_a_person(make):
    """Each method returns its own kind of claims, and refuses the other kind by name."""
    verifier = make()

    found = verifier.verify_machine(MACHINE_TOKEN)

    assert (found.client_id, found.session_id, found.scopes) == (
        ALICE_ID,
        SESSION_ID,
        ("orders:read", "orders:write"),
    )
    assert verifier.verify_any(MACHINE_TOKEN) == found
    assert verifier.verify_any(TOKEN) == claims_of()
    for refused in (
        lambda: verifier.verify(MACHINE_TOKEN),
        lambda: verifier.authenticate(f"Bearer {MACHINE_TOKEN}"),
        lambda: verifier.verify_machine(TOKEN),
    ):
        with pytest.raises(WrongKind):
            refused()


@pytest.mark.parametrize(
    ("asked", "of_machine", "of_person"),
    [
        ({}, None, None),
        ({"scopes": ["orders:read"]}, None, WrongKind),
        ({"scopes": ["orders:read", "root"]}, ScopeMissing, WrongKind),
        ({"roles": ["user"]}, WrongKind, None),
        ({"roles": ["admin"]}, WrongKind, RoleMissing),
        ({"roles": ["admin"], "scopes": ["orders:read"]}, None, RoleMissing),
        ({"roles": ["user"], "scopes": ["root"]}, ScopeMissing, None),
        ({"acr": "aal2"}, None, StepUpRequired),
        ({"max_age_s": 5}, None, StepUpRequired),
    ],
)
def test_each_kind_is_asked_for_what_it_can_have(make, asked, of_machine, of_person):
    """As the service's own check of both; one that names the other kind's alone lets nobody slip through."""
    verifier = make()

    for token, refusal in ((MACHINE_TOKEN, of_machine), (TOKEN, of_person)):
        if refusal is None:
            assert verifier.verify_any(token, **asked).token_id == TOKEN_ID
        else:
            with pytest.raises(refusal):
                verifier.verify_any(token, **asked)


def test_scopes_are_asked_for_by_name(make):
    """All of them."""
    verifier = make()

    assert verifier.verify_machine(MACHINE_TOKEN, {"orders:write", "orders:read"})
    for scopes in (["root"], ["orders:read", "root"], ["orders"], [""]):
        with pytest.raises(ScopeMissing):
            verifier.verify_machine(MACHINE_TOKEN, scopes)


@pytest.mark.parametrize(
    "news",
    [item("session", SESSION_ID), item("token", TOKEN_ID), item("user", ALICE_ID, epoch=4)],
    ids=["secret", "token", "client"],
)
def test_a_revoked_machine_is_refused(make, service, news):
    """The feed names its secret where it names a session, and its client where it names a user."""
    verifier = make()
    verifier.verify_machine(MACHINE_TOKEN)
    service.news.append(news)

    def is_refused() -> bool:
        try:
            verifier.verify_machine(MACHINE_TOKEN)
        except TokenInvalid:
            return True
        return False

    wait_until(is_refused)


def test_the_life_of_a_machine_token_has_a_bound_of_its_own(make):
    """The service's MACHINE_TOKEN_TTL."""
    assert make(machine_lifetime_s=600).verify_machine(MACHINE_TOKEN)

    with pytest.raises(TokenInvalid):
        make(machine_lifetime_s=599).verify_machine(MACHINE_TOKEN)


@pytest.mark.parametrize(
    ("asked", "is_met"),
    [
        ({}, True),
        ({"acr": "aal1"}, True),
        ({"acr": "aal2"}, True),
        ({"acr": "phr"}, False),
        # It was shown a minute before the token was issued.
        ({"max_age_s": 60}, True),
        ({"max_age_s": 59}, False),
        ({"acr": "aal2", "max_age_s": 60}, True),
        ({"acr": "phr", "max_age_s": 60}, False),
        ({"acr": "aal2", "max_age_s": 0}, False),
    ],
)
def test_a_level_can_be_asked_for(make, asked, is_met):
    """Its class, its age, or both; a token without a level has none that is enough for anything."""
    verifier = make()
    verifier.verify(TOKEN)
    for text, accepted in ((LEVELLED, is_met), (TOKEN, not asked)):
        if accepted:
            assert verifier.verify(text, **asked).token_id == TOKEN_ID
            continue
        with pytest.raises(StepUpRequired) as refused:
            verifier.authenticate(f"Bearer {text}", **asked)
        assert refused.value.requirement.acr == asked.get("acr")
        assert refused.value.requirement.max_age_s == asked.get("max_age_s")


def test_the_level_is_among_the_claims(make):
    """For services that decide by themselves."""
    assert make().verify(LEVELLED).level == Level(Acr.AAL2, ("pwd", "otp", "mfa"), ISSUED_AT - 60)
    assert make().verify(TOKEN).level is None


def test_a_proof_grows_old(make, hands):
    """By the clock of the service that asks, as the token itself does."""
    verifier = make()
    verifier.verify(LEVELLED, max_age_s=120)
    hands.wall_s += 60
    verifier.verify(LEVELLED, max_age_s=120)
    hands.wall_s += 1

    with pytest.raises(StepUpRequired):
        verifier.verify(LEVELLED, max_age_s=120)


def test_a_missing_role_comes_before_a_level(make):
    """No step-up would help."""
    with pytest.raises(RoleMissing):
        make().verify(LEVELLED, ["admin"], acr="phr")


@pytest.mark.parametrize("acr", ["", "AAL2", "aal3", "aal1 aal2"])
def test_a_class_that_there_is_not_is_a_mistake_of_the_service(make, acr):
    """It is told so, whatever the token."""
    with pytest.raises(ValueError, match="is not a valid Acr"):
        make().verify("no token", acr=acr)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Token abc", f"Bear {TOKEN}"])
def test_a_header_without_a_bearer_token_names_nobody(make, header):
    """That is another answer than a bad token."""
    with pytest.raises(TokenMissing):
        make().authenticate(header)


@pytest.mark.parametrize(
    "header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN}", f" Bearer {TOKEN} "]
)
def test_a_bearer_token_is_found(make, header):
    """The scheme in any case (RFC 9110 §11.1)."""
    assert make().authenticate(header) == claims_of()


def test_no_yes_before_the_feed_was_read_whole(make, service):
    """A page with more behind it is not enough; the wait for the rest is bounded."""
    gate = threading.Event()
    pages = [page(has_more=True), page(item("session", SESSION_ID), cursor="end")]

    def feed(_handler: object) -> Answer:
        if len(pages) == 1:
            gate.wait(60)
        return pages.pop(0) if pages else page(retry_after_ms=20)

    service.answers[FEED] = feed
    early, late = make(start_within_s=0.1), make(start_within_s=60)
    with pytest.raises(FeedStale):
        early.verify(TOKEN)
    assert early.lag_s == inf
    assert not early.wait_ready(0.01)
    gate.set()
    assert early.wait_ready(60)

    with pytest.raises(TokenInvalid):
        early.verify(TOKEN)
    assert late.verify(TOKEN) == claims_of()


def test_a_stale_feed_refuses_every_yes(make, service, hands):
    """To the second; a no stays a no, and the first answer of the feed ends it."""
    verifier = make(max_staleness_s=10)
    verifier.verify(TOKEN)
    silence(service)
    hands.tick(verifier._options.max_staleness_s - verifier.lag_s - 0.001)  # noqa: SLF001 - what it was given
    verifier.verify(TOKEN)
    hands.tick(0.002)

    with pytest.raises(FeedStale) as stale:
        verifier.verify(TOKEN)
    with pytest.raises(TokenInvalid):
        verifier.verify(claiming(exp=CLAIMS["iat"]))
    assert stale.value.retry_after_s == 1
    assert verifier.lag_s > 10
    service.answers[FEED] = lambda _: page(retry_after_ms=20)
    wait_until(lambda: verifier.lag_s < 1)
    assert verifier.verify(TOKEN) == claims_of()


def stale_verifier(make: Make, service: FakeService, hands: Hands, **options: Any) -> Verifier:
    """A verifier that has to ask about every token."""
    verifier: Verifier = make(when_stale=WhenStale.INTROSPECT, **options)
    verifier.verify(TOKEN)
    silence(service)
    hands.tick(100)
    return verifier


def test_a_stale_feed_asks_the_service_if_it_shall(make, service, hands):
    """About good tokens alone, by their client, over kept connections; its word is final."""
    service.answers[INTROSPECTION] = active()
    verifier = stale_verifier(make, service, hands)
    with pytest.raises(TokenInvalid):
        verifier.verify("x.y.z")

    assert [verifier.verify(TOKEN) for _ in range(3)] == [claims_of()] * 3
    asked = service.asked[INTROSPECTION]
    service.answers[INTROSPECTION] = active(active=False)
    with pytest.raises(TokenInvalid):
        verifier.verify(TOKEN)

    assert asked == 3
    assert service.bodies.count(f"token={TOKEN}&token_type_hint=access_token") == 4


def test_what_was_revoked_is_not_asked_about(make, service, hands):
    """A no that is known needs no second opinion."""
    service.news.append(item("session", SESSION_ID))
    service.answers[INTROSPECTION] = active()
    verifier = make(when_stale=WhenStale.INTROSPECT)
    assert verifier.wait_ready(5)
    hands.tick(100)

    with pytest.raises(TokenInvalid):
        verifier.verify(TOKEN)
    assert service.asked[INTROSPECTION] == 0


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, {"Retry-After": "2"}, b"{}"),
        Answer(401, {}, b'{"error": "invalid_client"}'),
        Answer(302, {"Location": "/"}, b'{"active": true}'),
        Answer(200, {}, b""),
        Answer(200, {}, b"[]"),
        Answer(200, {}, b"{}"),
        Answer(200, {}, b'{"active": "true"}'),
        Answer(200, {}, b'{"active": 1}'),
        Answer(200, {}, b'{"active": []}'),
        None,
    ],
    ids=str,
)
def test_an_introspection_that_says_nothing_is_no_yes(make, service, hands, answer):
    """Whatever is wrong with it: nothing can be said now."""
    service.answers[INTROSPECTION] = lambda _: answer
    verifier = stale_verifier(make, service, hands)

    with pytest.raises(Unavailable):
        verifier.verify(TOKEN)


@pytest.mark.parametrize("changes", [{"jti": SESSION_ID}, {"jti": None}])
def test_a_yes_to_another_token_is_no_yes(make, service, hands, changes):
    """Answers that were mixed up on the way."""
    service.answers[INTROSPECTION] = active(**changes)
    verifier = stale_verifier(make, service, hands)

    with pytest.raises(TokenInvalid):
        verifier.verify(TOKEN)


def test_introspections_are_bounded_in_number_and_time(make, service, hands):
    """A service that hangs holds up so many threads, for so long, and no more."""
    inside, most = 0, 0
    counting = threading.Lock()

    def hang(_handler: object) -> None:
        nonlocal inside, most
        with counting:
            inside += 1
            most = max(most, inside)
        service.over.wait(1)
        with counting:
            inside -= 1

    service.answers[INTROSPECTION] = hang
    verifier = stale_verifier(make, service, hands, introspections=2, deadline_s=0.2)
    began_s = time.monotonic()

    def ask(_: int) -> str:
        try:
            verifier.verify(TOKEN)
        except Unavailable as error:
            return str(error)
        return "yes"

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(ask, range(6)))

    assert len(answers) == 6
    assert "yes" not in answers
    assert most <= 4  # two at a time from here; the fake goes on with those that were given up
    assert time.monotonic() - began_s < 60


def test_without_keys_nothing_is_said(make, service):
    """503, not 401: the token may be good."""
    service.answers[JWKS] = lambda _: Answer(503, {}, b"")

    with pytest.raises(KeysUnknown):
        make().verify(TOKEN)


def test_a_storm_of_unknown_key_ids_is_one_request(make, service, hands):
    """In any ten seconds; the tokens with known ones do not notice."""
    verifier = make()
    verifier.verify(TOKEN)
    hands.tick(10)

    def storm(number: int) -> None:
        with pytest.raises(TokenInvalid):
            verifier.verify(signed(b"{}", kid=f"made-up-{number}"))
        assert verifier.verify(TOKEN) == claims_of()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(storm, range(64)))

    assert service.asked[JWKS] == 2


def test_a_rotated_key_is_followed(make, service, hands):
    """The new one at its first token; the old one until it is taken away and the keys are old."""
    verifier = make()
    verifier.verify(TOKEN)
    hands.tick(10)
    new = signing_key("EdDSA")
    service.answers[JWKS] = lambda _: Answer(200, {"Cache-Control": "max-age=300"}, jwks(new))

    assert verifier.verify(claiming(new)) == claims_of()
    with pytest.raises(TokenInvalid):
        verifier.verify(TOKEN)


def test_lag_is_told_after_each_answer(make, service):
    """To the hook, and to whoever looks."""
    lags: list[float] = []
    service.answers[FEED] = lambda _: page(waited_ms=-250, retry_after_ms=20)
    verifier = make(on_lag=lags.append)
    assert verifier.lag_s == inf

    assert verifier.wait_ready(5)
    wait_until(lambda: len(lags) > 2)

    assert lags == pytest.approx([0.25] * len(lags))
    assert verifier.lag_s == pytest.approx(0.25)


def test_a_closed_verifier_says_nothing(make):
    """Its thread is gone; closing twice does no harm."""
    with make() as verifier:
        verifier.verify(TOKEN)
    verifier.close()

    with pytest.raises(Unavailable):
        verifier.verify(TOKEN)
    wait_until(lambda: "verifier-feed" not in [thread.name for thread in threading.enumerate()])


def test_one_feed_runs_however_many_begin(make, service):
    """The first checks of a process come all at once."""
    verifier = make()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(verifier.verify, [TOKEN] * 32)) == [claims_of()] * 32

    assert [thread.name for thread in threading.enumerate()].count("verifier-feed") == 1
    assert service.asked[JWKS] == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_follows_by_itself(make, service):
    """Its parent's thread and connections are not its own; the parent goes on undisturbed."""
    verifier = make()
    verifier.verify(TOKEN)
    with verifier._making:  # noqa: SLF001 - as another thread may hold it at the fork
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            is_new = verifier.lag_s == inf
            os._exit(0 if is_new and verifier.verify(TOKEN) == claims_of() else 1)

    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert service.asked[JWKS] == 2
    assert verifier.verify(TOKEN) == claims_of()


def test_options_that_cannot_work_are_refused(make):
    """When the service starts, not at the first token."""
    options = make()._options  # noqa: SLF001 - good ones to begin with

    for wrong in ({"max_staleness_s": 0.5}, {"url": "authsvc:8080"}):
        with pytest.raises(ValueError, match=r"max_staleness_s|URL"):
            Verifier(replace(options, **wrong))
    assert "secret'" not in repr(options)
