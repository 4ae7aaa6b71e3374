"""A socket with a deadline for the whole reply to a request."""

from __future__ import annotations

import math
import socket
import time
from typing import Any


class NothingSent(OSError):
    """The connection was broken, and no byte of the request was sent."""


class DeadlineSocket:
    """
    A socket whose time-out, *total_s* seconds, covers the whole reply after a send. A plain socket's time-out
    starts again with each piece. A time-out set here, as a subscriber does, covers all reads from then on.
    """

    def __init__(self, sock: socket.socket, total_s: float) -> None:
        self._sock = sock
        self._total_s = total_s
        self._piece_s = sock.gettimeout()
        self._ends_at_s = time.monotonic() + total_s
        self._has_sent = False
        #: No read continues past this time, whatever time-out is set.
        self.last_moment_s = math.inf
        #: Until then, sending does not move the deadline.
        self.is_in_handshake = True

    def sendall(self, data: bytes) -> None:
        """
        Send *data*; reads from now on have a new deadline. Raises NothingSent if certainly nothing was sent.
        """
        if not self.is_in_handshake:
            self._sock.settimeout(self._piece_s)
            self._ends_at_s = time.monotonic() + self._total_s
        try:
            sent = self._sock.send(data)
        except OSError as error:
            if self._has_sent or isinstance(error, TimeoutError):
                raise
            raise NothingSent(*error.args) from error
        self._has_sent = True
        if sent < len(data):
            self._sock.sendall(data[sent:])

    def recv_into(self, buffer: bytearray) -> int:
        """Read a piece; raises TimeoutError past the deadline."""
        self._shorten()
        self._has_sent = False
        return self._sock.recv_into(buffer)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Read a piece; raises TimeoutError past the deadline."""
        self._shorten()
        self._has_sent = False
        return self._sock.recv(size, flags)

    def settimeout(self, seconds: float | None) -> None:
        """Set the time-out for all following reads; None: no limit, 0: do not wait."""
        self._ends_at_s = time.monotonic() + seconds if seconds else math.inf
        self._sock.settimeout(seconds)

    def _shorten(self) -> None:
        left_s = min(self.last_moment_s, self._ends_at_s) - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the reply is not complete in time")
        piece_s = self._sock.gettimeout()
        if left_s < (math.inf if piece_s is None else piece_s):
            self._sock.settimeout(left_s)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 whatever a socket has
        return getattr(self._sock, name)
