"""Key files, and who hears of them, for the tests of the key folder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from authsvc.domain.audit import Action, Event
from authsvc.domain.tokens.keys import generate
from authsvc.store.key_folder import KeyFolder

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
HOUR_OLD = "20261120T110000Z-es256.pem"


class Audit:
    """Events, kept."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        """Keep *event*."""
        self.events.append(event)

    def said(self) -> list[tuple[Action, str | None]]:
        """What happened to which key."""
        return [(event.action, event.detail) for event in self.events]


def add_key(folder: Path, *, age_s: float) -> Path:
    """A new key in *folder*."""
    name, pem = generate("ES256", NOW - timedelta(seconds=age_s))
    file = folder / name
    file.write_bytes(pem)
    return file


def names(keys: KeyFolder) -> list[str]:
    """The files of the ring, newest key first."""
    return [key.file_name for key in keys().keys]
