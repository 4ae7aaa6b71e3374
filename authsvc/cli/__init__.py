"""
The command line: ``authsvc serve | dev | db | users | clients | keys | cache | audit | config``.

A command that makes something prints one JSON object on stdout; errors go to stderr with a status that
is not 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from traceback import extract_tb

from authsvc import __version__
from authsvc.cli import admin, audit, cache, clients, keys, service, transfers
from authsvc.domain.errors import AuthError, Invalid, StoreUnavailable
from authsvc.observability.redaction import scrub_text
from authsvc.settings import SettingsError

#: The status of a program that Ctrl-C ended, as shells have it.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the status to exit with.  Nothing that goes wrong is told with a traceback."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options, dict(os.environ))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the edge of the process: a traceback may quote secrets
        print(f"authsvc: {_told(error)}", file=sys.stderr)
        return 1
    return status


def _told(error: Exception) -> str:
    """What is said about *error*, without a secret."""
    if isinstance(error, SettingsError | admin.NoSuchUser):
        return str(error)
    if isinstance(error, Invalid):
        return "; ".join(f"{field} {', '.join(messages)}" for field, messages in error.errors.items())
    if isinstance(error, AuthError):
        return f"{error.code}: {error if str(error) else _explained(error)}{_advice(error)}"
    if isinstance(error, OSError | ValueError):
        return scrub_text(str(error))
    return _unexpected(error)


def _advice(error: AuthError) -> str:
    """What to do about a database that did not answer; empty for all else."""
    if (
        not isinstance(error, StoreUnavailable)
        or error.__cause__ is None
        or not error.store.startswith("sql")
    ):
        return ""
    from authsvc.store.postgres.causes import cause_of

    return f" ({cause_of(error).advice})"


def _unexpected(error: Exception) -> str:
    """Where it happened, for a report; not its text, which nobody has looked at for secrets."""
    place = extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}:"
        " this is a fault of authsvc, please report it with this line"
    )


def _explained(error: AuthError) -> str:
    """What a caller over HTTP would be told."""
    from authsvc.api.frame.errors import DETAILS

    return DETAILS[error.code]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="authsvc", description="Auth and session service for microservices."
    )
    parser.add_argument("--version", action="version", version=f"authsvc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for room in (service, transfers, clients, keys, cache, audit):
        room.add_commands(commands)
    return parser
