"""The end of an event loop of the tests."""

from __future__ import annotations

import asyncio

#: A connection that was accepted has its transport, and one that was aborted is closed, after so many turns.
TURNS = 5


async def abort_all(loop: asyncio.AbstractEventLoop) -> None:
    """Close every connection of *loop*, also in a TLS handshake; it accepts nothing any more."""
    for _ in range(2):  # at once, so that nothing more is answered; and what was accepted a moment ago
        for transport in list(loop._transports.values()):  # type: ignore[attr-defined]  # noqa: SLF001
            transport.abort()
        await _turns()


async def _turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)
