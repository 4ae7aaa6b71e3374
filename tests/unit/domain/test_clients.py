"""Whether somebody is the client that they say they are: same work for all, and what happens without SQL."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from authsvc.domain.audit import Action, Event
from authsvc.domain.client_authentication import (
    NOBODY,
    NOTE_AGAIN_S,
    REMEMBERED,
    REMEMBERED_S,
    Caller,
    ClientCredentials,
    ClientProof,
    RecentClients,
    SecretUses,
)
from authsvc.domain.clients import MOST_SCOPES, ClientChange, ClientRegistry, NewClient, Right
from authsvc.domain.errors import ClientRefused, Invalid, NotFound, RateLimited, StoreUnavailable
from authsvc.domain.ratelimits import Limits, Rule
from authsvc.domain.revocations import Proof, Revocation, Revocations
from authsvc.domain.values.limits import Attempt, Limit
from authsvc.domain.values.shards import Sharded
from tests.contract.store.memory_clients import MemoryClientStore, MemorySecretStore

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
IP = "192.0.2.7"

#: An id that nobody has; tests are known by their parameters, in every process of a run.
UNKNOWN = "f152606d-5761-467c-a7d1-d9ed97b3b0e1"


@dataclass
class Counted:
    """A limiter that lets *quota* attempts of an address through, or cannot count."""

    quota: int = 1000
    is_away: bool = False
    subjects: list[str] = field(default_factory=list)

    def attempts(self, asked: Sequence[tuple[Limit, str]]) -> list[Attempt | StoreUnavailable]:
        return [self._attempt(limit, subject) for limit, subject in asked]

    def _attempt(self, limit: Limit, subject: str) -> Attempt:
        if self.is_away:
            raise StoreUnavailable("redis")
        allowed = self.subjects.count(subject) < self.quota
        if allowed:
            self.subjects.append(subject)
        return Attempt(limit=limit, subject=subject, allowed=allowed, remaining=0, reset_s=9)

    def refund(self, attempt: Attempt) -> None:
        raise AssertionError("a wrong secret is never given back")


@dataclass
class Noted:
    """Events, in order."""

    events: list[Event] = field(default_factory=list)

    def record(self, event: Event) -> None:
        self.events.append(event)

    def actions(self) -> list[str]:
        return [event.action.value for event in self.events]


@dataclass
class Written:
    """A fast copy that notes what it is told, or cannot be written."""

    entries: list[Revocation] = field(default_factory=list)
    is_away: bool = False

    def write(self, entries: Sequence[Revocation]) -> None:
        if self.is_away:
            raise StoreUnavailable("redis")
        self.entries.extend(entries)


class Scene:
    """A registry, a proof over the same store, and time to move."""

    def __init__(self) -> None:
        self.store, self.limiter, self.audit = MemoryClientStore(), Counted(), Noted()
        self.now_s = 1000.0
        limit = Limit(name=Rule.CLIENT_IP.value, quota=1000, window_s=900)
        self.secrets = MemorySecretStore(self.store)
        self.now = NOW
        self.redis = Written()
        self.registry = ClientRegistry(
            store=self.store,
            secrets=self.secrets,
            revocations=Revocations(self.redis, Sharded((Proof(300),))),
            audit=self.audit,
            clock=lambda: NOW,
        )
        self.proof = ClientProof(
            store=self.store,
            uses=SecretUses(self.secrets, lambda: self.now, lambda: self.now_s),
            known=RecentClients(lambda: self.now_s),
            limits=Limits({Rule.CLIENT_IP: limit}, self.limiter, self.audit),
            audit=self.audit,
        )
        self.made = self.registry.create("gateway")

    def come(self, *, client_id: str | None = None, secret: str | None = None, ip: str = IP) -> Caller:
        """Show the made client's id and secret, or others."""
        shown_id = self.made.client.id if client_id is None else client_id
        shown = ClientCredentials(client_id=shown_id, secret=self.made.secret if secret is None else secret)
        return self.proof.authenticate(shown, client_ip=ip)


@pytest.fixture
def scene() -> Scene:
    """Set the scene."""
    return Scene()


def test_a_right_secret_is_the_client_and_counts_nothing(scene):
    """One query each, as often as it likes: nothing is counted, written down or limited."""
    scene.limiter.quota = 0

    callers = [scene.come() for _ in range(3)]

    shown = scene.made.client.secrets[0].id
    assert [(one.client.id, one.secret_id, one.is_remembered) for one in callers] == [
        (scene.made.client.id, shown, False)
    ] * 3
    assert len(scene.store.asked) == 3
    assert scene.limiter.subjects == []
    assert scene.audit.actions() == ["client.created"]


@pytest.mark.parametrize("client_id", ["", "gateway", "\x00", "\ud800", "A" * 5000, NOBODY, UNKNOWN])
def test_an_unknown_client_costs_the_same_work(scene, client_id, monkeypatch):
    """The store is asked once, with an id that it takes, and a digest is compared in constant time."""
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def watched(expected: str, shown: str) -> bool:
        compared.append((len(expected), len(shown)))
        return real(expected, shown)

    monkeypatch.setattr(hmac, "compare_digest", watched)

    with pytest.raises(ClientRefused):
        scene.come(client_id=client_id)
    with pytest.raises(ClientRefused):
        scene.come(secret="wrong")

    assert compared == [(64, 64)] * 2
    assert [len(asked) for asked in scene.store.asked] == [36, 36]


@pytest.mark.parametrize("secret", ["", "wrong", "\x00", "\ud800", "0" * 64, "x" * 100_000])
def test_a_wrong_secret_is_refused_counted_and_written_down(scene, secret):
    """The event names the client that there is, and never what was shown."""
    with pytest.raises(ClientRefused):
        scene.come(secret=secret)

    assert scene.limiter.subjects == [IP]
    assert scene.audit.events[-1] == Event(Action.CLIENT_REFUSED, client_ip=IP, detail=scene.made.client.id)


def test_an_id_that_nobody_has_is_not_written_down(scene):
    """It may be a secret in the wrong place."""
    with pytest.raises(ClientRefused):
        scene.come(client_id=scene.made.secret)

    assert scene.audit.events[-1] == Event(Action.CLIENT_REFUSED, client_ip=IP)


def test_too_many_wrong_secrets_of_one_address_are_limited_and_right_ones_are_not(scene):
    """429 takes the place of 401 for that address alone; whoever has the secret is not shut out by others."""
    scene.limiter.quota = 2
    for _ in range(2):
        with pytest.raises(ClientRefused):
            scene.come(secret="wrong")

    with pytest.raises(RateLimited):
        scene.come(secret="wrong")

    assert scene.come().client.id == scene.made.client.id
    with pytest.raises(ClientRefused):
        scene.come(secret="wrong", ip="192.0.2.8")
    assert scene.audit.actions()[-2:] == ["limit.reached", "client.refused"]


def test_without_counters_a_wrong_secret_is_refused_all_the_same(scene):
    """Redis away: 256 random bits need no counter to be safe."""
    scene.limiter.is_away = True

    with pytest.raises(ClientRefused):
        scene.come(secret="wrong")

    assert scene.come().client.id == scene.made.client.id


def test_without_sql_whoever_was_confirmed_lately_goes_on(scene):
    """For five minutes after the last confirmation, which no use without SQL makes longer."""
    scene.come()
    scene.store.is_away = True

    scene.now_s += REMEMBERED_S
    remembered = scene.come()
    scene.now_s += 0.1

    assert remembered == Caller(client=scene.made.client, is_remembered=True)
    with pytest.raises(StoreUnavailable):
        scene.come()


def test_without_sql_nobody_else_gets_in(scene):
    """Neither a wrong secret of a remembered client, nor a client that this process has not met."""
    other = scene.registry.create("other")
    scene.come()
    scene.store.is_away = True

    for shown in (
        {"secret": "wrong"},
        {"client_id": other.client.id, "secret": other.secret},
        {"client_id": other.client.id},
        {"client_id": scene.made.client.id + scene.made.secret[:1], "secret": scene.made.secret[1:]},
    ):
        with pytest.raises(StoreUnavailable):
            scene.come(**shown)
    assert scene.limiter.subjects == []


def test_a_deleted_client_is_refused_on_its_next_request_and_not_remembered(scene):
    """SQL's no is the end of the memory: an outage after it brings nobody back."""
    scene.come()
    scene.registry.delete(scene.made.client.id)

    with pytest.raises(ClientRefused):
        scene.come()

    scene.store.is_away = True
    with pytest.raises(StoreUnavailable):
        scene.come()


def test_only_so_many_clients_are_remembered_and_never_a_secret(scene):
    """The oldest gives way; what is kept are digests."""
    many = [scene.registry.create(f"client {number}") for number in range(REMEMBERED)]
    for made in (scene.made, *many):
        come_as(scene, made)
    scene.store.is_away = True

    assert come_as(scene, many[0]).is_remembered
    assert come_as(scene, many[-1]).is_remembered
    with pytest.raises(StoreUnavailable):
        scene.come()
    kept = repr(vars(scene.proof.known))
    assert many[0].client.id in kept
    assert many[0].secret not in kept


def come_as(scene: Scene, made: NewClient) -> Caller:
    """Show the credentials of *made*."""
    return scene.come(client_id=made.client.id, secret=made.secret)


def test_what_holds_a_secret_does_not_show_it(scene):
    """Neither a new client, nor credentials, nor a stored digest, in a log or a traceback."""
    shown = ClientCredentials(client_id=scene.made.client.id, secret=scene.made.secret)
    stored = scene.store.rows[scene.made.client.id]

    for holder in (scene.made, shown, stored):
        assert scene.made.secret not in repr(holder)
        assert not any(digest in repr(holder) for digest in stored.digests.values())


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x00", "\ud800", "x" * 201])
def test_a_client_has_a_name_that_can_be_shown(scene, name):
    """1 to 200 printable characters; nothing is stored otherwise."""
    with pytest.raises(Invalid):
        scene.registry.create(name)

    assert scene.registry.every() == [scene.made.client]


@pytest.mark.parametrize("client_id", ["", "gateway", "\x00", UNKNOWN])
def test_deleting_nobody_is_said(scene, client_id):
    """And is no event."""
    with pytest.raises(NotFound):
        scene.registry.delete(client_id)

    assert scene.audit.actions() == ["client.created"]


def test_creation_and_deletion_are_events(scene):
    """With the client's id, which is no secret."""
    scene.registry.delete(scene.made.client.id)

    assert scene.audit.events == [
        Event(Action.CLIENT_CREATED, detail=scene.made.client.id),
        Event(Action.CLIENT_DELETED, detail=scene.made.client.id),
    ]


@pytest.mark.parametrize(
    ("scopes", "may", "given"),
    [
        ((), None, ("introspect", "revoke", "feed")),
        (("orders:read",), None, ("token",)),
        (("orders:read",), (Right.TOKEN, Right.FEED), ("feed", "token")),
        ((), (), ()),
    ],
)
def test_scopes_bring_the_right_to_have_tokens_and_nothing_else(scene, scopes, may, given):
    """Unless rights are named: those then, and no others."""
    made = scene.registry.create("orders", scopes=scopes, may=may)

    assert made.client.may == given
    assert made.client.scopes == scopes


@pytest.mark.parametrize("scope", ["", "A", "a b", "a" * 65, "ä", "a\n", "a,b", 'a"'])
def test_a_scope_has_a_form(scene, scope):
    """RFC 6749 §3.3 allows more; these need no quoting anywhere.  Nothing is stored otherwise."""
    with pytest.raises(Invalid) as refused:
        scene.registry.create("orders", scopes=["a", scope])
    with pytest.raises(Invalid):
        scene.registry.change(scene.made.client.id, ClientChange(scopes=(scope,)))

    assert refused.value.errors.keys() == {"scopes.1"}
    assert scene.registry.every() == [scene.made.client]


def test_a_client_has_so_many_scopes_at_most(scene):
    """Each counts once, and they are kept in the order of the alphabet."""
    names = [f"s{number:02}" for number in range(MOST_SCOPES + 1)]

    with pytest.raises(Invalid):
        scene.registry.create("orders", scopes=names)
    made = scene.registry.create("orders", scopes=[*reversed(names[1:]), *names[1:]])

    assert made.client.scopes == tuple(names[1:])


@pytest.mark.parametrize(
    ("change", "is_cut"),
    [
        (ClientChange(name="two"), False),
        (ClientChange(scopes=("a", "b", "c")), False),
        (ClientChange(scopes=("a", "c")), True),
        (ClientChange(scopes=()), True),
        (ClientChange(may=(Right.TOKEN, Right.FEED)), False),
        (ClientChange(may=(Right.FEED,)), True),
    ],
    ids=["name", "more", "another", "none", "another right", "no right"],
)
def test_what_is_taken_away_cuts_off_the_tokens_of_before(scene, change, is_cut):
    """A scope, or the right to have tokens: the epoch rises, and Redis is told."""
    made = scene.registry.create("orders", scopes=("a", "b"), may=(Right.TOKEN,))

    outcome = scene.registry.change(made.client.id, change)

    assert (outcome.value.epoch, outcome.is_complete) == (int(is_cut), True)
    assert [(entry.user_id, entry.epoch) for entry in scene.redis.entries] == [(made.client.id, 1)] * is_cut


def test_who_lacked_the_right_loses_nothing_with_it(scene):
    """There are no tokens to cut off."""
    assert scene.registry.change(scene.made.client.id, ClientChange(may=())).value.epoch == 0


def test_a_second_secret_is_as_good_as_the_first_until_one_is_dropped(scene):
    """Then it is refused on its next use, and the other one stays good."""
    added = scene.registry.add_secret(scene.made.client.id)
    first = scene.made.client.secrets[0].id
    assert [scene.come().secret_id, scene.come(secret=added.secret).secret_id] == [first, added.id]

    outcome = scene.registry.drop_secret(scene.made.client.id, first)

    assert outcome.is_complete
    assert [(entry.user_id, entry.session_id) for entry in scene.redis.entries] == [
        (scene.made.client.id, first)
    ]
    with pytest.raises(ClientRefused):
        scene.come()
    assert scene.come(secret=added.secret).secret_id == added.id
    assert scene.audit.actions()[1:3] == ["client.secret_added", "client.secret_dropped"]
    assert added.secret not in repr(added)


def test_what_redis_has_not_heard_is_said(scene):
    """202: a drop, a cut and a deletion hold in SQL from then on."""
    second = scene.registry.add_secret(scene.made.client.id)
    orders = scene.registry.create("orders", scopes=("a",))
    scene.redis.is_away = True

    assert not scene.registry.drop_secret(scene.made.client.id, second.id).is_complete
    assert not scene.registry.change(orders.client.id, ClientChange(scopes=())).is_complete
    assert not scene.registry.delete(orders.client.id).is_complete


def test_the_last_use_is_stored_once_a_day(scene):
    """With the first request of the day (UTC), and not again before the next day."""
    secret = scene.made.client.secrets[0].id
    for hours in (0, 1, 11, 12, 13):
        scene.now = NOW + timedelta(hours=hours)
        scene.come()

    assert scene.secrets.noted == [(secret, date(2026, 11, 20)), (secret, date(2026, 11, 21))]


def test_a_database_that_takes_no_writes_refuses_nobody(scene):
    """And is not asked with every request; a minute later it is, and then the day is stored."""
    scene.secrets.is_read_only = True

    for _ in range(3):
        assert scene.come().client.id == scene.made.client.id
    assert len(scene.secrets.noted) == 1
    scene.secrets.is_read_only = False
    scene.now_s += NOTE_AGAIN_S
    scene.come()

    assert scene.registry.every()[0].secrets[0].last_used_on == date(2026, 11, 20)


def test_a_refused_secret_is_not_noted_as_used(scene):
    """Whoever guesses leaves no trace there."""
    with pytest.raises(ClientRefused):
        scene.come(secret="wrong")

    assert scene.secrets.noted == []
