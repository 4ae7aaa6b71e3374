"""Operations of admins on registered clients."""

from __future__ import annotations

from flask import Response

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import services
from authsvc.api.frame.guards import requires
from authsvc.api.frame.outcomes import changed, revoked
from authsvc.api.schemas.clients import (
    ClientBody,
    ClientList,
    ClientPatch,
    ClientView,
    NewClientView,
    NewSecretView,
    with_secret,
)
from authsvc.domain.clients import Client, ClientChange, NewSecret

#: Its routes exist only where MACHINES is on.
blp = Blueprint("clients", __name__, url_prefix="/v1/clients", description="Registered clients, for admins.")


@blp.get("")
@requires("admin")
@blp.response(200, ClientList)
def every() -> dict[str, object]:
    """List all clients."""
    return {"items": services().client_registry.every()}


@blp.post("")
@requires("admin")
@blp.arguments(ClientBody)
@blp.response(201, NewClientView)
def create(form: ClientChange) -> dict[str, object]:
    """Create a client; its secret is only in this answer."""
    made = services().client_registry.create(form.name or "", scopes=form.scopes or (), may=form.may)
    return with_secret(made)


@blp.get("/<client_id>")
@requires("admin")
@blp.response(200, ClientView)
@blp.refuses(404, "`not_found`")
def one(client_id: str) -> Client:
    """Read one client."""
    return services().client_registry.get(client_id)


@blp.patch("/<client_id>")
@requires("admin")
@blp.arguments(ClientPatch)
@blp.response(200, ClientView)
@blp.alt_response(202, schema=ClientView, description="Changed, but Redis could not be updated yet.")
@blp.refuses(404, "`not_found`")
def change(form: ClientChange, client_id: str) -> tuple[Client, int]:
    """Change a client; removing a scope or the right to tokens ends its tokens."""
    return changed(services().client_registry.change(client_id, form))


@blp.delete("/<client_id>")
@requires("admin")
@blp.response(204, description="Deleted; its tokens are no longer valid.")
@blp.alt_response(202, description="Deleted, but Redis could not be updated yet.")
@blp.refuses(404, "`not_found`")
def remove(client_id: str) -> Response:
    """Delete a client with its secrets."""
    return revoked(services().client_registry.delete(client_id))


@blp.post("/<client_id>/secrets")
@requires("admin")
@blp.response(201, NewSecretView)
@blp.refuses(404, "`not_found`")
@blp.refuses(409, "`too_many`: a client can have two secrets at most")
def add_secret(client_id: str) -> NewSecret:
    """Create a second secret; it is only in this answer."""
    return services().client_registry.add_secret(client_id)


@blp.delete("/<client_id>/secrets/<secret_id>")
@requires("admin")
@blp.response(204, description="Deleted; the tokens issued for this secret are no longer valid.")
@blp.alt_response(202, description="Deleted, but Redis could not be updated yet.")
@blp.refuses(404, "`not_found`")
def drop_secret(client_id: str, secret_id: str) -> Response:
    """Delete one secret of a client."""
    return revoked(services().client_registry.drop_secret(client_id, secret_id))
