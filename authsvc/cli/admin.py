"""Commands for users and clients."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from authsvc.domain.authentication import Registration
from authsvc.domain.users import ROLES, Profile, User
from authsvc.domain.values.emails import InvalidEmail, canonical_email
from authsvc.observability import logs
from authsvc.services import Services
from authsvc.settings import Settings, SettingsError
from authsvc.settings.development import ensure_development_files
from authsvc.store.clients import SqlClientStore
from authsvc.wiring import build, now
from authsvc.wiring.preflight import database_problems
from authsvc.wiring.stores import open_database

STDERR = 2


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    users = commands.add_parser("users", help="create, import and change users").add_subparsers(
        required=True, metavar="ACTION"
    )
    create = users.add_parser("create", help="create a user; the password comes from stdin")
    create.add_argument("email", metavar="EMAIL")
    create.add_argument("--role", action="append", choices=ROLES, default=[], help="may be repeated")
    create.add_argument(
        "--password-stdin", action="store_true", required=True, help="read the password from stdin"
    )
    create.set_defaults(run=run_create_user)
    importing = users.add_parser("import", help="import users with their bcrypt hashes from JSON lines")
    importing.add_argument("file", type=Path, metavar="FILE")
    importing.set_defaults(run=run_import)
    roles = users.add_parser(
        "set-role", help="replace a user's roles; his tokens die, a refresh brings new ones"
    )
    roles.add_argument("email", metavar="EMAIL")
    roles.add_argument("role", nargs="+", choices=ROLES, metavar="ROLE")
    roles.set_defaults(run=run_set_role)
    clients = commands.add_parser("clients", help="create OAuth clients").add_subparsers(
        required=True, metavar="ACTION"
    )
    client = clients.add_parser("create", help="create a client; its secret is shown once")
    client.add_argument("name", metavar="NAME")
    client.set_defaults(run=run_create_client)


def run_create_user(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Create a user with the roles given."""
    password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    with closing(open_services(env)) as services:
        form = Registration(email=options.email, password=password, profile=Profile())
        user = services.authentication.register(form)
        if options.role:
            user = services.users.set_roles(user.email, tuple(options.role)).value
    print(json.dumps(_described(user)))
    return 0


def run_set_role(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Replace the roles of a user."""
    try:
        email = canonical_email(options.email)
    except InvalidEmail as error:
        raise ValueError(f"EMAIL {error}") from error
    with closing(open_services(env)) as services:
        user = services.users.set_roles(email, tuple(options.role)).value
    print(json.dumps(_described(user)))
    return 0


def run_import(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Import users; one JSON line of result per line, a summary on stderr, 1 if any was refused."""
    # Schemas bring Flask along, a third of what the other commands take to start.
    from authsvc.cli.imports import import_users

    with closing(open_services(env)) as services, options.file.open("rb") as lines:
        counts = import_users(lines, services.users, now=now, report=lambda line: print(json.dumps(line)))
    print(", ".join(f"{count} {result}" for result, count in counts.items()), file=sys.stderr)
    return 1 if counts["refused"] else 0


def run_create_client(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Create an OAuth client."""
    database = open_database(_migrated(env))
    with closing(database):
        client_id, secret = SqlClientStore(database, now).create(options.name)
    print(json.dumps({"client_id": client_id, "client_secret": secret}))
    return 0


def open_services(env: Mapping[str, str]) -> Services:
    """The services for one command; to be closed."""
    logs.configure("warning", "console", fd=STDERR)
    return build(_migrated(env))


def _migrated(env: Mapping[str, str]) -> Settings:
    """The settings; raises SettingsError unless the database that they name has the schema needed."""
    settings = Settings.from_env({**env, **ensure_development_files(env)})
    found = database_problems(settings)
    if found:
        raise SettingsError(found)
    return settings


def _described(user: User) -> dict[str, object]:
    return {"id": user.id, "email": user.email, "roles": list(user.roles)}
