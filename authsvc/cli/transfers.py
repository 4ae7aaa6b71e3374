"""Commands for many users: import, export, hashes."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from authsvc.cli import admin, recovery
from authsvc.cli.exports import exported_users, hashes_in_use
from authsvc.domain.audit import Action, Event
from authsvc.domain.passwords.hasher import pepper_id
from authsvc.services import Services
from authsvc.settings import Settings, revealed
from authsvc.store.accounts.transfers import SqlUserTransfers
from authsvc.wiring import build, now
from authsvc.wiring.stores import open_database, open_transfers

#: Lines of the file per line of progress on stderr.
PROGRESS_LINES = 5_000


def add_users(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``users``, for one and for many."""
    users = parser.add_subparsers(required=True, metavar="ACTION")
    admin.add_actions(users)
    recovery.add_actions(users)
    importing = users.add_parser("import", help="import users with their bcrypt hashes from JSON lines")
    importing.add_argument("file", metavar="FILE", help="the file, or - for stdin")
    importing.set_defaults(run=run_import)
    exporting = users.add_parser("export", help="print all users as JSON lines")
    exporting.add_argument("--with-hashes", action="store_true", help="also what proves their passwords")
    exporting.set_defaults(run=run_export)
    hashes = users.add_parser("hashes", help="count the password hashes in use by scheme and cost")
    hashes.set_defaults(run=run_hashes)


def run_import(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Import users; one JSON line of result per line, a summary on stderr; status 1 if any was refused."""
    # Imported here: the schemas import Flask, which would slow down the start of the other commands by a
    # third.
    from authsvc.cli.imports import Importer

    report = _Report()
    with _open_users(options, env) as (settings, services, transfers), _opened(options.file) as source:
        importer = Importer(
            transfers=transfers,
            revocations=services.users.revocations,
            pepper_id=_pepper_id(settings),
            roles=services.users.roles,
            clock=now,
        )
        try:
            importer.run(source, report.add)
        finally:
            # Also after an interrupted import: all reported lines are in the database.
            detail = " ".join(f"{result}={count}" for result, count in report.counts.items())
            services.events.record(Event(Action.USERS_IMPORTED, detail=detail))
    print(report.summary, file=sys.stderr)
    return 1 if report.counts["refused"] else 0


def run_export(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print every user as a line of JSON, a page at a time."""
    count = 0
    with _open_users(options, env) as (settings, services, transfers):
        named = _pepper_id(settings) if options.with_hashes else None
        try:
            for page in exported_users(transfers, services.users.roles, pepper_id=named):
                _print_lines(page)
                count += len(page)
        finally:
            detail = f"exported={count} hashes={'yes' if options.with_hashes else 'no'}"
            services.events.record(Event(Action.USERS_EXPORTED, detail=detail))
    print(f"{count} exported", file=sys.stderr)
    return 0


def run_hashes(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print how many hashes there are of each scheme and cost."""
    with _open_users(options, env) as (_, services, transfers):
        kinds = transfers.kinds_of_hashes()
        passwords = services.authentication.proof.passwords
    print(json.dumps(hashes_in_use(kinds, passwords.needs_rehash)))
    return 0


@contextmanager
def _open_users(
    options: argparse.Namespace, env: Mapping[str, str]
) -> Iterator[tuple[Settings, Services, SqlUserTransfers]]:
    """The settings, the services, and the store for transfers with its own connection."""
    settings = admin.open_settings(options, env)
    with (
        closing(build(settings, timings=options.timings)) as services,
        closing(open_database(settings, options.timings)) as database,
    ):
        yield settings, services, open_transfers(settings, database, now)


def _pepper_id(settings: Settings) -> str:
    return pepper_id(revealed(settings.passwords.pepper))


@dataclass(slots=True)
class _Report:
    """Reports results of an import on stdout, and its progress on stderr."""

    counts: Counter[str] = field(default_factory=lambda: Counter(imported=0, exists=0, refused=0))

    @property
    def summary(self) -> str:
        return ", ".join(f"{count} {result}" for result, count in self.counts.items())

    def add(self, results: Sequence[dict[str, Any]]) -> None:
        """Print *results*, whose users are in the database."""
        before = self.counts.total() // PROGRESS_LINES
        self.counts.update(result["result"] for result in results)
        _print_lines(results)
        if self.counts.total() // PROGRESS_LINES > before:
            print(f"... {self.summary}", file=sys.stderr, flush=True)


def _print_lines(objects: Sequence[dict[str, Any]]) -> None:
    """One line of JSON each, flushed at once, so that a reader sees each line when it is written."""
    sys.stdout.writelines(f"{json.dumps(one)}\n" for one in objects)
    sys.stdout.flush()


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """The file of that *name*; ``-`` is stdin."""
    if name == "-":
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as source:
        yield source
