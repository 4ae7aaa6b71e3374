"""Files of users, the importer in this process and commands beside the test."""

from __future__ import annotations

import io
import json
import os
import subprocess
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bcrypt
import psycopg

from authsvc.cli.exports import exported_users
from authsvc.cli.imports import MAX_LINE_BYTES, Importer
from authsvc.domain.credentials import Credentials
from authsvc.domain.passwords.hasher import pepper_id
from authsvc.domain.users import User
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import UserId, new_id
from authsvc.services import Services
from authsvc.settings import Settings, revealed
from authsvc.wiring import now
from authsvc.wiring.stores import open_database, open_transfers
from tests import ROOT
from tests.rig import Service, run_command
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authsvc.store.accounts.transfers import SqlUserTransfers

#: Any hash, for users who never log in.
SOME_HASH = "$2b$04$" + "." * 53


@dataclass(frozen=True)
class Desk:
    """The importer in this process."""

    services: Services
    settings: Settings

    @property
    def pepper_id(self) -> str:
        """The name of the pepper that own hashes need."""
        return pepper_id(revealed(self.settings.passwords.pepper))

    @contextmanager
    def transfers(self) -> Iterator[SqlUserTransfers]:
        """Many users at once, as the command line has them."""
        with closing(open_database(self.settings)) as database:
            yield open_transfers(self.settings, database, now)

    def take(self, *lines: bytes | dict[str, Any]) -> list[dict[str, Any]]:
        """What is said of each line."""
        encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        results: list[dict[str, Any]] = []
        with self.transfers() as transfers:
            importer = Importer(
                transfers=transfers,
                revocations=self.services.users.revocations,
                pepper_id=self.pepper_id,
                roles=self.services.users.roles,
                clock=now,
            )
            importer.run(io.BytesIO(b"\n".join(encoded)), results.extend)
        return results

    def line_of(self, email: str) -> dict[str, Any]:
        """What is exported of one user, with their hash."""
        with self.transfers() as transfers:
            pages = exported_users(transfers, self.services.users.roles, pepper_id=self.pepper_id)
            [line] = [line for page in pages for line in page if line["email"] == email]
        return line


def user(name: str, password_hash: str = SOME_HASH, /, **more: Any) -> dict[str, Any]:
    """A line of a file."""
    return {"email": f"{name}@example.com", "password_hash": password_hash, **more}


def arrival(name: str) -> Credentials:
    """The same as the store takes it."""
    who = User(id=UserId(new_id()), email=Email(f"{name}@example.com"), created_at=now(), updated_at=now())
    return Credentials(user=who, password_hash=SOME_HASH, password_version=1)


def hashed(password: bytes, prefix: str = "$2b$", cost: int = 4) -> str:
    """A hash as other systems make it."""
    made = bcrypt.hashpw(password[:72], bcrypt.gensalt(cost)).decode()
    return prefix + made.removeprefix("$2b$")


def stored_hash(service: Service, name: str) -> str:
    """The truth."""
    return str(asked(service.env, "SELECT password_hash FROM users WHERE email = %s", f"{name}@example.com"))


def asked(env: dict[str, str], query: str, *parameters: object) -> Any:
    """The first field of the first row."""
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def exported(env: dict[str, str], folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """What is exported, by address."""
    done = run_command("users", "export", *options, env=env, folder=folder, entry=PATIENT)
    assert done.returncode == 0, done.stderr
    return {line["email"]: line for line in map(json.loads, done.stdout.splitlines())}


def started(env: dict[str, str], folder: Path, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    """A command that runs beside the test."""
    process_env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen([*PATIENT, "users", *arguments], cwd=folder, env=process_env, **streams)


def peak_mib(pid: int) -> float:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


#: What is refused, by the reason that is given; ``secret-word`` may not come back.
BAD_LINES: dict[str, bytes | dict[str, Any]] = {
    "not JSON at column 24": b'{"email": "secret-word"',
    "not a JSON object": b'["secret-word"]',
    "not UTF-8 at byte 12": b'{"email": "\xff"}',
    "an object has one name twice": b'{"email": "a@example.com", "email": "b@example.com"}',
    f"longer than {MAX_LINE_BYTES} bytes": b'{"name": "' + b"secret-word" * 30_000 + b'"}',
    "must be an e-mail address": {"email": "secret-word", "password_hash": SOME_HASH},
    "missing: password_hash": {"email": "x@example.com"},
    "unknown: is_god": user("x", is_god=True),
    "wrong: name, roles, status": user("x", name="\0", roles=["King"], status="dead"),
    "a role that is not in ROLES": user("x", roles=["admin", "king"]),
    "wrong: id": user("x", id="{1f0e2b52-8ee7-4b4f-9b7e-6b6c3c2d1e00}"),
    "wrong: created_at": user("x", created_at="0001-01-01T00:00:00+14:00"),
    "wrong: last_login": user("x", last_login="2020-02-02T02:02:02"),
    "wrong: preferences": user("x", preferences={"a": "x" * 17_000}),
    "not a $2a$, $2b$ or $2y$ bcrypt hash of cost 4 to 15": user("x", "$2b$16$" + "." * 53),
    "a hash of authsvc under another pepper: nobody could log in with it": user(
        "x", "bcrypt-hmac-sha384" + SOME_HASH, pepper_id="0" * 16
    ),
}


def fat_lines(count: int, name: str) -> bytes:
    """So many users with 4 KiB of preferences each."""
    preferences = {"notes": "x" * 4_096}
    lines = (json.dumps(user(f"{name}-{number}", preferences=preferences)) for number in range(count))
    return "".join(f"{line}\n" for line in lines).encode()


def has_answered(importing: subprocess.Popen[bytes], results: Path, number: int) -> bool:
    """True once *results* has the line of that number; reads its end alone."""
    assert importing.poll() is None, "the import has ended"
    with results.open("rb") as file:
        file.seek(max(0, results.stat().st_size - 500))
        last = file.read().splitlines(keepends=True)[-1:]
    return any(line.endswith(b"\n") and json.loads(line)["line"] >= number for line in last)
