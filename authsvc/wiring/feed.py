"""The revocation feed over the stores."""

from __future__ import annotations

import time

from authsvc.domain.feed import Lookout, RevocationFeed
from authsvc.domain.values.clocks import Clock
from authsvc.store.revocations import SqlFeedLog
from authsvc.wiring.stores import Stores

#: Readers that wait in one process: a quarter of its threads, so that a feed never takes those of the checks.
PLACES = 8


def revocation_feed(stores: Stores, clock: Clock) -> RevocationFeed:
    """One for the process; asks SQL only while somebody reads."""
    log = SqlFeedLog(stores.database, stores.log, clock)
    return RevocationFeed(log, Lookout(log, time.monotonic), time.monotonic, places=PLACES)
