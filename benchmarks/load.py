"""
A load generator on raw sockets: one thread, many kept-alive connections, loopback alone.

Closed loop: each connection sends its next request when the answer to the last one is there.  Open loop:
requests are due at fixed times, whatever the server does, and latency counts from the time due.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

RECEIVE_BYTES = 65536


def rounds_and_seconds(description: str | None, *, rounds: int, seconds: float) -> argparse.ArgumentParser:
    """A parser of the options that most benchmarks have, with their defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds)
    return parser


@dataclass
class Result:
    """What came back: answers by status, seconds each took, seconds in all."""

    statuses: dict[int, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return len(self.latencies_s) / self.took_s

    def percentile_ms(self, percent: float) -> float:
        """The latency, in milliseconds, that *percent* of the answers stayed within."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


@dataclass
class _Client:
    sock: socket.socket
    received: bytes = b""
    due_s: float = 0.0
    is_busy: bool = False

    def send(self, request: bytes, due_s: float) -> None:
        self.sock.sendall(request)
        self.due_s, self.is_busy = due_s, True

    def take(self) -> int | None:
        """The status of a complete answer, None while it is not."""
        data = self.sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            return None
        status = int(self.received[9:12])
        self.received, self.is_busy = b"", False
        return status


def request(method: str, path: str, *, token: str | None = None, body: bytes = b"") -> bytes:
    """The bytes of an HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def closed_loop(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Result:
    """Keep *connections* busy with *requests*, in turn, for *seconds*."""
    result, clients, selector = Result(), _connect(port, connections), selectors.DefaultSelector()
    began = time.perf_counter()
    for number, client in enumerate(clients):
        selector.register(client.sock, selectors.EVENT_READ, client)
        client.send(requests[number % len(requests)], time.perf_counter())
    turn = connections
    while (now := time.perf_counter()) - began < seconds:
        for key, _ in selector.select(timeout=0.1):
            if _note(key.data, result):
                key.data.send(requests[turn % len(requests)], time.perf_counter())
                turn += 1
    result.took_s = now - began
    _close(clients, selector)
    return result


def all_at_once(port: int, requests: Sequence[bytes], *, within_s: float) -> Result:
    """Send each of *requests* on a connection of its own, at the same time; answers come *within_s*."""
    result, clients, selector = Result(), _connect(port, len(requests)), selectors.DefaultSelector()
    began = time.perf_counter()
    for client, data in zip(clients, requests, strict=True):
        selector.register(client.sock, selectors.EVENT_READ, client)
        client.send(data, began)
    while len(result.latencies_s) < len(clients) and time.perf_counter() - began < within_s:
        for key, _ in selector.select(timeout=0.1):
            _note(key.data, result)
    result.took_s = time.perf_counter() - began
    _close(clients, selector)
    return result


def open_loop(
    port: int, requests: Sequence[bytes], *, per_s: float, seconds: float, connections: int
) -> Result:
    """Send *per_s* requests a second for *seconds*; one that waits for a connection is late."""
    result, clients, selector = Result(), _connect(port, connections), selectors.DefaultSelector()
    for client in clients:
        selector.register(client.sock, selectors.EVENT_READ, client)
    began, sent, total = time.perf_counter(), 0, int(per_s * seconds)
    while len(result.latencies_s) < total:
        now = time.perf_counter()
        free = [client for client in clients if not client.is_busy]
        while free and sent < total and began + sent / per_s <= now:
            free.pop().send(requests[sent % len(requests)], began + sent / per_s)
            sent += 1
        due = began + sent / per_s - time.perf_counter() if sent < total and free else 0.01
        for key, _ in selector.select(timeout=max(0.0, due)):
            _note(key.data, result)
    result.took_s = time.perf_counter() - began
    _close(clients, selector)
    return result


def _note(client: _Client, result: Result) -> bool:
    """Take what has arrived; True if it completes an answer."""
    status = client.take()
    if status is None:
        return False
    result.statuses[status] = result.statuses.get(status, 0) + 1
    result.latencies_s.append(time.perf_counter() - client.due_s)
    return True


def _connect(port: int, connections: int) -> list[_Client]:
    clients = [_Client(socket.create_connection(("127.0.0.1", port))) for _ in range(connections)]
    for client in clients:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return clients


def _close(clients: Sequence[_Client], selector: selectors.BaseSelector) -> None:
    selector.close()
    for client in clients:
        client.sock.close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
