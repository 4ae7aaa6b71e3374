"""
The command line: ``authsvc serve | dev | db | users | clients | keys | mail | cache | audit | config``.

A command that makes something prints one JSON object on stdout; errors go to stderr with a status that
is not 0.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

from authsvc import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from authsvc.domain.errors import AuthError
    from authsvc.server import ServerTimings
    from authsvc.wiring.timings import Timings

#: Libraries load these if they are installed, for features that are not used here: redis-py OpenTelemetry's
#: SDK for its metrics, flask-smorest YAML for a command.
UNUSED = ("opentelemetry", "yaml")
#: The status of a program that Ctrl-C ended, as shells have it.
INTERRUPTED = 130


class NoSuchUser(Exception):
    """A command names a user by an address that no user has."""

    def __init__(self, email: str) -> None:
        super().__init__(f"no user has the address {email}")


@contextmanager
def importing() -> Iterator[None]:
    """
    For slow imports: within the block, importing one of UNUSED fails, and garbage is not collected.

    Imported objects live as long as the process, so the collector skips them afterwards.
    """
    absent = [name for name in UNUSED if name not in sys.modules]
    # None makes the import system raise ModuleNotFoundError.
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name in absent:
            del sys.modules[name]


@dataclass(frozen=True, slots=True)
class Command:
    """
    One command; ``add_<name>`` in *module*, which is imported only when needed, adds its actions and options.
    """

    name: str
    module: str
    help: str

    def complete(self, parser: argparse.ArgumentParser) -> None:
        """Add actions and options to *parser*."""
        with importing():
            module = import_module(f"authsvc.cli.{self.module}")
        getattr(module, f"add_{self.name}")(parser)


COMMANDS = (
    Command("serve", "service", "serve in production, with WEB_CONCURRENCY workers"),
    Command("dev", "service", "serve for development, with embedded stores"),
    Command("db", "service", "look after the database"),
    Command("config", "service", "check the settings"),
    Command("users", "transfers", "create, change, import and export users"),
    Command(
        "clients",
        "clients",
        "create, list, change and delete clients: services that ask about tokens or have tokens of their own",
    ),
    Command("keys", "keys", "make, list and retire signing keys"),
    Command("mail", "mail", "try the mail relay; list and retry mails"),
    Command("cache", "cache", "handle the cache of users"),
    Command("audit", "audit", "look after the audit trail"),
)


class CommandParser(argparse.ArgumentParser):
    """The parser of one command; its actions and options are added only when its arguments are read."""

    command: Command | None = None

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Read the arguments of this command."""
        command, self.command = self.command, None
        if command is not None:
            command.complete(self)
        return super().parse_known_args(*args, **kwargs)


def main(
    arguments: Sequence[str] | None = None,
    *,
    timings: Timings | None = None,
    server_timings: ServerTimings | None = None,
) -> int:
    """
    Run one command; returns the exit status. Errors are reported without a traceback.

    Both timings are passed to the command in its options; None: those of the service.
    """
    try:
        chosen = argparse.Namespace(timings=timings, server_timings=server_timings)
        options = _parser().parse_args(arguments, chosen)
        status: int = options.run(options, dict(os.environ))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the edge of the process: a traceback may quote secrets
        print(f"authsvc: {_told(error)}", file=sys.stderr)
        return 1
    return status


def _told(error: Exception) -> str:
    """The message for *error*, without secrets."""
    from authsvc.domain.errors import AuthError, Invalid
    from authsvc.observability.redaction import scrub_text
    from authsvc.settings import SettingsError

    if isinstance(error, SettingsError | NoSuchUser):
        return str(error)
    if isinstance(error, Invalid):
        return "; ".join(f"{field} {', '.join(messages)}" for field, messages in error.errors.items())
    if isinstance(error, AuthError):
        return f"{error.code}: {error if str(error) else _explained(error)}{_advice(error)}"
    if isinstance(error, OSError | ValueError):
        return scrub_text(str(error))
    return _unexpected(error)


def _advice(error: AuthError) -> str:
    """What to do about a database that did not answer; "" for other errors."""
    from authsvc.domain.errors import StoreUnavailable

    if (
        not isinstance(error, StoreUnavailable)
        or error.__cause__ is None
        or not error.store.startswith("sql")
    ):
        return ""
    from authsvc.store.postgres.causes import cause_of

    return f" ({cause_of(error).advice})"


def _unexpected(error: Exception) -> str:
    """The place of an unexpected error, for a report; without its text, which may contain secrets."""
    place = extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}:"
        " this is a fault of authsvc, please report it with this line"
    )


def _explained(error: AuthError) -> str:
    """The text that a caller over HTTP would get."""
    from authsvc.api.frame.errors import DETAILS

    return DETAILS[error.code]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="authsvc", description="Auth and session service for microservices."
    )
    parser.add_argument("--version", action="version", version=f"authsvc {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=CommandParser
    )
    for command in COMMANDS:
        commands.add_parser(command.name, help=command.help).command = command
    return parser
