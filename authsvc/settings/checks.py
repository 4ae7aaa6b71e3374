"""Rules between variables: contradictions, and what production refuses."""

from __future__ import annotations

import difflib
import os
import re
from itertools import combinations
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from authsvc.settings.accounts import EmailVerification, MailTransport, RegistrationMode, SmtpTls
from authsvc.settings.kinds import SERVICE_LINK, SERVICE_LINK_ADVICE, InvalidValue, shown
from authsvc.settings.locations import redis_url_database
from authsvc.settings.postgresql import server_settings
from authsvc.settings.reader import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from authsvc.settings.accounts import (
        MailSettings,
        PasswordSettings,
        RegistrationSettings,
        SessionSettings,
        TokenSettings,
    )
    from authsvc.settings.infrastructure import DatabaseSettings, HttpSettings, RedisSettings
    from authsvc.settings.reader import Reader

MIN_PRODUCTION_BCRYPT_COST = 10

PREFIX = "AUTHSVC_"
#: libpq's own variable.
PGOPTIONS = "PGOPTIONS"
#: Prefixes of the service's own names: an unknown name with one of them is an error.
_OWN = (PREFIX, "BCRYPT_", "CACHE_CB_", "CACHE_KEY_", "CACHE_LOCK_", "RATE_LIMIT_", "REVOCATION_")
#: Prefixes that other programs may use, too: an unknown name that resembles a setting is a warning.
_SHARED = (
    *("CACHE_", "JWT_", "PASSWORD_", "REDIS_", "REFRESH_"),
    *("SESSION_", "TOKEN_", "TRACING_", "TRUSTED_", "WEBAUTHN_"),
)
#: Settings of earlier releases, and why they are gone.
REMOVED = {"CACHE_STALE_TTL": "nothing that is cached is served stale"}
#: Ignored: start scripts use the first for the executable, X11 the second for its session.
_KNOWN_ELSEWHERE = frozenset({"AUTHSVC_BIN", "SESSION_MANAGER", *REMOVED})
_SERVICE_LINK_NAME = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
#: Similarity (0 to 1) from which a name with a common prefix counts as a typing error of the other.
_ALIKE = 0.8
#: Changed characters, at most, that count as a typing error in other names, if these are long enough.
_SLIP_CHARACTERS = 2
_LONG_NAME = 8

_REDIS_PARTS = (
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_USERNAME",
    "REDIS_PASSWORD",
    "REDIS_DB",
    "REDIS_TLS",
)
_REDIS_PLACES = ("REDIS_URL", "REDIS_HOST", "REDIS_SENTINELS", "REDIS_CLUSTER_NODES")


def unknown_names(env: Mapping[str, str], known: frozenset[str]) -> Iterator[Problem]:
    """Problems of names that are not *known*: with the service's prefix, mistyped settings, service links."""
    links = sorted(name for name, value in env.items() if name.startswith(PREFIX) and _is_link(name, value))
    if links:
        others = f" (and {len(links) - 1} more like it)" if len(links) > 1 else ""
        yield Problem(name=links[0], message=f"is unknown{others}: it {SERVICE_LINK_ADVICE}")
    for name in _strangers(env, known):
        meant = _meant(name, known)
        if _is_refused(name, meant, env):
            advice = f"did you mean {meant}?" if meant else "remove it"
            yield Problem(name=_printable(name), message=f"is unknown; {advice}")


def ignored_names(env: Mapping[str, str], known: frozenset[str]) -> Iterator[str]:
    """Warnings of settings that were removed, and of other programs' names that look like settings."""
    for name, why in REMOVED.items():
        if name in env:
            yield f"{name} has no effect any more ({why}): remove it"
    for name in _strangers(env, known):
        meant = _meant(name, known)
        if _is_refused(name, meant, env) or not (meant or name.startswith(_SHARED)):
            continue
        beside = f"; {meant} is set" if meant else ""
        yield f"{_printable(name)} is no setting of the service, and has no effect on it{beside}"


def _is_refused(name: str, meant: str | None, env: Mapping[str, str]) -> bool:
    """
    True if an unknown *name* has the service's prefix, or is a mistyped *meant*.

    A name that only resembles a setting may belong to another program: it is allowed if that setting is set,
    too.
    """
    if name.startswith(_OWN):
        return True
    is_slip = meant is not None and name.startswith(_SHARED) and _is_slip(name, meant)
    return is_slip or (meant is not None and not _is_set(meant, env))


def _is_set(name: str, env: Mapping[str, str]) -> bool:
    """True if the variable is set under any of its names."""
    bare = name.removesuffix("_FILE")
    return name in env or bare in env or f"{bare}_FILE" in env


def _strangers(env: Mapping[str, str], known: frozenset[str]) -> list[str]:
    """The names that are neither settings nor service links."""
    expected = known | _KNOWN_ELSEWHERE
    return sorted(name for name, value in env.items() if name not in expected and not _is_link(name, value))


def _is_link(name: str, value: str) -> bool:
    """True if Kubernetes set the variable for a Service of the namespace."""
    is_address = name.endswith("_PORT") and SERVICE_LINK.match(value)
    return bool(is_address or _SERVICE_LINK_NAME.fullmatch(name))


def _meant(name: str, known: frozenset[str]) -> str | None:
    """
    The setting that *name* probably means, if any.

    Names are compared without the service's prefix, which would make all of them similar.
    """
    bare = name.removeprefix(PREFIX)
    names = {candidate.removeprefix(PREFIX): candidate for candidate in sorted(known)}
    if bare in names:
        return names[bare]
    cutoff = 0.6 if name.startswith(_OWN) else _ALIKE
    near = difflib.get_close_matches(bare, names, n=1, cutoff=cutoff)
    if not near or not (name.startswith((*_OWN, *_SHARED)) or _is_slip(bare, near[0])):
        return None
    return names[near[0]]


def _is_slip(name: str, meant: str) -> bool:
    """
    True for a few changed characters; an additional word makes a different name (``TEST_DATABASE_URL``).
    """
    if len(meant) < _LONG_NAME or name.endswith(f"_{meant}") or name.startswith(f"{meant}_"):
        return False
    steps = difflib.SequenceMatcher(None, name, meant, autojunk=False).get_opcodes()
    changed = sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in steps if kind != "equal")
    return changed <= _SLIP_CHARACTERS


def _printable(name: str) -> str:
    return shown(name)[1:-1]


def http_problems(http: HttpSettings, reader: Reader) -> Iterator[Problem]:
    """The two ports must differ."""
    if reader.is_sound("PORT", "METRICS_PORT") and http.port == http.metrics_port:
        yield Problem(
            name="METRICS_PORT", message=f"contradicts PORT: both are {http.port}; expected two ports"
        )


def lifetime_problems(tokens: TokenSettings, sessions: SessionSettings, reader: Reader) -> Iterator[Problem]:
    """Nothing may outlive the session's absolute end."""
    lives = (("SESSION_IDLE_TTL", sessions.idle_ttl_s), ("REDIS_AUTH_TOKEN_TTL", tokens.access_ttl_s))
    for name, life_s in lives:
        if reader.is_sound(name, "SESSION_MAX_TTL") and life_s > sessions.max_ttl_s:
            message = f"contradicts SESSION_MAX_TTL: {life_s} s outlive its {sessions.max_ttl_s} s"
            yield Problem(name=name, message=message)


def redis_problems(redis: RedisSettings, http: HttpSettings, reader: Reader) -> Iterator[Problem]:
    """Exactly one way to reach Redis, named completely; in memory only for one process in development."""
    yield from _redis_places(reader)
    yield from _redis_pairs(redis, reader)
    if redis.is_in_memory and reader.is_sound(*_REDIS_PLACES, "REDIS_CLUSTER_ENABLED"):
        yield from _redis_missing(http, reader)


def _redis_missing(http: HttpSettings, reader: Reader) -> Iterator[Problem]:
    if not reader.is_development and not reader.given(*_REDIS_PLACES, "REDIS_CLUSTER_ENABLED"):
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
    if reader.given("REDIS_URL") and parts:
        yield Problem(
            name="REDIS_URL", message=f"contradicts {', '.join(parts)}: set the URL alone or the parts alone"
        )
    for one, other in combinations(reader.given(*_REDIS_PLACES), 2):
        if (one, other) != ("REDIS_URL", "REDIS_HOST"):
            yield Problem(name=one, message=f"contradicts {other}: Redis is to be found in one way")


def _redis_pairs(redis: RedisSettings, reader: Reader) -> Iterator[Problem]:
    needs = (
        ("REDIS_SENTINELS", "REDIS_SENTINEL_SERVICE"),
        ("REDIS_SENTINEL_SERVICE", "REDIS_SENTINELS"),
        ("REDIS_SENTINEL_USERNAME", "REDIS_SENTINELS"),
        ("REDIS_SENTINEL_PASSWORD", "REDIS_SENTINELS"),
    )
    for name, needed in needs:
        if reader.given(name) and reader.is_sound(name) and not reader.given(needed):
            yield Problem(name=name, message=f"has no meaning without {needed}; expected both")
    if redis.ca_file and reader.is_sound("REDIS_TLS", "REDIS_URL") and not redis.has_tls:
        message = "has no meaning without TLS; expected `REDIS_TLS=true`, or a URL with `rediss://`"
        yield Problem(name="REDIS_CA_FILE", message=message)
    if reader.is_sound("REDIS_CLUSTER_ENABLED"):
        yield from _cluster_pairs(redis, reader)


def _cluster_pairs(redis: RedisSettings, reader: Reader) -> Iterator[Problem]:
    if bool(reader.given("REDIS_CLUSTER_NODES")) != redis.is_cluster:
        yield Problem(
            name="REDIS_CLUSTER_ENABLED",
            message="contradicts REDIS_CLUSTER_NODES; expected `true` and a list of nodes, or neither",
        )
    if redis.is_cluster and reader.given("REDIS_SENTINELS") and not reader.given("REDIS_CLUSTER_NODES"):
        yield Problem(name="REDIS_CLUSTER_ENABLED", message="contradicts REDIS_SENTINELS: set one of the two")
    if redis.is_cluster and _database_number(redis) != 0:
        yield Problem(
            name="REDIS_CLUSTER_ENABLED", message="contradicts the database number: a cluster has 0 alone"
        )


def _database_number(redis: RedisSettings) -> int:
    return redis_url_database(redis.url) if redis.url else redis.db


def production_problems(
    database: DatabaseSettings, passwords: PasswordSettings, reader: Reader
) -> Iterator[Problem]:
    """Values that are acceptable only in development."""
    if reader.is_sound("DATABASE_URL") and database.is_sqlite:
        yield Problem(
            name="DATABASE_URL", message="is SQLite, for development alone; expected postgresql://…"
        )
    if passwords.bcrypt_cost < MIN_PRODUCTION_BCRYPT_COST:
        message = f"is {passwords.bcrypt_cost}; expected {MIN_PRODUCTION_BCRYPT_COST} or more in production"
        yield Problem(name="BCRYPT_COST", message=message)


def server_option_problems(database: DatabaseSettings, reader: Reader) -> Iterator[Problem]:
    """Options that libpq would add to each connection: combined with those of the service, or refused."""
    if database.is_sqlite or PGOPTIONS not in reader.env:
        return
    try:
        server_settings(reader.env[PGOPTIONS])
    except InvalidValue as error:
        yield Problem(name=PGOPTIONS, message=str(error))


def mail_problems(mail: MailSettings, reader: Reader) -> Iterator[Problem]:
    """Sending mails needs a relay and a sender, and TLS where there is a password."""
    if mail.transport is MailTransport.SMTP:
        missing = [name for name in ("SMTP_HOST", "MAIL_FROM") if reader.read[name] is None]
        for name in missing if reader.is_sound(*missing) else ():
            yield Problem(name=name, message="is missing; MAIL_TRANSPORT=smtp needs it")
    if mail.transport is MailTransport.FILE and not reader.is_development:
        yield Problem(name="MAIL_TRANSPORT", message="is file, for development alone; expected smtp or off")
    if mail.smtp_tls is SmtpTls.NONE and mail.smtp_username is not None:
        message = "is none, and SMTP_USERNAME is set: a password never travels in clear"
        yield Problem(name="SMTP_TLS", message=message)
    if bool(reader.given("SMTP_USERNAME")) != bool(reader.given("SMTP_PASSWORD")):
        yield Problem(name="SMTP_USERNAME", message="has no meaning without SMTP_PASSWORD; expected both")


def link_problems(mail: MailSettings, reader: Reader) -> Iterator[Problem]:
    """Links hold tokens: they need https, except on this host."""
    parts = urlsplit(mail.link_url or "https://")
    is_local = reader.is_development and parts.hostname == "localhost"
    if parts.scheme != "https" and not is_local:
        yield Problem(name="LINK_URL", message="is http://; expected https://")


def registration_problems(
    registration: RegistrationSettings, mail: MailSettings, reader: Reader
) -> Iterator[Problem]:
    """What works by mail needs mails to be sent."""
    needs_mail = {
        "REGISTRATION": registration.mode in {RegistrationMode.QUIET, RegistrationMode.INVITED},
        "EMAIL_VERIFICATION": registration.email_verification is EmailVerification.REQUIRED,
    }
    for name, is_needed in needs_mail.items():
        if is_needed and not mail.is_on and reader.is_sound(name, "MAIL_TRANSPORT"):
            yield Problem(name=name, message="needs mail; expected MAIL_TRANSPORT=smtp, too")


def key_folder_problems(tokens: TokenSettings, reader: Reader) -> Iterator[Problem]:
    """The folder must exist; development creates it."""
    if not reader.is_sound("JWT_KEYS_DIR") or _is_directory(tokens.keys_dir):
        return
    if not reader.is_development or os.path.lexists(tokens.keys_dir):
        message = "is no directory that can be reached; expected one with PEM files"
        yield Problem(name="JWT_KEYS_DIR", message=message)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
