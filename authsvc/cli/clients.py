"""Commands for registered clients."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

from authsvc.cli.admin import open_services
from authsvc.domain.clients import MOST_SECRETS, USUAL_RIGHTS, Client, ClientChange, Right
from authsvc.domain.errors import NotFound, TooMany
from authsvc.domain.values.clocks import rfc3339


def add_clients(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``clients``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a client; its secret is shown once")
    create.add_argument("name", metavar="NAME", help="for people; need not be unique")
    create.add_argument(
        "--scope",
        action="append",
        default=[],
        metavar="SCOPE",
        help="what its own tokens may be used for, such as orders:read; may be repeated",
    )
    create.add_argument(
        "--may",
        action="append",
        choices=list(Right),
        metavar="RIGHT",
        help=f"what it may do: {', '.join(Right)}; may be repeated"
        f" (default: {', '.join(USUAL_RIGHTS)}; with --scope: {Right.TOKEN})",
    )
    create.set_defaults(run=run_create)
    listing = actions.add_parser("list", help="list the clients, without their secrets")
    listing.set_defaults(run=run_list)
    rotate = actions.add_parser(
        "rotate", help="add a second secret, shown once; the first stays good until it is dropped"
    )
    rotate.add_argument("client_id", metavar="CLIENT_ID")
    rotate.set_defaults(run=run_rotate)
    drop = actions.add_parser(
        "drop-secret", help="drop one of a client's secrets; it and its tokens are refused from now on"
    )
    drop.add_argument("client_id", metavar="CLIENT_ID")
    drop.add_argument("secret_id", metavar="SECRET_ID", help="as `clients list` and `rotate` show it")
    drop.set_defaults(run=run_drop_secret)
    scopes = actions.add_parser(
        "set-scopes", help="replace a client's scopes; its tokens end if one is taken away"
    )
    scopes.add_argument("client_id", metavar="CLIENT_ID")
    scopes.add_argument("scope", metavar="SCOPE", nargs="+")
    scopes.set_defaults(run=run_set_scopes)
    delete = actions.add_parser("delete", help="delete a client; it and its tokens are refused from now on")
    delete.add_argument("client_id", metavar="CLIENT_ID")
    delete.set_defaults(run=run_delete)


def run_create(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Create a client and show its secret."""
    with closing(open_services(options, env)) as services:
        made = services.client_registry.create(options.name, scopes=options.scope, may=options.may)
    print(json.dumps({"client_id": made.client.id, "client_secret": made.secret}))
    return 0


def run_list(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """List the clients, the oldest first."""
    with closing(open_services(options, env)) as services:
        found = services.client_registry.every()
    print(json.dumps({"clients": [_described(client) for client in found]}))
    return 0


def run_rotate(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Add a secret and show it."""
    with closing(open_services(options, env)) as services, _some_client():
        made = services.client_registry.add_secret(options.client_id)
    print(json.dumps({"id": made.id, "client_secret": made.secret}))
    return 0


def run_drop_secret(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Drop a secret."""
    with closing(open_services(options, env)) as services:
        try:
            services.client_registry.drop_secret(options.client_id, options.secret_id)
        except NotFound as error:
            message = "CLIENT_ID and SECRET_ID name no secret: `authsvc clients list` shows them"
            raise ValueError(message) from error
    return 0


def run_set_scopes(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Replace the scopes of a client."""
    change = ClientChange(scopes=tuple(options.scope))
    with closing(open_services(options, env)) as services, _some_client():
        client = services.client_registry.change(options.client_id, change).value
    print(json.dumps(_described(client)))
    return 0


def run_delete(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Delete a client."""
    with closing(open_services(options, env)) as services, _some_client():
        services.client_registry.delete(options.client_id)
    return 0


@contextmanager
def _some_client() -> Iterator[None]:
    """Turn errors about a client into messages of the command line."""
    try:
        yield
    except NotFound as error:
        raise ValueError("CLIENT_ID names no client: `authsvc clients list` shows them") from error
    except TooMany as error:
        message = f"the client has {MOST_SECRETS} secrets: drop one first, with `authsvc clients drop-secret`"
        raise ValueError(message) from error


def _described(client: Client) -> dict[str, object]:
    return {
        "client_id": client.id,
        "name": client.name,
        "scopes": list(client.scopes),
        "may": list(client.may),
        "created_at": rfc3339(client.created_at),
        "secrets": [
            {
                "id": secret.id,
                "created_at": rfc3339(secret.created_at),
                "last_used_on": secret.last_used_on.isoformat() if secret.last_used_on else None,
            }
            for secret in client.secrets
        ],
    }
