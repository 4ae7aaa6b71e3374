"""Commands for the user cache: warm, clear, stats."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict

from authsvc.cli.admin import open_services
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.identifiers import UserId, canonical_id
from authsvc.services import Services

#: Attempts to compare Redis with SQL, with a pause (seconds) between them.
COMPARISONS = 5
PAUSE_S = 0.3


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``cache``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    warming = actions.add_parser("warm", help="load the users who logged in last")
    warming.set_defaults(run=run_warm)
    clearing = actions.add_parser("clear", help="drop what is cached of users; nobody is logged out by it")
    clearing.add_argument("--user", metavar="ID", help="of this user alone")
    clearing.set_defaults(run=run_clear)
    stats = actions.add_parser("stats", help="show health, memory and key space of Redis")
    stats.set_defaults(run=run_stats)


def run_warm(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Run the warmers."""
    with closing(open_services(options, env)) as services:
        services.cache.snapshot()  # fails at once if Redis is down
        _compare(services)
        print(json.dumps({"warmed": services.cache.warm()}))
    return 0


def run_clear(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Drop cached users."""
    named = None if options.user is None else canonical_id(options.user)
    if options.user is not None and named is None:
        raise ValueError("--user takes the id of a user")
    with closing(open_services(options, env)) as services:
        user_id = UserId(named) if named else None
        print(json.dumps({"cleared": services.cache.clear(user_id)}))
    return 0


def run_stats(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Show the state of Redis; only the running service knows hits and misses (/v1/cache/stats)."""
    with closing(open_services(options, env)) as services:
        snapshot = services.cache.snapshot()
    health = {"connected": snapshot.health.is_connected, "latency_ms": snapshot.health.latency_ms}
    memory = asdict(snapshot.memory[0]) if snapshot.memory else {}
    print(json.dumps({"health": health, "memory": memory, "keyspace": asdict(snapshot.keyspace)}))
    return 0


def _compare(services: Services) -> None:
    """Compare Redis with SQL, without which nothing is cached or trusted. Raises StoreUnavailable."""
    for _ in range(COMPARISONS):
        if services.compare():
            return
        # A worker holds the claim to compare. It takes milliseconds, and nothing signals its end: ask again.
        time.sleep(PAUSE_S)
    raise StoreUnavailable("redis could not be compared with sql")
