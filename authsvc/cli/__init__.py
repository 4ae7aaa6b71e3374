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

from authsvc.cli import audit, cache, clients, keys, service, transfers
from authsvc.domain.errors import AuthError, Invalid
from authsvc.settings import SettingsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the status to exit with."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options, dict(os.environ))
    except SettingsError as error:
        return _fail(str(error))
    except Invalid as error:
        return _fail("; ".join(f"{field} {', '.join(messages)}" for field, messages in error.errors.items()))
    except AuthError as error:
        return _fail(f"{error.code}: {error if str(error) else _explained(error)}")
    except (OSError, ValueError) as error:
        return _fail(str(error))
    return status


def _explained(error: AuthError) -> str:
    """What a caller over HTTP would be told."""
    from authsvc.api.frame.errors import DETAILS

    return DETAILS[error.code]


def _fail(message: str) -> int:
    print(f"authsvc: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="authsvc", description="Auth and session service for microservices."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for room in (service, transfers, clients, keys, cache, audit):
        room.add_commands(commands)
    return parser
