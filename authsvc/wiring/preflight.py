"""What must be true before production starts: both stores answer, the schema fits, keys are there."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import closing

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.tokens.keys import KeyRefused
from authsvc.mail.letters import BadTemplate
from authsvc.observability.tracing import is_installed
from authsvc.settings import HttpSettings, Problem, Settings, TracingMode
from authsvc.store.accounts.enrolments import key_ids_in_use
from authsvc.store.accounts.factors import has_factors
from authsvc.store.accounts.passkeys import orphaned_passkeys
from authsvc.store.accounts.users import roles_in_use
from authsvc.store.copies import preflight as copies
from authsvc.store.key_folder import read_key
from authsvc.store.migrations import why_unfit
from authsvc.store.postgres.causes import cause_of
from authsvc.store.sql import Database
from authsvc.wiring.caching import index_keys, single_client
from authsvc.wiring.mail import letters
from authsvc.wiring.second_factors import data_keys
from authsvc.wiring.stores import open_database
from authsvc.wiring.timings import Timings


def problems(settings: Settings, timings: Timings | None = None) -> tuple[Problem, ...]:
    """Everything that stands in the way of serving; connects, within a few seconds, and tells no secret."""
    of_stores = (*_database(settings, timings), *_redis(settings, timings))
    of_rows = of_stores or (*ownership_problems(settings, timings), *factor_problems(settings, timings))
    return (*local_problems(settings), *of_rows)


def local_problems(settings: Settings) -> tuple[Problem, ...]:
    """What is wrong with keys and mail templates, and what is not installed; connects to nothing."""
    return (*_keys(settings), *_tracing(settings), *_templates(settings))


def factor_problems(settings: Settings, timings: Timings | None = None) -> Iterator[Problem]:
    """Second factors that this process would let people past, or cannot read; raises StoreUnavailable."""
    with closing(open_database(settings, timings)) as database:
        if settings.second_factors.is_on:
            known = data_keys(settings).by_id
            unknown = {key: count for key, count in key_ids_in_use(database).items() if key not in known}
            if unknown:
                message = f"does not decrypt {sum(unknown.values())} secrets of second factors, which another"
                yield Problem(
                    name="DATA_KEY",
                    message=f"{message} key encrypted; expected that key in DATA_KEY_PREVIOUS",
                )
        elif has_factors(database):
            yield Problem(
                name="SECOND_FACTORS",
                message="is off, and accounts have second factors, without which passwords alone would let"
                " people in; expected on",
            )


def database_problems(settings: Settings, timings: Timings | None = None) -> tuple[Problem, ...]:
    """What is wrong with the database: it cannot be reached, or its schema is not the one needed."""
    return tuple(_database(settings, timings))


def ownership_problems(settings: Settings, timings: Timings | None = None) -> tuple[Problem, ...]:
    """Whether Redis holds the data of another installation; where a store is away, others say so."""
    with (
        closing(open_database(settings, timings)) as database,
        closing(single_client(settings.redis, timings)) as client,
    ):
        return tuple(copies.ownership_problems(client, database, index_keys(settings), settings.redis))


def stored_warnings(settings: Settings, timings: Timings | None = None) -> list[str]:
    """What is stored and has no effect with these settings; raises StoreUnavailable."""
    with closing(open_database(settings, timings)) as database:
        return [*_role_warnings(settings, database), *_passkey_warnings(settings, database)]


def _passkey_warnings(settings: Settings, database: Database) -> list[str]:
    rp_id = settings.passkeys.rp_id
    count = orphaned_passkeys(database, rp_id) if settings.second_factors.is_on and rp_id else 0
    text = f"WEBAUTHN_RP_ID is {rp_id}, and passkeys belong to another one ({count}): they open nothing"
    return [text] if count else []


def _role_warnings(settings: Settings, database: Database) -> list[str]:
    in_use = roles_in_use(database)
    return [
        f"ROLES does not name {role}, which users have ({count}): it is in no new token and no answer"
        for role, count in sorted(in_use.items())
        if role not in settings.tokens.roles
    ]


def listening_problems(http: HttpSettings) -> Iterator[Problem]:
    """What keeps the service from listening on its two ports, asked by listening there for a moment."""
    for name, number in (("PORT", http.port), ("METRICS_PORT", http.metrics_port)):
        family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((http.host, number))
                probe.listen()
            except OSError as error:
                yield Problem(name=name, message=_not_listening(number, error))


def _not_listening(number: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{number} is taken: another process listens there; stop it, or choose another port"
    if error.errno == errno.EACCES:
        return f"{number} is not for this user: below 1024 only root may listen; choose another port"
    return f"{number} cannot be listened on at HOST ({error.strerror})"


def _templates(settings: Settings) -> Iterator[Problem]:
    folder = settings.mail.templates_dir
    if not settings.mail.is_on:
        return
    if folder is not None and not folder.is_dir():
        yield Problem(name="MAIL_TEMPLATES_DIR", message=f"is {str(folder)!r}; no such directory")
    try:
        letters(settings).try_all()
    except BadTemplate as error:
        yield Problem(name="MAIL_TEMPLATES_DIR", message=f"has a template that cannot be used: {error}")


def _keys(settings: Settings) -> Iterator[Problem]:
    files = sorted(settings.tokens.keys_dir.glob("*.pem"))
    if not files:
        yield Problem(
            name="JWT_KEYS_DIR", message="holds no .pem file: make one with `authsvc keys generate`"
        )
    for file in files:
        try:
            read_key(file)
        except (KeyRefused, OSError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            yield Problem(name="JWT_KEYS_DIR", message=f"{file.name}: {cause}")


def _tracing(settings: Settings) -> Iterator[Problem]:
    if settings.tracing.mode is TracingMode.OTLP and not is_installed():
        yield Problem(name="TRACING", message="otlp needs OpenTelemetry: install requirements/otel.txt")


def _redis(settings: Settings, timings: Timings | None) -> Iterator[Problem]:
    if found := tuple(copies.certificate_problems(settings.redis)):
        yield from found
        return
    with closing(single_client(settings.redis, timings)) as client:
        yield from copies.redis_problems(client, index_keys(settings), settings.redis)


def _database(settings: Settings, timings: Timings | None) -> Iterator[Problem]:
    with closing(open_database(settings, timings)) as database:
        try:
            message = why_unfit(database)
        except StoreUnavailable as error:
            cause = cause_of(error)
            message = f"cannot be {'used' if cause.code else 'reached'} ({error.store}): {cause.advice}"
    if message:
        yield Problem(name="DATABASE_URL", message=message)
