"""nginx as a process of the test run, with a configuration, a folder and a port of its own."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import psutil

from tests.processes import ServerProcess
from tests.servers.binaries import NOBODY, nginx_binary

if TYPE_CHECKING:
    from pathlib import Path

#: What a distribution's own file says around the servers; nothing outside the folder is written.
FRAME = """
worker_processes 1;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{servers}
}}
"""


class Nginx(ServerProcess):
    """
    nginx in front of what *servers* says, a part of its ``http`` block that listens on port 80.

    *addresses* are the names in it with their ports (``authsvc:8080``), and what stands for them here.
    """

    name = "nginx"

    def __init__(self, servers: str, addresses: dict[str, str]) -> None:
        super().__init__()
        for name, address in {"listen 80;": f"listen {self.host}:{self.port};", **addresses}.items():
            if name not in servers:
                message = f"the configuration does not name {name}"
                raise ValueError(message)
            servers = servers.replace(name, address)
        self.configuration = self.folder / "nginx.conf"
        self.configuration.write_text(FRAME.format(folder=self.folder, servers=servers))
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def complaints(self) -> str:
        """What ``nginx -t`` says of the configuration but that it is good."""
        tested = subprocess.run(
            [*self._command(), "-t"], capture_output=True, text=True, check=False, **self._popen_options()
        )
        good = ("syntax is ok", "test is successful")
        return "\n".join(line for line in tested.stderr.splitlines() if not line.endswith(good))

    def connections_to(self, port: int) -> set[int]:
        """The ports of its own ends of the connections that it has to *port* now."""
        root = self._running()
        return {
            connection.laddr.port
            for process in (root, *root.children(recursive=True))
            for connection in process.net_connections("tcp")
            if connection.raddr and connection.raddr.port == port
            if connection.status == psutil.CONN_ESTABLISHED
        }

    def _command(self) -> list[str]:
        # -e: the folder of the log that was compiled in is root's.
        options = ["-e", "stderr", "-p", str(self.folder), "-c", str(self.configuration)]
        return [str(nginx_binary()), *options, "-g", "daemon off;"]

    def _popen_options(self) -> dict[str, Any]:
        as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        return {"cwd": self.folder, **as_nobody}

    def _is_ready(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


def nginx_block(page: Path) -> str:
    """The first block of *page* that is marked as nginx's."""
    return page.read_text().split("```nginx\n", 1)[1].split("```", 1)[0]
