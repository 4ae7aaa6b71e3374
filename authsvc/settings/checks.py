"""Rules between variables: contradictions, and what production refuses."""

from __future__ import annotations

import difflib
import os
import re
from itertools import combinations
from typing import TYPE_CHECKING

from authsvc.settings import variables as v
from authsvc.settings.kinds import SERVICE_LINK_ADVICE
from authsvc.settings.locations import redis_url_database
from authsvc.settings.problems import Problem, shown
from authsvc.settings.sections import VARIABLES, all_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from authsvc.settings.groups import (
        DatabaseSettings,
        HttpSettings,
        PasswordSettings,
        RedisSettings,
        SessionSettings,
        TokenSettings,
    )
    from authsvc.settings.reader import Reader

MIN_PRODUCTION_BCRYPT_COST = 10

PREFIX = "AUTHSVC_"
#: Start scripts choose the executable by it; the service itself has no use for it.
_KNOWN_ELSEWHERE = frozenset({"AUTHSVC_BIN"})
_SERVICE_LINK_NAME = re.compile(
    r"AUTHSVC_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)?)"
)

_REDIS_PARTS = (
    v.REDIS_HOST,
    v.REDIS_PORT,
    v.REDIS_USERNAME,
    v.REDIS_PASSWORD,
    v.REDIS_DB,
    v.REDIS_TLS,
)
_REDIS_PLACES = (v.REDIS_URL, v.REDIS_HOST, v.REDIS_SENTINELS, v.REDIS_CLUSTER_NODES)


def unknown_names(env: Mapping[str, str]) -> Iterator[Problem]:
    """Names under the service's own prefix that mean nothing: typing errors, or service links."""
    known = all_names()
    unknown = sorted(n for n in env if n.startswith(PREFIX) and n not in known | _KNOWN_ELSEWHERE)
    links = [name for name in unknown if _SERVICE_LINK_NAME.fullmatch(name)]
    if links:
        others = f" (and {len(links) - 1} more like it)" if len(links) > 1 else ""
        yield Problem(name=links[0], message=f"is unknown{others}: it {SERVICE_LINK_ADVICE}")
    for name in unknown:
        if name not in links:
            yield Problem(name=_printable(name), message=_unknown(name, known))


def _unknown(name: str, known: frozenset[str]) -> str:
    """Names are compared without the prefix, which alone would make all of them look alike."""
    bare = name.removeprefix(PREFIX)
    names = {candidate.removeprefix(PREFIX): candidate for candidate in sorted(known)}
    near = [bare] if bare in names else difflib.get_close_matches(bare, names)
    return (
        f"is unknown; did you mean {' or '.join(names[x] for x in near)}?"
        if near
        else "is unknown; remove it"
    )


def _printable(name: str) -> str:
    return shown(name)[1:-1]


def http_problems(http: HttpSettings, reader: Reader) -> Iterator[Problem]:
    """The two ports must differ."""
    if reader.is_sound(v.PORT, v.METRICS_PORT) and http.port == http.metrics_port:
        yield Problem(
            name="METRICS_PORT", message=f"contradicts PORT: both are {http.port}; expected two ports"
        )


def lifetime_problems(tokens: TokenSettings, sessions: SessionSettings, reader: Reader) -> Iterator[Problem]:
    """Nothing may outlive the session's absolute end."""
    lives = ((v.SESSION_IDLE_TTL, sessions.idle_ttl_s), (v.REDIS_AUTH_TOKEN_TTL, tokens.access_ttl_s))
    for variable, life_s in lives:
        if reader.is_sound(variable, v.SESSION_MAX_TTL) and life_s > sessions.max_ttl_s:
            message = f"contradicts SESSION_MAX_TTL: {life_s} s outlive its {sessions.max_ttl_s} s"
            yield Problem(name=variable.name, message=message)


def redis_problems(redis: RedisSettings, http: HttpSettings, reader: Reader) -> Iterator[Problem]:
    """One way to Redis, named in full; in memory for one process of development alone."""
    yield from _redis_places(reader)
    yield from _redis_pairs(redis, reader)
    yield from _redis_unsupported(reader)
    if redis.is_in_memory and reader.is_sound(*_REDIS_PLACES, v.REDIS_CLUSTER_ENABLED):
        yield from _redis_missing(http, reader)


def _redis_missing(http: HttpSettings, reader: Reader) -> Iterator[Problem]:
    if not reader.is_development and not reader.given(*_REDIS_PLACES, v.REDIS_CLUSTER_ENABLED):
        yield Problem(
            name="REDIS_URL", message="is missing, and REDIS_HOST too; expected one of the two in production"
        )
    if reader.is_development and http.workers > 1:
        yield Problem(
            name="WEB_CONCURRENCY",
            message="contradicts the in-memory store, which one process cannot share;"
            " expected 1, or a Redis in REDIS_URL or REDIS_HOST",
        )


def _redis_places(reader: Reader) -> Iterator[Problem]:
    parts = reader.given(*_REDIS_PARTS)
    if reader.given(v.REDIS_URL) and parts:
        yield Problem(
            name="REDIS_URL", message=f"contradicts {', '.join(parts)}: set the URL alone or the parts alone"
        )
    for one, other in combinations(reader.given(*_REDIS_PLACES), 2):
        if (one, other) != ("REDIS_URL", "REDIS_HOST"):
            yield Problem(name=one, message=f"contradicts {other}: Redis is to be found in one way")


def _redis_pairs(redis: RedisSettings, reader: Reader) -> Iterator[Problem]:
    needs = (
        (v.REDIS_SENTINELS, v.REDIS_SENTINEL_SERVICE),
        (v.REDIS_SENTINEL_SERVICE, v.REDIS_SENTINELS),
        (v.REDIS_SENTINEL_PASSWORD, v.REDIS_SENTINELS),
    )
    for variable, needed in needs:
        if reader.given(variable) and not reader.given(needed):
            yield Problem(name=variable.name, message=f"has no meaning without {needed.name}; expected both")
    if reader.is_sound(v.REDIS_CLUSTER_ENABLED):
        yield from _cluster_pairs(redis, reader)


def _cluster_pairs(redis: RedisSettings, reader: Reader) -> Iterator[Problem]:
    if bool(reader.given(v.REDIS_CLUSTER_NODES)) != redis.is_cluster:
        yield Problem(
            name="REDIS_CLUSTER_ENABLED",
            message="contradicts REDIS_CLUSTER_NODES; expected `true` and a list of nodes, or neither",
        )
    if redis.is_cluster and reader.given(v.REDIS_SENTINELS) and not reader.given(v.REDIS_CLUSTER_NODES):
        yield Problem(name="REDIS_CLUSTER_ENABLED", message="contradicts REDIS_SENTINELS: set one of the two")
    if redis.is_cluster and _database_number(redis) != 0:
        yield Problem(
            name="REDIS_CLUSTER_ENABLED", message="contradicts the database number: a cluster has 0 alone"
        )


def _database_number(redis: RedisSettings) -> int:
    return redis_url_database(redis.url) if redis.url else redis.db


def _redis_unsupported(reader: Reader) -> Iterator[Problem]:
    """Sentinel and Cluster are parsed and checked; the table says whether the service speaks to them."""
    for name in reader.given(*(variable for variable in VARIABLES if not variable.is_supported)):
        message = "is not supported by this version yet; expected REDIS_URL or REDIS_HOST"
        yield Problem(name=name, message=message)


def production_problems(
    database: DatabaseSettings, passwords: PasswordSettings, reader: Reader
) -> Iterator[Problem]:
    """What is good enough for development alone."""
    if reader.is_sound(v.DATABASE_URL) and database.is_sqlite:
        yield Problem(
            name="DATABASE_URL", message="is SQLite, for development alone; expected postgresql://…"
        )
    if passwords.bcrypt_cost < MIN_PRODUCTION_BCRYPT_COST:
        message = f"is {passwords.bcrypt_cost}; expected {MIN_PRODUCTION_BCRYPT_COST} or more in production"
        yield Problem(name="BCRYPT_COST", message=message)


def key_folder_problems(tokens: TokenSettings, reader: Reader) -> Iterator[Problem]:
    """The folder must be there; development makes one where nothing is in its way."""
    if not reader.is_sound(v.JWT_KEYS_DIR) or _is_directory(tokens.keys_dir):
        return
    if not reader.is_development or os.path.lexists(tokens.keys_dir):
        message = "is no directory that can be reached; expected one with PEM files"
        yield Problem(name="JWT_KEYS_DIR", message=message)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
