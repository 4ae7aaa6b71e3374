"""What must be true before production starts: both stores answer, the schema fits, keys are there."""

from __future__ import annotations

from collections.abc import Iterator

from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.tokens.keys import KeyRefused
from authsvc.observability.tracing import is_installed
from authsvc.settings import Problem, Settings, TracingMode
from authsvc.store.key_folder import read_key
from authsvc.store.migrations import NEEDED_REVISION, current_revision
from authsvc.store.users import roles_in_use
from authsvc.wiring.redis_checks import redis_problems
from authsvc.wiring.stores import open_database


def problems(settings: Settings) -> tuple[Problem, ...]:
    """Everything that stands in the way of serving; connects, within a few seconds, and tells no secret."""
    return (*local_problems(settings), *_database(settings), *redis_problems(settings))


def local_problems(settings: Settings) -> tuple[Problem, ...]:
    """What is wrong with the signing keys, and what is asked for and not installed; connects to nothing."""
    return (*_keys(settings), *_tracing(settings))


def database_problems(settings: Settings) -> tuple[Problem, ...]:
    """What is wrong with the database: it cannot be reached, or its schema is not the one needed."""
    return tuple(_database(settings))


def stored_role_warnings(settings: Settings) -> list[str]:
    """Roles that users have and the settings do not name; raises StoreUnavailable."""
    database = open_database(settings)
    try:
        in_use = roles_in_use(database)
    finally:
        database.close()
    return [
        f"ROLES does not name {role}, which users have ({count}): it is in no new token and no answer"
        for role, count in sorted(in_use.items())
        if role not in settings.tokens.roles
    ]


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


def _database(settings: Settings) -> Iterator[Problem]:
    database = open_database(settings)
    try:
        with database.read() as connection:
            revision = current_revision(connection)
    except StoreUnavailable as error:
        yield Problem(name="DATABASE_URL", message=f"cannot be reached ({error.store})")
        return
    finally:
        database.close()
    if revision != NEEDED_REVISION:
        have = f"revision {revision}" if revision else "no schema"
        yield Problem(
            name="DATABASE_URL",
            message=f"has {have}, revision {NEEDED_REVISION} is needed: run `authsvc db upgrade`",
        )
