"""A Flask application with one empty route, under the service's own server: what a check is compared with."""

from __future__ import annotations

import sys

from flask import Flask

from authsvc.observability import logs
from authsvc.server import ServerOptions, serve


def load() -> Flask:
    """Make the application in the worker."""
    app = Flask("bare")

    @app.get("/")
    def nothing() -> tuple[str, int]:
        return "", 200

    return app


if __name__ == "__main__":
    logs.configure("warning", "json")
    port, metrics_port = int(sys.argv[1]), int(sys.argv[2])
    serve(ServerOptions(host="127.0.0.1", port=port, metrics_port=metrics_port, workers=2), load)
