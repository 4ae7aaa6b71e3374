"""Tokens, keys and pages of the feed that the verifier's tests start from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from authsvc.domain.tokens.keys import KeyRing, SigningKey
from authsvc.verifier.claims import Claims, Rules
from authsvc.verifier.feed import Clocks
from authsvc.verifier.keys import parse_keys
from authsvc.verifier.transport import Answer
from tests.unit.domain.samples import ALICE_ID, NOW, PROFILE, SESSION_ID, TOKEN_ID, signing_key

NOW_S = NOW.timestamp()
RULES = Rules(
    issuer=PROFILE.issuer,
    audience=PROFILE.audience,
    lifetime_s=PROFILE.lifetime_s,
    machine_lifetime_s=PROFILE.machine_lifetime_s,
)
OTHER_ID = "00000000-0000-4000-8000-0000000000ff"


class Hands:
    """Both clocks, moved together or apart."""

    def __init__(self) -> None:
        self.wall_s = NOW_S
        self.monotonic_s = 1000.0
        self.clocks = Clocks(wall_s=lambda: self.wall_s, monotonic_s=lambda: self.monotonic_s)

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.wall_s += seconds
        self.monotonic_s += seconds


def claims_of(**changes: Any) -> Claims:
    """What the sample token says, changed."""
    fields: dict[str, Any] = {
        "user_id": ALICE_ID,
        "session_id": SESSION_ID,
        "token_id": TOKEN_ID,
        "roles": ("user",),
        "epoch": 3,
        "issued_at": int(NOW_S),
        "not_before": int(NOW_S),
        "expires_at": int(NOW_S) + 3600,
        "issuer": PROFILE.issuer,
        "audience": PROFILE.audience,
    }
    return Claims(**fields | changes)


def jwks(*keys: SigningKey) -> bytes:
    """What the service publishes of *keys*."""
    return json.dumps(KeyRing.of(keys or (signing_key(),)).jwks()).encode()


def find_key_in(*keys: SigningKey) -> Any:
    """A look-up in the published *keys*."""
    return parse_keys(jwks(*keys)).get


def item(kind: str, subject: str, *, epoch: int = 0, until_s: float = NOW_S + 3665) -> dict[str, Any]:
    """One item of the feed."""
    extra = {"epoch": epoch} if kind == "user" else {}
    until = datetime.fromtimestamp(until_s, UTC).isoformat()
    return {"kind": kind, f"{kind}_id": subject, "until": until, **extra}


def page(*items: dict[str, Any], cursor: str = "c", **changes: Any) -> Answer:
    """An answer of the feed."""
    document = {
        "items": list(items),
        "cursor": cursor,
        "reset": False,
        "has_more": False,
        "waited_ms": 0,
        "retry_after_ms": None,
    }
    return Answer(200, {}, json.dumps(document | changes).encode())
