"""What a client store promises, on PostgreSQL, on SQLite and in memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from authsvc.domain.clients import (
    NOBODY,
    USUAL_RIGHTS,
    Client,
    ClientId,
    ClientStore,
    Right,
    StoredClient,
    secret_digest,
)
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.identifiers import new_id
from authsvc.store.clients import SqlClientStore
from authsvc.store.sql import Database
from tests.contract.cache.clients import in_threads
from tests.contract.store.stores import MemoryClientStore, WallClock, open_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RACERS = 8


@dataclass(frozen=True)
class Side:
    """One implementation, a clock, and how to cut it off."""

    clients: ClientStore
    clock: WallClock
    away: Callable[[], AbstractContextManager[None]]


@pytest.fixture(params=["memory", "postgres_url", "sqlite_url"])
def side(request) -> Iterator[Side]:
    """Open a client store in memory, then over each kind of database."""
    if request.param == "memory":
        store = MemoryClientStore()
        yield Side(store, WallClock(), partial(hidden_memory, store))
        return
    with closing(open_database(request.getfixturevalue(request.param))) as database:
        yield Side(SqlClientStore(database), WallClock(), partial(hidden_table, database))


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


def add(side: Side, name: str, *may: Right) -> StoredClient:
    """Add a client whose secret is its name."""
    client = Client(id=ClientId(new_id()), name=name, may=may, created_at=side.clock.tick(1))
    side.clients.add(client, secret_digest(name))
    return StoredClient(client=client, digest=secret_digest(name))


def test_a_client_is_found_by_its_id_with_its_digest(side):
    """Every field as it went in; names need not be unique."""
    first, second = add(side, "gäteway", Right.INTROSPECT_REFRESH, Right.FEED), add(side, "gäteway")

    assert side.clients.find(first.client.id) == first
    assert side.clients.find(second.client.id) == second
    assert side.clients.find(ClientId(new_id())) is None
    assert side.clients.find(NOBODY) is None


@pytest.mark.parametrize("url", ["postgres_url", "sqlite_url"])
def test_a_row_without_rights_has_the_usual_ones_and_no_unknown_one(request, url):
    """Version 0.1.0 names none; a newer one may know rights that this one does not give."""
    with closing(open_database(request.getfixturevalue(url))) as database:
        clients = SqlClientStore(database)
        columns = "INSERT INTO clients (id, name, secret_hash, created_at"
        values = f"VALUES ('{new_id()}', 'x', 'x', '2026-11-20'"
        with database.transaction() as connection:
            connection.exec_driver_sql(f"{columns}) {values})")
        (older,) = clients.every()
        with database.transaction() as connection:
            connection.exec_driver_sql("UPDATE clients SET may = 'token feed scim'")
        (newer,) = clients.every()

    assert (older.may, newer.may) == (USUAL_RIGHTS, (Right.FEED,))


def test_all_clients_are_listed_the_oldest_first(side):
    """Whatever their ids."""
    added = [add(side, f"client {number}").client for number in range(5)]
    side.clock.tick(-3600)
    earlier = add(side, "earlier").client

    assert side.clients.every() == [earlier, *added]
    assert all(client.created_at.utcoffset() == timedelta() for client in side.clients.every())


def test_a_removed_client_is_gone(side):
    """It alone; removing it again says that there was none."""
    gone, stays = add(side, "gone").client, add(side, "stays").client

    assert side.clients.remove(gone.id)

    assert not side.clients.remove(gone.id)
    assert side.clients.find(gone.id) is None
    assert side.clients.every() == [stays]


def test_one_of_many_removes_a_client(side):
    """However many try at once."""
    client = add(side, "gone").client

    removed = in_threads(*[partial(side.clients.remove, client.id)] * RACERS)

    assert sum(removed) == 1


def test_a_database_that_does_not_answer_is_said(side):
    """Never "unknown": that would be a refusal."""
    with side.away():
        for question in (partial(side.clients.find, NOBODY), side.clients.every):
            with pytest.raises(StoreUnavailable):
                question()
        with pytest.raises(StoreUnavailable):
            side.clients.remove(NOBODY)
        with pytest.raises(StoreUnavailable):
            add(side, "lost")

    assert side.clients.every() == []
