"""What the stores of clients and their secrets promise, on PostgreSQL, on SQLite and in memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, select

from authsvc.domain.client_authentication import NOBODY
from authsvc.domain.clients import (
    MOST_SECRETS,
    USUAL_RIGHTS,
    Client,
    ClientId,
    ClientStore,
    Right,
    Secret,
    SecretId,
    SecretStore,
    StoredClient,
    secret_digest,
)
from authsvc.domain.errors import NotFound, StoreUnavailable, TooMany
from authsvc.domain.values.identifiers import new_id
from authsvc.store.clients import SqlClientStore, SqlMachineTokenStore, SqlSecretStore
from authsvc.store.sql import Database
from authsvc.store.tables import clients
from tests.contract.cache.clients import in_threads
from tests.contract.copies.redis_side import machine_token
from tests.contract.store.memory_clients import MemoryClientStore, MemorySecretStore
from tests.contract.store.stores import Stores, WallClock, open_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from authsvc.domain.revocations import Revocation
    from authsvc.domain.tokens.access import MachineToken

RACERS = 8
MONDAY = date(2026, 11, 23)


@dataclass(frozen=True)
class Side:
    """One implementation, a clock, and how to cut it off."""

    clients: ClientStore
    secrets: SecretStore
    clock: WallClock
    away: Callable[[], AbstractContextManager[None]]


def over(database: Database) -> Side:
    """Return both stores over *database*."""
    stores = Stores.over(database)
    return Side(
        SqlClientStore(database, stores.log),
        SqlSecretStore(database, stores.log),
        stores.clock,
        partial(hidden_table, database),
    )


@pytest.fixture(params=["memory", "postgres_url", "sqlite_url"])
def side(request) -> Iterator[Side]:
    """Open the stores in memory, then over each kind of database."""
    if request.param == "memory":
        store = MemoryClientStore()
        yield Side(store, MemorySecretStore(store), WallClock(), partial(hidden_memory, store))
        return
    with closing(open_database(request.getfixturevalue(request.param))) as database:
        yield over(database)


@pytest.fixture(params=["postgres_url", "sqlite_url"])
def database(request) -> Iterator[Database]:
    """Open each kind of database."""
    with closing(open_database(request.getfixturevalue(request.param))) as opened:
        yield opened


@contextmanager
def hidden_memory(store: MemoryClientStore) -> Iterator[None]:
    """Say that it is away."""
    store.is_away = True
    try:
        yield
    finally:
        store.is_away = False


@contextmanager
def hidden_table(database: Database) -> Iterator[None]:
    """Take its table away."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE clients RENAME TO hidden")
    try:
        yield
    finally:
        with database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO clients")


def a_secret(side: Side) -> Secret:
    """Return a secret of a moment later."""
    return Secret(id=SecretId(new_id()), created_at=side.clock.tick(1))


def add(side: Side, name: str, *may: Right, scopes: tuple[str, ...] = ()) -> StoredClient:
    """Add a client whose secret is its name."""
    secret = a_secret(side)
    client = Client(
        id=ClientId(new_id()),
        name=name,
        scopes=scopes,
        may=may,
        created_at=secret.created_at,
        secrets=(secret,),
    )
    side.clients.add(client, secret_digest(name))
    return StoredClient(client=client, digests={secret.id: secret_digest(name)})


def by_an_older_version(database: Database) -> ClientId:
    """Insert a client as the version before does: it has no table of secrets."""
    client_id = ClientId(new_id())
    row = {"id": client_id, "name": "x", "secret_hash": secret_digest("old"), "created_at": WallClock().now}
    with database.transaction() as connection:
        connection.execute(insert(clients).values(row))
    return client_id


def older_digest(database: Database, client_id: ClientId) -> str:
    """Return the digest that the version before compares with."""
    statement = select(clients.c.secret_hash).where(clients.c.id == client_id)
    with database.read() as connection:
        found: str = connection.execute(statement).scalar_one()
    return found


def ends(entries: tuple[Revocation, ...]) -> list[tuple[str, str | None, int | None]]:
    """Return what entries of the log end: owner, session, epoch."""
    return [(entry.user_id, entry.session_id, entry.epoch) for entry in entries]


def test_a_client_is_found_by_its_id_with_its_digest(side):
    """Every field as it went in; names need not be unique."""
    first = add(side, "gäteway", Right.INTROSPECT_REFRESH, Right.TOKEN, scopes=("a:read", "b/c"))
    second = add(side, "gäteway")

    assert side.clients.find(first.client.id) == first
    assert side.clients.find(second.client.id) == second
    assert side.clients.find(ClientId(new_id())) is None
    assert side.clients.find(NOBODY) is None


def test_a_row_without_rights_has_the_usual_ones_and_no_unknown_one(database):
    """Version 0.1.0 names none; a newer one may know rights that this one does not give."""
    side = over(database)
    by_an_older_version(database)
    (older,) = side.clients.every()
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE clients SET may = 'scim feed'")
    (newer,) = side.clients.every()

    assert (older.may, newer.may) == (USUAL_RIGHTS, (Right.FEED,))


def test_all_clients_are_listed_the_oldest_first(side):
    """Whatever their ids."""
    added = [add(side, f"client {number}").client for number in range(5)]
    side.clock.tick(-3600)
    earlier = add(side, "earlier").client

    assert side.clients.every() == [earlier, *added]
    assert all(client.created_at.utcoffset() == timedelta() for client in side.clients.every())


def test_a_removed_client_is_gone_with_its_secrets_and_tokens(side):
    """It alone; the log ends the tokens of each secret, and of the client."""
    gone, stays = add(side, "gone").client, add(side, "stays").client
    second = a_secret(side)
    side.secrets.add(gone.id, second, secret_digest("second"))

    committed = side.clients.remove(gone.id)

    assert committed.value.id == gone.id
    assert ends(committed.entries) == [
        (gone.id, gone.secrets[0].id, None),
        (gone.id, second.id, None),
        (gone.id, None, 1),
    ]
    with pytest.raises(NotFound):
        side.clients.remove(gone.id)
    assert side.clients.find(gone.id) is None
    assert side.clients.every() == [stays]


def test_one_of_many_removes_a_client(side):
    """However many try at once."""
    client = add(side, "gone").client

    def remove() -> bool:
        try:
            side.clients.remove(client.id)
        except NotFound:
            return False
        return True

    assert sum(in_threads(*[remove] * RACERS)) == 1


def test_a_change_keeps_the_rest_and_is_in_the_log_where_it_cuts_off(side):
    """The epoch is what tokens carry: an entry for each rise, and for a repetition once more."""
    client = add(side, "one", Right.FEED, scopes=("a", "b")).client

    renamed = side.clients.change(client.id, lambda found: replace(found, name="two"))
    cut = side.clients.change(client.id, lambda found: replace(found, scopes=("a",), epoch=found.epoch + 1))
    repeated = side.clients.change(client.id, lambda found: found)

    assert renamed.value == replace(client, name="two")
    assert renamed.entries == ()
    assert ends(cut.entries) == ends(repeated.entries) == [(client.id, None, 1)]
    assert (cut.entries[0].seq > 0, repeated.entries[0].seq) == (True, 0)
    stored = side.clients.find(client.id)
    assert stored is not None
    assert stored.client == replace(client, name="two", scopes=("a",), epoch=1)
    with pytest.raises(NotFound):
        side.clients.change(ClientId(new_id()), lambda found: found)


def test_a_client_has_two_secrets_at_most_whoever_races(side):
    """Both are recognised, the oldest first; the third is refused."""
    client = add(side, "first").client

    def another() -> str:
        try:
            side.secrets.add(client.id, a_secret(side), secret_digest("second"))
        except TooMany as error:
            return error.code
        return "added"

    assert sorted(in_threads(*[another] * RACERS)) == ["added"] + ["too_many"] * (RACERS - 1)

    stored = side.clients.find(client.id)
    assert stored is not None
    assert len(stored.client.secrets) == MOST_SECRETS
    assert [stored.digests[one.id] for one in stored.client.secrets] == [
        secret_digest("first"),
        secret_digest("second"),
    ]
    with pytest.raises(NotFound):
        side.secrets.add(ClientId(new_id()), a_secret(side), secret_digest("lost"))


def test_a_dropped_secret_is_gone_and_ends_its_tokens_alone(side):
    """Another client's, or one that is gone already, is not found; the last one may go, too."""
    client, other = add(side, "first").client, add(side, "other").client
    first, second = client.secrets[0].id, a_secret(side)
    side.secrets.add(client.id, second, secret_digest("second"))

    committed = side.secrets.drop(client.id, first)

    assert ends(committed.entries) == [(client.id, first, None)]
    stored = side.clients.find(client.id)
    assert stored is not None
    assert (stored.client.secrets, stored.digests) == ((second,), {second.id: secret_digest("second")})
    for client_id, secret_id in ((client.id, first), (other.id, second.id), (NOBODY, second.id)):
        with pytest.raises(NotFound):
            side.secrets.drop(client_id, secret_id)
    side.secrets.drop(client.id, second.id)
    assert [one.secrets for one in side.clients.every()] == [(), other.secrets]


def test_the_day_of_the_last_use_never_goes_back(side):
    """Clocks of two processes may differ."""
    client = add(side, "one").client
    secret = client.secrets[0].id

    for day in (MONDAY, MONDAY + timedelta(days=1), MONDAY):
        side.secrets.note_use(client.id, secret, day)

    (listed,) = side.clients.every()
    assert [one.last_used_on for one in listed.secrets] == [MONDAY + timedelta(days=1)]


def test_a_use_is_not_noted_of_a_client_that_was_deleted_meanwhile(side):
    """Nor is that an error; the first secrets of old clients have the ids of their clients."""
    client = add(side, "one").client
    side.clients.remove(client.id)

    for secret_id in (client.secrets[0].id, SecretId(client.id)):
        side.secrets.note_use(client.id, secret_id, MONDAY)

    assert side.clients.every() == []


def test_a_client_that_an_older_version_adds_has_its_secret(database):
    """It is named like its client, can be noted as used, and gets a second one beside it."""
    side = over(database)
    client_id = by_an_older_version(database)
    secret_id = SecretId(client_id)

    found = side.clients.find(client_id)
    assert found is not None
    assert found.digests == {secret_id: secret_digest("old")}
    side.secrets.note_use(client_id, secret_id, MONDAY)
    second = a_secret(side)
    side.secrets.add(client_id, second, secret_digest("second"))

    stored = side.clients.find(client_id)
    assert stored is not None
    assert [one.id for one in stored.client.secrets] == [secret_id, second.id]
    assert stored.client.secrets[0].last_used_on == MONDAY


def test_an_older_version_knows_the_oldest_secret(database):
    """The one that is dropped is refused there, too; without any nobody gets in."""
    side = over(database)
    client = add(side, "first").client
    second = a_secret(side)

    side.secrets.add(client.id, second, secret_digest("second"))
    assert older_digest(database, client.id) == secret_digest("first")
    side.secrets.drop(client.id, client.secrets[0].id)
    assert older_digest(database, client.id) == secret_digest("second")
    side.secrets.drop(client.id, second.id)
    assert older_digest(database, client.id) == ""

    assert side.clients.every()[0].secrets == ()


def test_a_database_that_does_not_answer_is_said(side):
    """Never "unknown": that would be a refusal."""
    with side.away():
        for question in (
            partial(side.clients.find, NOBODY),
            side.clients.every,
            partial(side.clients.remove, NOBODY),
            partial(side.clients.change, NOBODY, lambda found: found),
            partial(side.secrets.drop, NOBODY, SecretId(NOBODY)),
            partial(add, side, "lost"),
        ):
            with pytest.raises(StoreUnavailable):
                question()

    assert side.clients.every() == []


def a_token(client: Client, clock: WallClock) -> MachineToken:
    """A token that *client* got with its oldest secret."""
    return machine_token(clock, client_id=client.id, session_id=client.secrets[0].id, scopes=client.scopes)


def test_a_token_stands_with_its_secret_and_its_client(database):
    """As both are now; None once either is gone."""
    side, stores = over(database), Stores.over(database)
    tokens = SqlMachineTokenStore(database, stores.log)
    client = add(side, "one", Right.TOKEN, scopes=("a", "b")).client
    token = a_token(client, side.clock)

    standing = tokens.standing(token)
    assert standing is not None
    assert (standing.client, standing.is_revoked, standing.is_good_for(token)) == (client, False, True)
    side.clients.change(client.id, lambda found: replace(found, scopes=("a",)))
    without_scope = tokens.standing(token)
    assert without_scope is not None
    assert not without_scope.is_good_for(token)
    assert tokens.standing(replace(token, session_id=new_id())) is None
    side.secrets.drop(client.id, client.secrets[0].id)
    assert tokens.standing(token) is None
    side.clients.remove(client.id)
    assert tokens.standing(token) is None


def test_a_token_stands_with_a_secret_that_an_older_version_added(database):
    """It has no row of its own, and the client no secret but that."""
    side = over(database)
    client_id = by_an_older_version(database)
    token = machine_token(side.clock, client_id=client_id, session_id=client_id, scopes=())

    standing = SqlMachineTokenStore(database, Stores.over(database).log).standing(token)

    assert standing is not None
    assert standing.is_good_for(token)


def test_one_token_is_revoked_alone(database):
    """The log has one entry of it, which a repetition only repeats; its client's others stand."""
    side, stores = over(database), Stores.over(database)
    tokens = SqlMachineTokenStore(database, stores.log)
    client = add(side, "one", Right.TOKEN, scopes=("a",)).client
    token, other = a_token(client, side.clock), a_token(client, side.clock)

    first, again = tokens.revoke(token), tokens.revoke(token)

    assert [(entry.token_id, entry.session_id) for entry in first.entries] == [(token.token_id, None)]
    assert (first.entries[0].seq > 0, again.entries[0].seq) == (True, 0)
    standings = [tokens.standing(one) for one in (token, other)]
    assert [one is not None and one.is_good_for(token) for one in standings] == [False, True]
