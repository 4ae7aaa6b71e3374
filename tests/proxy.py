"""A TCP proxy between the service and a server, to break the connection without touching either."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from enum import Enum
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from tests.processes import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Coroutine

CHUNK_BYTES = 65_536
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


class TcpProxy:
    """A proxy for the server of *url*, on a port of its own; starts in ``Mode.PASS``; a context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            message = "the URL needs a host and a port"
            raise ValueError(message)
        self.target = (parts.hostname, parts.port)
        self.port = free_port()
        self.mode = Mode.PASS
        self._changed = asyncio.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._clients: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None

    def url_for(self, url: str) -> str:
        """Return *url* with the proxy's host and port; user, password and path stay."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}{at}{HOST}:{self.port}").geturl()

    def switch(self, mode: Mode) -> None:
        """Change the mode; it holds for every connection when this returns."""
        self._do(self._switch(mode))

    def start(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        self._do(self._switch(Mode.PASS))
        return self

    def close(self) -> None:
        """End all connections and the proxy."""
        self._do(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _do(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=5)

    async def _switch(self, mode: Mode) -> None:
        async with self._changed:
            self.mode = mode
            self._changed.notify_all()
        if mode in {Mode.REFUSE, Mode.RESET}:
            self._cut_all()
        if mode is Mode.REFUSE:
            self._stop_listening()
        elif self._listener is None:
            self._listener = await asyncio.start_server(self._relay, HOST, self.port)

    async def _shut_down(self) -> None:
        self._stop_listening()
        self._cut_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _cut_all(self) -> None:
        for client in tuple(self._clients):
            self._cut(client)

    def _cut(self, client: asyncio.StreamWriter) -> None:
        if self.mode is Mode.RESET:
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        client.transport.abort()

    async def _relay(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._clients.add(client)
        try:
            if self.mode is Mode.RESET:
                return
            await self._wait_unless(Mode.SILENT)
            # What was held when the connection was cut is lost, as on a real wire.
            if not client.is_closing():
                await self._relay_to_target(requests, client)
        finally:
            self._clients.discard(client)
            self._cut(client)

    async def _relay_to_target(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection(*self.target)
        except OSError:
            return
        directions = [
            asyncio.create_task(self._pump(requests, server, Mode.SILENT)),
            asyncio.create_task(self._pump(answers, client, Mode.SILENT, Mode.MUTE)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.transport.abort()
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *held_by: Mode) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._wait_unless(*held_by)
            if sink.is_closing():
                return
            sink.write(data)
            await sink.drain()

    async def _wait_unless(self, *modes: Mode) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.mode not in modes)
