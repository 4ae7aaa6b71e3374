"""Flask and ASGI: who is let through, and what the others are told (RFC 6750)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from flask import Flask

from authsvc.domain.values.levels import Requirement
from authsvc.verifier import (
    Acr,
    FeedStale,
    RoleMissing,
    StepUpRequired,
    TokenInvalid,
    TokenMissing,
    Verifier,
    VerifierError,
    refusal,
)
from authsvc.verifier.asgi import CLAIMS, Guarded, authenticate
from authsvc.verifier.flask import claims, requires
from tests.unit.verifier.samples import claims_of

#: An event loop has a pair of sockets to wake it.
pytestmark = pytest.mark.usefixtures("socket_enabled")

#: What each error becomes: status, challenge, code.
ANSWERS = [
    (TokenMissing("x"), 401, 'Bearer realm="authsvc"', "token_missing"),
    (TokenInvalid("x"), 401, 'Bearer realm="authsvc", error="invalid_token"', "token_invalid"),
    (RoleMissing("x"), 403, 'Bearer realm="authsvc", error="insufficient_scope"', "forbidden"),
    (
        StepUpRequired(Requirement(acr=Acr.AAL2, max_age_s=300)),
        401,
        'Bearer realm="authsvc", error="insufficient_user_authentication", max_age="300", acr_values="aal2"',
        "step_up_required",
    ),
    (FeedStale("x", retry_after_s=3), 503, None, "unavailable"),
]


class Verdict(Verifier):
    """A verifier that has made up its mind."""

    def __init__(self, error: VerifierError | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str | None, set[str]]] = []
        self.levels: list[tuple[str | None, int | None]] = []

    def authenticate(
        self, authorization: str | None, roles: Any = (), *, acr: Any = None, max_age_s: Any = None
    ) -> Any:
        self.asked.append((authorization, set(roles)))
        self.levels.append((acr, max_age_s))
        if self.error is not None:
            raise self.error
        return claims_of()


def flask_app(verifier: Verifier) -> Any:
    """A client of a Flask application with one guarded view."""
    app = Flask("guarded")

    @app.get("/orders/<name>")
    @requires(verifier, "user", "admin", acr="aal2", max_age_s=300)
    def orders(name: str) -> dict[str, str]:
        return {"user": claims().user_id, "name": name}

    return app.test_client()


def call(application: Any, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """What *application* sends."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(application(scope, None, send))
    return sent


def http(path: str = "/", *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """A request as an ASGI server hands it on."""
    return {"type": "http", "path": path, "headers": list(headers)}


class Inner:
    """An ASGI application that remembers its scopes."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: dict[str, Any], _receive: Any, _send: Any) -> None:
        self.scopes.append(scope)


def test_flask_lets_a_good_token_through():
    """The view knows who is asking; every role that it names is asked for."""
    verifier = Verdict()

    answer = flask_app(verifier).get("/orders/one", headers={"Authorization": "Bearer t"})

    assert answer.json == {"user": claims_of().user_id, "name": "one"}
    assert verifier.asked == [("Bearer t", {"user", "admin"})]
    assert verifier.levels == [("aal2", 300)]


@pytest.mark.parametrize(("error", "status", "challenge", "code"), ANSWERS)
def test_flask_tells_the_others_why(error, status, challenge, code):
    """And no more than that: what is in the error is for the log."""
    answer = flask_app(Verdict(error)).get("/orders/one")

    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert answer.headers.get("WWW-Authenticate") == challenge
    assert answer.headers.get("Retry-After") == ("3" if status == 503 else None)
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"


def test_asgi_lets_a_good_token_through():
    """The application finds the claims in its scope; the caller's scope is left alone."""
    verifier, inner = Verdict(), Inner()
    scope = http("/", (b"Authorization", b"Bearer t"))

    sent = call(Guarded(inner, verifier, roles=("admin",), acr="phr", max_age_s=60), scope)

    assert sent == []
    assert verifier.levels == [("phr", 60)]
    assert inner.scopes[0][CLAIMS] == claims_of()
    assert CLAIMS not in scope
    assert verifier.asked == [("Bearer t", {"admin"})]


@pytest.mark.parametrize(("error", "status", "challenge", "code"), ANSWERS)
def test_asgi_tells_the_others_why(error, status, challenge, code):
    """Word for word what Flask says."""
    inner = Inner()

    start, body = call(Guarded(inner, Verdict(error)), http())

    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert (start["status"], json.loads(body["body"])["code"]) == (status, code)
    assert headers.get("www-authenticate") == challenge
    assert headers["content-length"] == str(len(body["body"]))
    assert inner.scopes == []


def test_a_web_socket_without_a_token_is_closed():
    """Before it is accepted."""
    inner = Inner()

    sent = call(Guarded(inner, Verdict(TokenMissing("x"))), http() | {"type": "websocket"})

    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert inner.scopes == []


@pytest.mark.parametrize("scope", [http("/health"), {"type": "lifespan"}])
def test_what_is_open_needs_no_token(scope):
    """Exactly the paths that were named, and what is no request."""
    inner, verifier = Inner(), Verdict(TokenMissing("x"))
    guarded = Guarded(inner, verifier, open_paths=["/health"])

    call(guarded, scope)
    call(guarded, http("/health/"))

    assert inner.scopes == [scope]


def test_two_headers_are_one_too_many():
    """Which of them another hop looked at is anybody's guess."""
    verifier = Verdict()
    scope = http("/", (b"authorization", b"Bearer a"), (b"authorization", b"Bearer b"))

    with pytest.raises(TokenInvalid):
        asyncio.run(authenticate(verifier, scope))
    assert verifier.asked == []


def test_a_realm_is_named_by_the_service():
    """Where an application answers by itself."""
    header = dict(refusal(TokenMissing("x"), realm="orders").headers)["WWW-Authenticate"]

    assert header == 'Bearer realm="orders"'
