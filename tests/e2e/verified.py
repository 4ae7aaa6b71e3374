"""A second service that verifies by itself, and rounds of logging in and out against both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from tests.processes import HOST, free_port, wait_until
from tests.rig import PASSWORD, ROOT, Service, run_command

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = Path(__file__).with_name("verified_application.py")
#: What docs/verifier.md promises: so long after a revocation was answered nobody takes the token (seconds).
PROMISED_LAG_S = 1.0
#: A round is given up, as a failure, when the token is still taken after so long (seconds).
HOPELESS_S = 10.0
#: Looks at a token after it was refused for the first time: a no stays a no.
LOOKS_AFTERWARDS = 5


def client_options(service: Service, folder: Path) -> dict[str, Any]:
    """What a verifier of *service* is told, with a new client."""
    done = run_command("clients", "create", f"verifier {uuid4().hex}", env=service.env, folder=folder)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    return {
        "url": service.url,
        "client_id": made["client_id"],
        "client_secret": made["client_secret"],
        "issuer": service.env["JWT_ISSUER"],
        "audience": service.env["JWT_AUDIENCE"],
        "lifetime_s": 3600,
    }


class Verified:
    """The second service, as a process; a context manager."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.port = free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, token: str) -> int:
        """The status that a caller with *token* gets."""
        return self._get("/", token)[0]

    def lag_s(self) -> float:
        """How old what it knows is."""
        return float(json.loads(self._get("/lag", "")[1]))

    def _get(self, path: str, token: str) -> tuple[int, bytes]:
        connection = HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None
        try:
            self._get("/lag", "")
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        command = [sys.executable, str(PROGRAM), str(self.port)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._options).encode())
        self._process.stdin.close()
        wait_until(self._is_up, timeout_s=20, what="the verifying service")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True, slots=True)
class Round:
    """One login and logout: how long the token was still taken, and how often after the promised lag."""

    lag_s: float
    late: int


def play(service: Service, verified: Verified, *, rounds: int, threads: int) -> list[Round]:
    """*rounds* logins and logouts by users of their own, *threads* at a time."""
    emails = [f"{uuid4().hex}@example.com" for _ in range(threads)]
    for email in emails:
        assert service.register(email).status_code == 201

    def one(number: int) -> Round:
        token = str(service.log_in(emails[number % threads], PASSWORD)["access_token"])
        assert verified.check(token) == 200
        assert service.call("POST", "/v1/auth/logout", token=token).status_code == 204
        return _watch(verified, token, time.monotonic())

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(rounds)))


def _watch(verified: Verified, token: str, since_s: float) -> Round:
    """Show *token* until it is refused, and then some; a look counts from when it was begun."""
    late, looks, refused_s = 0, 0, None
    while looks < LOOKS_AFTERWARDS and time.monotonic() - since_s < HOPELESS_S:
        began_s = time.monotonic()
        status = verified.check(token)
        assert status in {200, 401}
        if status == 401 and refused_s is None:
            refused_s = began_s
        looks += refused_s is not None
        late += status == 200 and (began_s - since_s > PROMISED_LAG_S or refused_s is not None)
        time.sleep(0.005)
    return Round(lag_s=(refused_s or time.monotonic()) - since_s, late=late)
