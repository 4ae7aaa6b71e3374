"""Checks before a start in production: both stores answer, the schema fits, there are keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from authsvc.observability.tracing import tracing_problems
from authsvc.settings import Problem, Settings
from authsvc.store.accounts.factors import has_factors
from authsvc.store.accounts.users import roles_in_use
from authsvc.store.copies import preflight as copies
from authsvc.store.key_folder import key_problems
from authsvc.store.migrations import schema_problems
from authsvc.store.sql import Database
from authsvc.wiring.caching import index_keys, single_client
from authsvc.wiring.stores import open_database
from authsvc.wiring.timings import Timings


@dataclass(frozen=True, slots=True)
class Findings:
    """All problems that prevent serving; warnings about stored data, if there are none."""

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...] = ()


def inspect(settings: Settings, timings: Timings | None = None) -> Findings:
    """
    Look at settings and stores; connects to both, takes a few seconds, shows no secret.

    Raises StoreUnavailable if SQL answered at first, and does not any more.
    """
    with closing(open_database(settings, timings)) as database:
        of_stores = (*schema_problems(database), *_redis(settings, timings))
        of_rows = of_stores or (*_ownership(settings, timings, database), *_factors(settings, database))
        found = (*local_problems(settings), *of_rows)
        return Findings(found, () if found else tuple(_warnings(settings, database)))


def local_problems(settings: Settings) -> tuple[Problem, ...]:
    """Problems of keys, mail templates and missing packages; opens no connection."""
    of_keys, of_traces = key_problems(settings.tokens.keys_dir), tracing_problems(settings.tracing)
    return (*of_keys, *of_traces, *_mail_problems(settings))


def _mail_problems(settings: Settings) -> Iterable[Problem]:
    """Like the next ones: what the settings switch off is not loaded."""
    if not settings.mail.is_on:
        return ()
    from authsvc.wiring.mail import letters

    return letters(settings).problems()


def factor_problems(settings: Settings, timings: Timings | None = None) -> tuple[Problem, ...]:
    """
    Stored second factors that this process would not ask for, or cannot decrypt; raises StoreUnavailable.
    """
    with closing(open_database(settings, timings)) as database:
        return tuple(_factors(settings, database))


def _factors(settings: Settings, database: Database) -> Iterator[Problem]:
    if settings.second_factors.is_on:
        yield from _undecryptable(settings, database)
    elif has_factors(database):
        yield Problem(
            name="SECOND_FACTORS",
            message="is off, and accounts have second factors, without which passwords alone would let"
            " people in; expected on",
        )


def _undecryptable(settings: Settings, database: Database) -> Iterator[Problem]:
    from authsvc.store.accounts.enrolments import key_ids_in_use
    from authsvc.wiring.second_factors import data_keys

    known = data_keys(settings).by_id
    unknown = {key: count for key, count in key_ids_in_use(database).items() if key not in known}
    if unknown:
        message = f"does not decrypt {sum(unknown.values())} secrets of second factors, which another"
        yield Problem(
            name="DATA_KEY", message=f"{message} key encrypted; expected that key in DATA_KEY_PREVIOUS"
        )


def database_problems(settings: Settings, timings: Timings | None = None) -> tuple[Problem, ...]:
    """Problems of the database: it cannot be reached, or its schema is not the one needed."""
    with closing(open_database(settings, timings)) as database:
        return tuple(schema_problems(database))


def ownership_problems(settings: Settings, timings: Timings | None = None) -> tuple[Problem, ...]:
    """Whether Redis has the data of another installation. Other checks report a store that is away."""
    with closing(open_database(settings, timings)) as database:
        return tuple(_ownership(settings, timings, database))


def _ownership(settings: Settings, timings: Timings | None, database: Database) -> Iterator[Problem]:
    with closing(single_client(settings.redis, timings)) as client:
        yield from copies.ownership_problems(client, database, index_keys(settings), settings.redis)


def stored_warnings(settings: Settings, timings: Timings | None = None) -> list[str]:
    """Warnings about stored data that has no effect with these settings; raises StoreUnavailable."""
    with closing(open_database(settings, timings)) as database:
        return _warnings(settings, database)


def _warnings(settings: Settings, database: Database) -> list[str]:
    return [*_role_warnings(settings, database), *_passkey_warnings(settings, database)]


def _passkey_warnings(settings: Settings, database: Database) -> list[str]:
    rp_id = settings.passkeys.rp_id
    if not settings.second_factors.is_on or rp_id is None:
        return []
    from authsvc.store.accounts.passkeys import orphaned_passkeys

    count = orphaned_passkeys(database, rp_id)
    text = f"WEBAUTHN_RP_ID is {rp_id}, and passkeys belong to another one ({count}): they open nothing"
    return [text] if count else []


def _role_warnings(settings: Settings, database: Database) -> list[str]:
    in_use = roles_in_use(database)
    return [
        f"ROLES does not name {role}, which users have ({count}): it is in no new token and no answer"
        for role, count in sorted(in_use.items())
        if role not in settings.tokens.roles
    ]


def _redis(settings: Settings, timings: Timings | None) -> Iterator[Problem]:
    if found := tuple(copies.certificate_problems(settings.redis)):
        yield from found
        return
    with closing(single_client(settings.redis, timings)) as client:
        yield from copies.redis_problems(client, index_keys(settings), settings.redis)
