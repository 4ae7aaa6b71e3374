"""For ASGI services of any framework: a middleware, and a function to build a dependency from."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from functools import partial
from typing import Any, Final

from authsvc.verifier.claims import Claims, MachineClaims
from authsvc.verifier.core import Verifier, presented
from authsvc.verifier.errors import TokenInvalid, VerifierError
from authsvc.verifier.refusals import refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
#: Frameworks use their own types for the three arguments.
Application = Callable[[Any, Any, Any], Awaitable[None]]

#: The key of the claims in the scope.
CLAIMS: Final = "authsvc.claims"
#: Close code of a web socket that is refused: the caller broke a policy (RFC 6455 §7.4.1).
_POLICY_VIOLATION: Final = 1008


async def authenticate(
    verifier: Verifier,
    scope: Scope,
    roles: Collection[str] = (),
    *,
    acr: str | None = None,
    max_age_s: int | None = None,
) -> Claims:
    """
    The claims of the caller of *scope*; raises like :meth:`Verifier.authenticate`.

    Runs on a thread of the event loop's pool, because it may have to fetch keys or call the service.
    """
    header = _authorization(scope)
    return await asyncio.to_thread(verifier.authenticate, header, roles, acr=acr, max_age_s=max_age_s)


async def authenticate_machine(
    verifier: Verifier, scope: Scope, scopes: Collection[str] = ()
) -> MachineClaims:
    """The same for a machine; raises what :meth:`Verifier.verify_machine` does, and TokenMissing."""
    token = presented(_authorization(scope))
    return await asyncio.to_thread(verifier.verify_machine, token, scopes)


def _authorization(scope: Scope) -> str | None:
    given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    if len(given) > 1:
        raise TokenInvalid("more than one Authorization header")
    return given[0].decode("latin-1") if given else None


class Guarded:
    """
    Lets requests and web sockets through to *application* with a good token whose user has all of *roles*.

    *acr* and *max_age_s* are those of :meth:`Verifier.verify`.  Paths in *open_paths* need no token.  The
    claims are in the scope, under :data:`CLAIMS`.
    """

    def __init__(
        self,
        application: Application,
        verifier: Verifier,
        *,
        roles: Collection[str] = (),
        open_paths: Collection[str] = (),
        acr: str | None = None,
        max_age_s: int | None = None,
    ) -> None:
        self._application = application
        self._authenticate = partial(authenticate, verifier, roles=roles, acr=acr, max_age_s=max_age_s)
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        is_guarded = scope["type"] in {"http", "websocket"} and scope["path"] not in self._open_paths
        if is_guarded:
            try:
                found = await self._authenticate(scope)
            except VerifierError as error:
                await _refuse(error, scope, send)
                return
            scope = {**scope, CLAIMS: found}
        await self._application(scope, receive, send)


async def _refuse(error: VerifierError, scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    refused = refusal(error)
    headers = [(name.lower().encode(), value.encode()) for name, value in refused.headers]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": refused.body})
