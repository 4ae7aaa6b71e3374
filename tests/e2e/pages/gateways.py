"""What stands around the service in the tests of gateways: nginx, a service behind it, raw requests."""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass, field
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import requests

from tests import ROOT
from tests.processes import HOST
from tests.rig import HOPELESS_S
from tests.servers.nginx import Nginx, nginx_block

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.servers.proxy import TcpProxy


@dataclass
class Server:
    """A server in this process: keeps what it is asked, and answers *status* with *headers*."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                names = {name.lower(): value for name, value in self.headers.items()}
                outer.asked.append(
                    {"line": self.requestline, "headers": names, "body_bytes": len(body)},
                )
                self.send_response(outer.status)
                for name, value in {**outer.headers, "Content-Length": "2"}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_POST = do_OPTIONS = answer  # noqa: N815 - the names that http.server looks for

            def log_message(self, *_: object) -> None:
                """Write nothing."""

        self.http = ThreadingHTTPServer((HOST, 0), Handler)
        self.port = self.http.server_port
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self._thread.join()


@dataclass(frozen=True)
class Gateway:
    """nginx between clients, authsvc and a service behind it."""

    nginx: Nginx
    proxy: TcpProxy
    orders: Server
    user: dict[str, Any]
    admin: dict[str, Any]

    def ask(self, path: str, token: str | None = None, **options: Any) -> requests.Response:
        """One request of a client."""
        headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        return requests.request(
            options.pop("method", "GET"),
            self.nginx.url + path,
            headers=headers,
            timeout=HOPELESS_S,
            **options,
        )

    def refused(self, path: str, token: str | None, **options: Any) -> requests.Response:
        """The same, and nothing of it has reached the service behind."""
        before = len(self.orders.asked)
        answer = self.ask(path, token, **options)
        assert len(self.orders.asked) == before
        return answer

    def seen(self, path: str, token: str | None = None, **options: Any) -> dict[str, Any]:
        """What the service behind saw of a request that was let through."""
        answer = self.ask(path, token, **options)
        assert answer.status_code == 200, answer.text
        return self.orders.asked[-1]


def nginx_before(authsvc_port: int, orders: Server) -> Nginx:
    """nginx as the page has it, not yet started."""
    addresses = {"authsvc:8080": f"{HOST}:{authsvc_port}", "orders:8080": f"{HOST}:{orders.port}"}
    return Nginx(nginx_block(ROOT / "docs" / "gateways.md"), addresses)


def auth_headers(seen: dict[str, Any]) -> dict[str, str]:
    """What the service behind was told of who is asking, in any spelling."""
    headers: dict[str, str] = seen["headers"]
    return {name: value for name, value in headers.items() if re.match("x.auth.", name)}


class Asking:
    """One kept connection to the check, on which a gateway sends what it likes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=HOPELESS_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, method: str, target: bytes, headers: Mapping[str, str], token: str | None) -> HTTPResponse:
        """The answer to one request, its body read."""
        lines = {"Host": "orders.example.com", **headers}
        if token is not None:
            lines["Authorization"] = f"Bearer {token}"
        fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._socket.sendall(b"%s %s HTTP/1.1\r\n%s\r\n" % (method.encode(), target, fields.encode()))
        answer = HTTPResponse(self._socket, method=method)
        answer.begin()
        answer.read()
        return answer
