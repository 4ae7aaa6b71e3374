"""
A service behind a gateway that checks each token (docs/gateways.md).

Run it with the addresses of the gateway, as single addresses or as networks:

    pip install flask gunicorn
    GATEWAYS=10.0.3.7,10.0.4.0/24 gunicorn --bind 0.0.0.0:8080 behind_a_gateway:app

WARNING: X-Auth-User-Id, X-Auth-Session-Id and X-Auth-Roles are plain text, and any client can send them.
Trust them only from the gateway: make the gateway the only way to this service, and keep the check of the
peer below.

gunicorn 22 or newer drops look-alikes such as X_Auth_Roles (``header_map = "drop"``, its default). Under
another WSGI server the gateway has to drop them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from ipaddress import ip_address, ip_network
from typing import Any
from uuid import UUID

from flask import Flask, abort, g, request

app = Flask(__name__)
gateways = [ip_network(network) for network in os.environ["GATEWAYS"].split(",")]


@dataclass(frozen=True)
class Caller:
    """The user whose token the gateway has checked."""

    user_id: UUID
    roles: frozenset[str]


@app.before_request
def identify_caller() -> None:
    """Refuse every peer but the gateway, and read what the gateway says about the caller."""
    peer = ip_address(request.remote_addr or "0.0.0.0")  # noqa: S104 - no address is in no network
    if not any(peer in network for network in gateways):
        abort(403, "Not through the gateway.")
    user_id = request.headers.get("X-Auth-User-Id")
    roles = request.headers.get("X-Auth-Roles", "")
    try:
        # A header that arrived twice is joined by a comma: no UUID, and refused.
        g.caller = Caller(UUID(user_id), frozenset(roles.split(","))) if user_id else None
    except ValueError:
        abort(400, "X-Auth-User-Id is no UUID.")


def requires(role: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a view be called only for a user with *role*, also on a route where the gateway does not check."""

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def guarded(*args: object, **kwargs: object) -> object:
            if g.caller is None:
                abort(401)
            if role not in g.caller.roles:
                abort(403)
            return view(*args, **kwargs)

        return guarded

    return decorate


@app.get("/about")
def about() -> dict[str, bool]:
    """Answer everybody."""
    return {"known": g.caller is not None}


@app.get("/orders/<path:order>")
@requires("user")
def orders(order: str) -> dict[str, str]:
    """Answer users."""
    return {"order": order, "of": str(g.caller.user_id)}


@app.get("/orders/admin/<path:order>")
@requires("admin")
def all_orders(order: str) -> dict[str, str]:
    """Answer admins."""
    return {"order": order, "asked_by": str(g.caller.user_id)}
