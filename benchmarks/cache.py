"""
What the cache costs and saves, as ratios within one run.

    python benchmarks/cache.py [--rounds 60] [--reads 200]

Brings its own Redis.  The works to compare take turns, many short ones, and the middle turn of each counts:
what else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent))

from redis import Redis

from authsvc.cache import (
    Aside,
    CacheClient,
    CircuitBreaker,
    Display,
    Entry,
    Invalidations,
    KeySpace,
    Near,
    Records,
    RedisAddress,
    Refresher,
    Shape,
    SingleFlight,
    Tagging,
    Tags,
    TrustCheck,
    Values,
    bounded_pool,
)
from tests.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = KeySpace("bench")
SPACE = KEYS.space("user", ttl_s=600)
BATCH = 100
COLD_KEYS, RATE_PER_S, STORM_S = 10, 500, 2.0


@dataclass(frozen=True, slots=True)
class User:
    """A record of the usual size."""

    id: str
    email: str
    name: str
    roles: list[str]
    preferences: dict[str, object]
    version: int


SHAPE: Shape[User] = Shape(
    schema=1,
    dump=lambda user: Entry(
        {
            "id": user.id,
            "email": user.email,
            "name": user.name,
            "roles": list(user.roles),
            "preferences": {"theme": "dark", "language": "en", "newsletter": False},
        },
        user.version,
    ),
    load=lambda entry: User(
        str(entry.fields["id"]),
        str(entry.fields["email"]),
        str(entry.fields["name"]),
        list(entry.fields["roles"]),  # type: ignore[arg-type]
        dict(entry.fields["preferences"]),  # type: ignore[arg-type]
        entry.row_version,
    ),
)


def user(ident: str) -> User:
    """Load any user."""
    return User(ident, f"user{ident}@example.com", f"User Number {ident}", ["user"], {}, 1)


def main() -> None:
    """Measure everything and print one line for each figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--reads", type=int, default=200)
    options = parser.parse_args()
    with RedisServer() as server:
        client = open_client(server.url, CircuitBreaker(clock=time.monotonic))
        aside = Aside(
            Records(
                client=client,
                space=SPACE,
                shape=SHAPE,
                lease_ms=5000,
                rng=random.random,
            )
        )
        compare_hits(server.url, aside, options.rounds, options.reads)
        compare_batch(aside, options.rounds)
        storm(
            replace(
                aside,
                records=replace(aside.records, space=KEYS.space("cold", ttl_s=600)),
                single_flight=SingleFlight(retry_s=0.05),
            )
        )
        compare_breaker(server)


def open_client(url: str, breaker: CircuitBreaker) -> CacheClient:
    """Return a client with the service's own deadlines."""
    return CacheClient(
        bounded_pool(RedisAddress.from_url(url), size=32), breaker=breaker, clock=time.monotonic
    )


def compare_hits(url: str, aside: Aside[User], rounds: int, reads: int) -> None:
    """A hit against a raw redis-py GET of the same value."""
    aside.get_or_load("7", user)
    key = SPACE.key("7")
    raw = Redis.from_url(url)
    values = Values(client=aside.client, space=KEYS.space("value", ttl_s=600))
    values.set("7", {"id": "7", "name": "User Number 7"})
    refresher = Refresher()
    shown = replace(
        aside,
        records=replace(
            aside.records,
            space=KEYS.space("shown", ttl_s=600),
            display=Display(refresher=refresher, stale_s=60),
        ),
    )
    tags = Tags(client=aside.client, space=KEYS.space("tag", ttl_s=6000))
    tagged = replace(
        aside,
        records=replace(
            aside.records,
            space=KEYS.space("tagged", ttl_s=600),
            tagging=Tagging(tags=tags, by=lambda _: ("all",)),
        ),
    )
    proven = replace(
        aside,
        records=replace(
            aside.records,
            trust=TrustCheck(marker_key="bench:v1:marker", trusted=lambda _marker, _generation: True),
        ),
    )
    invalidations = Invalidations(bounded_pool(RedisAddress.from_url(url), size=1), KEYS)
    near = Near(shown, invalidations, ttl_s=600, max_entries=100, clock=time.monotonic)
    works: dict[str, Callable[[], object]] = {
        "raw GET": lambda: raw.get(key),
        "record, hit": lambda: aside.get_or_load("7", user),
        "record with proof marker, hit": lambda: proven.get_or_load("7", user),
        "record for display, hit": lambda: shown.get_or_load("7", user),
        "record with a tag, hit": lambda: tagged.get_or_load("7", user),
        "plain value, hit": lambda: values.get("7"),
        "record kept in the process, hit": lambda: near.get_or_load("7", user),
    }
    took = measure(works, rounds, reads)
    for name, seconds in took.items():
        print(f"{name}: {seconds * 1e6:.0f} us, {seconds / took['raw GET']:.2f} x raw GET")
    refresher.close()
    raw.close()


def measure(works: dict[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, float]:
    """Return the middle round of each work, in seconds for one; all take turns in each round."""
    took: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            took[name].append((time.perf_counter() - began) / repeats)
    return {name: statistics.median(times) for name, times in took.items()}


def compare_batch(aside: Aside[User], rounds: int) -> None:
    """100 cached records in one go against one by one."""
    idents = [str(number) for number in range(BATCH)]
    many = lambda missing: {ident: user(ident) for ident in missing}  # noqa: E731 once, here
    took = measure(
        {
            "one by one": lambda: [aside.get_or_load(ident, user) for ident in idents],
            "at once": lambda: aside.get_or_load_many(idents, many),
        },
        rounds,
        20,
    )
    print(f"{BATCH} records at once: {took['one by one'] / took['at once']:.1f} x faster than one by one")


def storm(aside: Aside[User]) -> None:
    """500 reads a second on 10 cold records whose load takes 50 ms: loads for each."""
    loads: dict[str, int] = dict.fromkeys(map(str, range(COLD_KEYS)), 0)
    counting = threading.Lock()

    def load(ident: str) -> User:
        with counting:
            loads[ident] += 1
        time.sleep(0.05)
        return user(ident)

    readers = []
    for number in range(int(RATE_PER_S * STORM_S)):
        reader = threading.Thread(target=aside.get_or_load, args=(str(number % COLD_KEYS), load))
        reader.start()
        readers.append(reader)
        time.sleep(1 / RATE_PER_S)
    for reader in readers:
        reader.join()
    print(f"{RATE_PER_S} reads/s on {COLD_KEYS} cold records: at most {max(loads.values())} load for each")


def compare_breaker(server: RedisServer) -> None:
    """Reads while Redis hangs, with the breaker and with one that never opens."""
    never = CircuitBreaker(failure_threshold=1_000_000, clock=time.monotonic)
    usual = CircuitBreaker(clock=time.monotonic)
    server.pause()
    for name, breaker in (("with the breaker", usual), ("without", never)):
        aside = Aside(
            Records(
                client=open_client(server.url, breaker),
                space=SPACE,
                shape=SHAPE,
                lease_ms=5000,
                rng=random.random,
            )
        )
        took = sorted(one_read(aside) for _ in range(40))
        print(f"Redis hangs, {name}: middle {took[20] * 1000:.1f} ms, slowest {took[-1] * 1000:.0f} ms")
    server.resume()


def one_read(aside: Aside[User]) -> float:
    """Return how long one read takes, in seconds."""
    began = time.perf_counter()
    aside.get_or_load("7", user)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
