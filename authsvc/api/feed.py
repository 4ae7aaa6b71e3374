"""The revocation feed, for services that verify tokens by themselves."""

from __future__ import annotations

from flask import request

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import services
from authsvc.api.frame.guards import requires_client
from authsvc.api.schemas.feed import FeedParameters, FeedView, shown
from authsvc.domain.clients import Right
from authsvc.domain.feed import FeedQuery

blp = Blueprint("feed", __name__, description="The feed of revocations, for verifiers.")


@blp.get("/v1/revocations")
@requires_client(Right.FEED)
@blp.arguments(FeedParameters, location="query")
@blp.response(200, FeedView)
def revocations(query: FeedQuery) -> dict[str, object]:
    """Read the revocations after a cursor; if there are none yet, wait for one."""
    draining = request.environ.get("authsvc.draining")
    answer = services().feed.read(query, is_over=lambda: draining is not None and draining.is_set())
    return shown(answer)
