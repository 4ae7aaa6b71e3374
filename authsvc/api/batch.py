"""Operations of admins on many users at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from authsvc.api.frame.bodies import Blueprint
from authsvc.api.frame.context import services
from authsvc.api.frame.errors import DETAILS
from authsvc.api.frame.guards import requires
from authsvc.api.schemas.batches import (
    CreateBatchBody,
    CreateBatchView,
    IdsBody,
    IdsQuery,
    LastLoginView,
    LookupView,
)
from authsvc.domain.authentication import Registration
from authsvc.domain.batches import Created
from authsvc.domain.errors import AuthError, Invalid
from authsvc.domain.values.identifiers import UserId

blp = Blueprint(
    "batch",
    __name__,
    url_prefix="/v1/batch/users",
    description="Operations on many users at once, for admins.",
)


@blp.post("/create")
@requires("admin")
@blp.arguments(CreateBatchBody)
@blp.response(200, CreateBatchView)
@blp.refuses(503, "`unavailable`: no item could be processed")
def create(items: Sequence[Registration | AuthError]) -> dict[str, object]:
    """Create up to 20 users; each item has its own result."""
    with _noted("create"):
        results = services().batches.create(items)
    created = sum(result.user is not None for result in results)
    described = [_described(index, result) for index, result in enumerate(results)]
    return {"results": described, "created": created, "failed": len(results) - created}


@blp.get("/lookup")
@requires("admin")
@blp.arguments(IdsQuery, location="query")
@blp.response(200, LookupView)
def look_up(ids: Sequence[UserId]) -> dict[str, object]:
    """Read up to 100 users."""
    with _noted("lookup"):
        found, missing = services().users.look_up(ids)
    return {"items": found, "missing": missing}


@blp.patch("/last-login")
@requires("admin")
@blp.arguments(IdsBody)
@blp.response(200, LastLoginView)
def last_login(ids: Sequence[UserId]) -> dict[str, object]:
    """Set the last login of up to 100 users to now."""
    with _noted("last_login"):
        updated, missing = services().batches.note_logins(ids)
    return {"updated": updated, "missing": missing}


@contextmanager
def _noted(operation: str) -> Iterator[None]:
    """Count and time one batch, whether it succeeds or fails."""
    began_s = time.perf_counter()
    try:
        yield
    finally:
        services().metrics.user_batch(operation, time.perf_counter() - began_s)


def _described(index: int, result: Created) -> dict[str, object]:
    """One result, as the answer shows it."""
    if result.refusal is None:
        return {"index": index, "status": "created", "user": result.user}
    error: dict[str, object] = {"code": result.refusal.code, "detail": DETAILS[result.refusal.code]}
    if isinstance(result.refusal, Invalid):
        error["errors"] = result.refusal.errors
    return {"index": index, "status": "failed", "error": error}
