"""Users in bulk while the database comes and goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from authsvc.domain.errors import StoreUnavailable
from authsvc.store.accounts.transfers import PAUSES_S, SqlUserTransfers
from authsvc.store.tables import metadata
from tests.contract.store.stores import Stores, open_database
from tests.servers.proxy import Mode, TcpProxy
from tests.transfers import arrival

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def proxy(database_url) -> Iterator[TcpProxy]:
    """What stands between the store and PostgreSQL."""
    with TcpProxy(database_url) as running:
        yield running


@pytest.fixture
def stores(proxy, database_url) -> Iterator[Stores]:
    """The stores over that connection."""
    database = open_database(proxy.url_for(database_url))
    metadata.create_all(database.engine)
    yield Stores.over(database)
    database.close()


def test_a_database_that_is_away_for_a_moment_is_waited_for(stores, proxy):
    """A batch, a page, a count: what failed is done again, and done once."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) % 2 == 0:
            proxy.switch(Mode.PASS)

    transfers = SqlUserTransfers(stores.database, stores.log, stores.clock, pause=pause)
    proxy.switch(Mode.REFUSE)
    verdicts = transfers.add([arrival("a"), arrival("b")], brought_ids=()).value
    proxy.switch(Mode.REFUSE)
    pages = list(transfers.pages(with_hashes=False))
    proxy.switch(Mode.REFUSE)
    kinds = transfers.kinds_of_hashes()

    assert verdicts == ["imported", "imported"]
    assert [len(page) for page in pages] == [2]
    assert kinds == {"$2b$04$": 2}
    assert pauses == [*PAUSES_S[:2]] * 3


def test_an_outage_that_lasts_ends_the_job(stores, proxy):
    """After 15.5 s of waiting, and with nothing half done."""
    pauses: list[float] = []
    transfers = SqlUserTransfers(stores.database, stores.log, stores.clock, pause=pauses.append)
    proxy.switch(Mode.REFUSE)

    with pytest.raises(StoreUnavailable):
        transfers.add([arrival("a")], brought_ids=())

    proxy.switch(Mode.PASS)
    assert sum(pauses) == 15.5
    assert list(transfers.pages(with_hashes=False)) == []
