"""A pipe that a log is written into."""

from __future__ import annotations

import os


class Reader:
    """A pipe, and what has been written into it."""

    def __init__(self) -> None:
        self.out, self.fd = os.pipe()

    def text(self) -> str:
        os.set_blocking(self.out, False)
        try:
            return os.read(self.out, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        os.close(self.out)
        os.close(self.fd)
