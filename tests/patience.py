"""
Deadlines for a machine that may stand still for seconds.

The service gives up on Redis within a quarter of a second, on SQL within a few: right for those who wait for
it, and fatal to a test of something else on a busy machine.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from authsvc.cache import Deadlines
from authsvc.settings.postgresql import SERVER_SETTINGS
from authsvc.store import sql

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Longer than any machine of ours stands still.
LONG_S = 60

#: What waits, or must not have waited, by module: how long it does in tests.
_PATIENT: Mapping[str, Mapping[str, object]] = {
    "authsvc.store.sql": {
        "POOL_WAIT_S": LONG_S,
        "DEADLINE_S": 2 * LONG_S,
        "CONNECT_S": LONG_S,
        "SERVER_SETTINGS": {
            name: re.sub("^[0-9]+ms$", f"{LONG_S}s", value) for name, value in SERVER_SETTINGS.items()
        },
        "_SQLITE_PRAGMAS": (*sql._SQLITE_PRAGMAS, f"busy_timeout={LONG_S}000"),  # noqa: SLF001 as all here
    },
    "authsvc.store.revocations": {
        "_BRIEFLY": text(f"SELECT set_config('lock_timeout', '{LONG_S}s', true)"),
    },
    "authsvc.store.copies.marker": {"LIFE_MS": 10_000 * LONG_S, "CLAIM_MS": 1_000 * LONG_S},
    "authsvc.store.copies.users": {"NOTE_WITHIN_S": LONG_S},
    "authsvc.wiring.caching": {"LEASE_MS": 1_000 * LONG_S},
    "authsvc.store.key_folder": {"PATIENCE_S": LONG_S},
    # Of the priority of others, hashes might get nothing at all beside another test.
    "authsvc.domain.passwords.lane": {"DEADLINE_S": LONG_S, "NICENESS": 0},
    "authsvc.observability.health": {"ANSWERED_S": LONG_S},
    "authsvc.observability.trail": {"WAIT_S": LONG_S},
    "authsvc.domain.feed": {"FIRST_LOOK_S": LONG_S},
}
_CONFIGURED: Mapping[str, Mapping[str, object]] = {
    module: {name: getattr(import_module(module), name) for name in values}
    for module, values in _PATIENT.items()
}


@contextmanager
def patience() -> Iterator[None]:
    """Wait for Redis, SQL and hashing for as long as it takes; a proof lasts for minutes."""
    of_redis = dict.fromkeys(("connect_s", "read_s", "wait_s", "total_s"), LONG_S) | {"idle_s": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Deadlines.__init__, "__kwdefaults__", of_redis)
        _set(patch, _PATIENT)
        yield


@contextmanager
def as_configured(*modules: str) -> Iterator[None]:
    """Within :func:`patience`: what *modules* wait is again what the service waits."""
    with pytest.MonkeyPatch.context() as patch:
        _set(patch, {module: _CONFIGURED[module] for module in modules})
        yield


def _set(patch: pytest.MonkeyPatch, values: Mapping[str, Mapping[str, object]]) -> None:
    for module, constants in values.items():
        for name, value in constants.items():
            patch.setattr(f"{module}.{name}", value)
