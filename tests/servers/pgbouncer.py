"""PgBouncer as a process of the test run, in front of a PostgreSQL of the test run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import psycopg

from tests.processes import ServerProcess
from tests.servers.binaries import NOBODY, pgbouncer_binary

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.servers import PostgresServer, Remote

CONFIGURATION = """
[databases]
* = host={server.host} port={server.port}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
{more}
"""


class PgBouncer(ServerProcess):
    """
    A pooler in front of *server*, for the roles *users*.

    *more* are further lines of its configuration, *files* those that they name and it must read.
    """

    name = "pgbouncer"

    def __init__(
        self,
        server: PostgresServer | Remote,
        *,
        mode: Literal["session", "transaction", "statement"] = "session",
        users: tuple[str, ...] = ("postgres",),
        more: str = "",
        files: Iterable[Path] = (),
    ) -> None:
        super().__init__()
        (self.folder / "users").write_text("".join(f'"{user}" ""\n' for user in users))
        self.configuration = self.folder / "pgbouncer.ini"
        self.configuration.write_text(
            CONFIGURATION.format(
                server=server, host=self.host, port=self.port, folder=self.folder, mode=mode, more=more
            )
        )
        if os.geteuid() == 0:
            for path in (self.folder, *files):
                os.chown(path, NOBODY, NOBODY)

    def url_for(self, url: str) -> str:
        """The way to the database of *url* through this pooler."""
        parts = urlsplit(url)
        return parts._replace(netloc=f"{parts.username}@{self.host}:{self.port}").geturl()

    def _command(self) -> list[str]:
        return [str(pgbouncer_binary()), "--quiet", str(self.configuration)]

    def _popen_options(self) -> dict[str, Any]:
        as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        return {"cwd": self.folder, **as_nobody}

    def _is_ready(self) -> bool:
        try:
            psycopg.connect(host=self.host, port=self.port, user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True
