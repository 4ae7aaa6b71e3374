"""The application that test_server.py serves: ``tiny_application.py FOLDER PORT METRICS_PORT``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from flask import Flask, abort, request

from authsvc.observability.logs import configure
from authsvc.observability.metrics import make_metrics
from authsvc.server import ServerOptions, ServerTimings, serve
from authsvc.server.checks import PostRequest

MAX_BYTES = 65_536

log = logging.getLogger(__name__)


class Told(NamedTuple):
    """An answer to a member of a group."""

    status: str
    rest: bytes


class Grouped:
    """Answers with the bodies, leaves an empty one to Flask, and fails with a group that has a bad one."""

    paths = ("/echo",)
    metrics_port = 0

    def answer(self, requests: Sequence[PostRequest]) -> list[Told | None]:
        if any(one.body == b'"bad"' for one in requests):
            raise RuntimeError("a fault of the application")
        head = "Content-Length: %d\r\nX-Grouped: yes\r\n\r\n"
        return [
            Told("200 OK", (head % len(one.body)).encode() + one.body) if one.body else None
            for one in requests
        ]


class Application(Flask):
    """Counts its requests, and notes in files where its background work begins and ends."""

    def __init__(self, folder: Path) -> None:
        super().__init__("tiny")
        self.config["MAX_CONTENT_LENGTH"] = MAX_BYTES + 1  # werkzeug cuts chunked bodies there without a word
        self.folder = folder
        self.metrics = make_metrics()
        self.services = self
        self.grouped = Grouped()
        self.add_url_rule("/", view_func=self.hello)
        self.add_url_rule("/echo", view_func=self.echo, methods=["POST"])
        self.add_url_rule("/port", "port", view_func=lambda: request.environ["SERVER_PORT"])
        self.add_url_rule("/slow", view_func=self.slow, methods=["GET", "POST"])
        self.add_url_rule("/huge", view_func=self.huge)
        self.add_url_rule("/chatter", view_func=self.chatter)
        self.add_url_rule("/ready", view_func=self.ready)
        self.add_url_rule("/metrics", "metrics", view_func=lambda: self.metrics.exposition()[0])

    def start(self) -> None:
        self.metrics.start()
        if (self.folder / "die").exists():
            os.kill(os.getpid(), signal.SIGBUS)
        (self.folder / f"started-{os.getpid()}").touch()

    def close(self) -> None:
        (self.folder / f"closed-{os.getpid()}").touch()

    def hello(self) -> str:
        self.metrics.login("ok")
        self.metrics.breaker_state(1)
        return "hello"

    def echo(self) -> bytes:
        data = request.get_data()
        return data if len(data) <= MAX_BYTES else abort(413)

    def slow(self) -> str:
        (self.folder / "slow-begun").touch()
        while not (self.folder / "slow-may-end").exists():
            time.sleep(0.01)
        return "slow"

    def huge(self) -> Iterator[bytes]:
        (self.folder / f"huge-{os.getpid()}").touch()
        return repeat(b"x" * MAX_BYTES, 250)

    def chatter(self) -> str:
        for number in range(500):
            log.info("chatter.made", extra={"number": number, "text": "x" * 200})
        return "said"

    def ready(self) -> tuple[str, int]:
        return ("draining", 503) if request.environ["authsvc.draining"].is_set() else ("ready", 200)


def main(folder: str, port: str, metrics_port: str) -> None:
    """Serve; the body of the child process."""
    configure("info", "json")
    patience_s = float(os.environ.get("PATIENCE_S", "0"))
    patient = ServerTimings(read_s=patience_s, linger_s=patience_s, send_s=patience_s, notice_s=patience_s)
    figures = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    options = ServerOptions(
        host="127.0.0.1",
        port=int(port),
        metrics_port=int(metrics_port),
        workers=2,
        timings=patient if patience_s else ServerTimings(),
        bodiless=("/port",),
        lengthy=("/slow",),
        figures=Path(figures) if figures else None,
    )
    serve(options, lambda: sys.exit("refused") if folder == "refuse" else Application(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
