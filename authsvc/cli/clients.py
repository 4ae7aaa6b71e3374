"""Commands for registered clients."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import closing

from authsvc.cli.admin import open_services
from authsvc.domain.clients import USUAL_RIGHTS, Client, Right
from authsvc.domain.errors import NotFound
from authsvc.domain.values.clocks import rfc3339


def add_clients(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``clients``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a client; its secret is shown once")
    create.add_argument("name", metavar="NAME", help="for people; need not be unique")
    create.add_argument(
        "--may",
        action="append",
        choices=list(Right),
        metavar="RIGHT",
        help=f"what it may do: {', '.join(Right)}; may be repeated (default: {', '.join(USUAL_RIGHTS)})",
    )
    create.set_defaults(run=run_create)
    listing = actions.add_parser("list", help="list the clients, without their secrets")
    listing.set_defaults(run=run_list)
    delete = actions.add_parser(
        "delete", help="delete a client; it is refused from its next request on, tokens are not touched"
    )
    delete.add_argument("client_id", metavar="CLIENT_ID")
    delete.set_defaults(run=run_delete)


def run_create(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Create a client and show its secret."""
    with closing(open_services(env)) as services:
        made = services.client_registry.create(options.name, may=options.may or USUAL_RIGHTS)
    print(json.dumps({"client_id": made.client.id, "client_secret": made.secret}))
    return 0


def run_list(_options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """List the clients, the oldest first."""
    with closing(open_services(env)) as services:
        found = services.client_registry.every()
    print(json.dumps({"clients": [_described(client) for client in found]}))
    return 0


def run_delete(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Delete a client."""
    with closing(open_services(env)) as services:
        try:
            services.client_registry.delete(options.client_id)
        except NotFound as error:
            raise ValueError("CLIENT_ID names no client: `authsvc clients list` shows them") from error
    return 0


def _described(client: Client) -> dict[str, object]:
    return {
        "client_id": client.id,
        "name": client.name,
        "may": list(client.may),
        "created_at": rfc3339(client.created_at),
    }
