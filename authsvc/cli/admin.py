"""Commands for one user."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from authsvc.cli import NoSuchUser
from authsvc.cli.exports import described
from authsvc.domain.authentication import Registration
from authsvc.domain.errors import NotFound
from authsvc.domain.users import Profile, User
from authsvc.domain.values.emails import Email, InvalidEmail, canonical_email
from authsvc.observability import logs
from authsvc.services import Services
from authsvc.settings import Settings, SettingsError
from authsvc.settings.development import ensure_development_files
from authsvc.wiring import build
from authsvc.wiring.preflight import database_problems

STDERR = 2


def add_actions(users: Any) -> None:
    """Add this module's actions to those of ``users``."""
    create = users.add_parser("create", help="create a user; the password comes from stdin")
    create.add_argument("email", metavar="EMAIL")
    create.add_argument("--role", action="append", default=[], help="may be repeated")
    create.add_argument(
        "--password-stdin", action="store_true", required=True, help="read the password from stdin"
    )
    create.set_defaults(run=run_create_user)
    roles = users.add_parser(
        "set-role", help="replace a user's roles; their tokens die, a refresh brings new ones"
    )
    roles.add_argument("email", metavar="EMAIL")
    roles.add_argument("role", nargs="+", metavar="ROLE")
    roles.set_defaults(run=run_set_role)
    show = users.add_parser("show", help="print one user as JSON")
    show.add_argument("email", metavar="EMAIL")
    show.set_defaults(run=run_show)
    password = users.add_parser(
        "set-password", help="replace a user's password; every session and token ends, devices are forgotten"
    )
    password.add_argument("email", metavar="EMAIL")
    password.add_argument(
        "--password-stdin", action="store_true", required=True, help="read the password from stdin"
    )
    password.set_defaults(run=run_set_password)
    address = users.add_parser("set-email", help="replace a user's address; every session ends")
    address.add_argument("email", metavar="EMAIL")
    address.add_argument("new", metavar="NEW")
    address.set_defaults(run=run_set_email)


def run_create_user(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Create a user with the roles given."""
    password = _typed_password()
    with closing(open_services(options, env)) as services:
        _require_roles(services, options.role)
        form = Registration(email=options.email, password=password, profile=Profile(), email_verified=True)
        user = services.authentication.register(form, by_operator=True)
        if options.role:
            user = services.users.set_roles(user.email, tuple(options.role)).value
    print(json.dumps(_described(user)))
    return 0


def run_set_role(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Replace the roles of a user."""
    email = canonical(options.email, "EMAIL")
    with closing(open_services(options, env)) as services, somebody(email):
        _require_roles(services, options.role)
        user = services.users.set_roles(email, tuple(options.role)).value
    print(json.dumps(_described(user)))
    return 0


def run_show(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print all data of a user, except the password hash."""
    email = canonical(options.email, "EMAIL")
    with closing(open_services(options, env)) as services, somebody(email):
        user = services.users.called(email)
        living = len(services.sessions.of_user(user.id))
        shown = {**described(user, services.users.roles), "sessions": living}
        if services.second_factors is not None:
            found = services.second_factors.factors.of_user(user.id)
            shown["factors"] = [factor.kind.value for factor in found.factors]
    print(json.dumps(shown))
    return 0


def run_set_password(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Replace the password of a user."""
    email = canonical(options.email, "EMAIL")
    password = _typed_password()
    with closing(open_services(options, env)) as services, somebody(email):
        user = services.account.set_password(email, password).value
    print(json.dumps(_described(user)))
    return 0


def run_set_email(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Replace the address of a user."""
    email, new = canonical(options.email, "EMAIL"), canonical(options.new, "NEW")
    with closing(open_services(options, env)) as services, somebody(email):
        user = services.users.set_email(email, new).value
    print(json.dumps(_described(user)))
    return 0


def _typed_password() -> str:
    return sys.stdin.read().removesuffix("\n").removesuffix("\r")


def canonical(text: str, argument: str) -> Email:
    """The address *text*; raises ValueError that names *argument*."""
    try:
        return canonical_email(text)
    except InvalidEmail as error:
        raise ValueError(f"{argument} {error}") from error


@contextmanager
def somebody(email: Email) -> Iterator[None]:
    """Turn NotFound into a message of the command line."""
    try:
        yield
    except NotFound as error:
        raise NoSuchUser(email) from error


def _require_roles(services: Services, roles: Sequence[str]) -> None:
    """Raise ValueError for an unknown role."""
    strangers = [role for role in roles if role not in services.users.roles]
    if strangers:
        raise ValueError(f"there is no role {', '.join(strangers)}: ROLES names those beside user and admin")


def open_services(options: argparse.Namespace, env: Mapping[str, str]) -> Services:
    """The services for one command; to be closed."""
    return build(open_settings(options, env), timings=options.timings)


def open_settings(options: argparse.Namespace, env: Mapping[str, str]) -> Settings:
    """The settings for one command, whose log goes to stderr; see :func:`migrated`."""
    logs.configure("warning", "console", fd=STDERR)
    return migrated(options, env)


def migrated(options: argparse.Namespace, env: Mapping[str, str]) -> Settings:
    """The settings; raises SettingsError unless the database that they name has the schema needed."""
    settings = Settings.from_env({**env, **ensure_development_files(env)})
    found = database_problems(settings, options.timings)
    if found:
        raise SettingsError(found)
    return settings


def _described(user: User) -> dict[str, object]:
    return {"id": user.id, "email": user.email, "roles": list(user.roles)}
