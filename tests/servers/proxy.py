"""A TCP proxy between the service and a server, to break the connection without touching either."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

from tests.processes import HOST, free_port
from tests.servers.loops import abort_all

if TYPE_CHECKING:
    from collections.abc import Coroutine

CHUNK_BYTES = 65_536
#: What is accepted has its relay by then.
ACCEPTED_S = 0.02
#: Close at once and tell the peer by a reset instead of an orderly end.
LINGER_RESET = struct.pack("ii", 1, 0)


class Mode(Enum):
    """What becomes of connections, those that exist and new ones alike."""

    PASS = "pass"
    #: The port is closed; existing connections end.
    REFUSE = "refuse"
    #: Connections are accepted and stay; not a byte moves in either direction until the mode changes.
    SILENT = "silent"
    #: Requests arrive at the server and are carried out; the answers are held back until the mode changes.
    MUTE = "mute"
    #: Connections are accepted and reset at once.
    RESET = "reset"
    #: Each piece of an answer comes late.
    DELAY = "delay"
    #: Answers come byte by byte, each of them late.
    DRIP = "drip"
    #: The request is carried out; its answer is cut after some bytes (none at all: lost), and the connection.
    CUT = "cut"
    #: The request is lost, and the connection with it.
    LOSE = "lose"
    #: For Redis: each command is answered with a reply of our own, and never reaches the server.
    ANSWER = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """
    A mode with its figures: *late_s* of ``DELAY`` and ``DRIP``, *after_bytes* of ``CUT``.

    *answer* is the reply of ``ANSWER``.  Without *request* in it, a request is spared by the last three.
    """

    mode: Mode = Mode.PASS
    late_s: float = 0.0
    after_bytes: int = 0
    request: bytes = b""
    answer: bytes = b""


@dataclass(slots=True)
class _Exchange:
    """What one connection is at."""

    is_meant: bool = False


class TcpProxy:
    """A proxy for the server of *url*, on its own or the given *port*; begins to pass; a context manager."""

    def __init__(self, url: str, *, port: int | None = None) -> None:
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            message = "the URL needs a host and a port"
            raise ValueError(message)
        self.target = (parts.hostname, parts.port)
        self.port = port or free_port()
        self.rule = Rule()
        self._changed = asyncio.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._clients: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[Any]] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._swallowed: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None

    def url_for(self, url: str) -> str:
        """Return *url* with the proxy's host and port; user, password and path stay."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}{at}{HOST}:{self.port}").geturl()

    @property
    def mode(self) -> Mode:
        """The mode of the moment."""
        return self.rule.mode

    def switch(self, to: Mode | Rule) -> None:
        """Change the mode; it holds for every connection when this returns."""
        self._do(self._switch(to if isinstance(to, Rule) else Rule(mode=to)))

    def forget(self, *, silently: bool) -> None:
        """
        Do what a balancer does to idle connections: what they send next is lost, and nobody is told before.

        It resets them then, or *silently* answers nothing.  New connections pass.
        """
        self._do(self._forget(self._swallowed if silently else self._forgotten))

    async def _forget(self, them: set[asyncio.StreamWriter]) -> None:
        them.update(self._clients)

    def start(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        self._do(self._switch(Rule()))
        return self

    def close(self) -> None:
        """End all connections and the proxy."""
        self._do(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=60)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _do(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    async def _switch(self, rule: Rule) -> None:
        mode = rule.mode
        async with self._changed:
            self.rule = rule
            self._changed.notify_all()
        if mode in {Mode.REFUSE, Mode.RESET}:
            self._cut_all()
        if mode is Mode.REFUSE:
            self._stop_listening()
        elif self._listener is None:
            self._listener = await asyncio.start_server(self._relay, HOST, self.port)

    async def _shut_down(self) -> None:
        self._stop_listening()
        await asyncio.sleep(ACCEPTED_S)  # else the loop would end over connections that are half made
        self._cut_all()
        relays = list(self._relays)
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
        await abort_all(self._loop)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _cut_all(self) -> None:
        for client in tuple(self._clients):
            self._cut(client)

    def _cut(self, client: asyncio.StreamWriter) -> None:
        if self.mode is Mode.RESET:
            with suppress(OSError):  # it has ended by itself
                client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        client.transport.abort()

    async def _relay(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._clients.add(client)
        self._relays.add(relay := cast("asyncio.Task[Any]", asyncio.current_task()))
        try:
            if self.mode is Mode.RESET:
                return
            await self._wait_unless(Mode.SILENT)
            # What was held when the connection was cut is lost, as on a real wire.
            if not client.is_closing():
                await self._relay_to_target(requests, client)
        except asyncio.CancelledError:
            return  # the proxy closes: asyncio would log that of each connection
        finally:
            self._clients.discard(client)
            self._relays.discard(relay)
            self._cut(client)

    async def _relay_to_target(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection(*self.target)
        except OSError:
            return
        exchange = _Exchange()
        directions = [
            asyncio.create_task(self._pump_requests(requests, (server, client), exchange)),
            asyncio.create_task(self._pump_answers(answers, client, exchange)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.transport.abort()
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _pump_requests(
        self,
        source: asyncio.StreamReader,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        exchange: _Exchange,
    ) -> None:
        server, client = ends
        while data := await source.read(CHUNK_BYTES):
            await self._wait_unless(Mode.SILENT)
            if client in self._swallowed:
                continue
            if client in self._forgotten:
                return
            exchange.is_meant = self.rule.request in data
            if self.mode is Mode.ANSWER and exchange.is_meant:
                await self._hand_over(client, self.rule.answer * _commands_in(data))
                continue
            if server.is_closing() or (self.mode is Mode.LOSE and exchange.is_meant):
                return
            server.write(data)
            await server.drain()

    async def _pump_answers(
        self, source: asyncio.StreamReader, client: asyncio.StreamWriter, exchange: _Exchange
    ) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._wait_unless(Mode.SILENT, Mode.MUTE)
            if self.mode is Mode.CUT and exchange.is_meant:
                await self._hand_over(client, data[: self.rule.after_bytes])
                return
            for piece in self._pieces(data):
                if self.rule.late_s:
                    await asyncio.sleep(self.rule.late_s)
                if client.is_closing():
                    return
                await self._hand_over(client, piece)

    def _pieces(self, data: bytes) -> list[bytes]:
        return [data[at : at + 1] for at in range(len(data))] if self.mode is Mode.DRIP else [data]

    @staticmethod
    async def _hand_over(client: asyncio.StreamWriter, data: bytes) -> None:
        client.write(data)
        await client.drain()

    async def _wait_unless(self, *modes: Mode) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.mode not in modes)


def _commands_in(data: bytes) -> int:
    """How many commands of Redis are in *data*, which holds whole ones alone."""
    count = at = 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        parts, at = int(data[at + 1 : end]), end + 2
        for _ in range(parts):
            end = data.index(b"\r\n", at)
            at = end + 2 + int(data[at + 1 : end]) + 2
        count += 1
    return count
