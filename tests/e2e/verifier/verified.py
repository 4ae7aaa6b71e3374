"""A second service that verifies by itself, and rounds of logging in and out against both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from tests import ROOT
from tests.e2e.lines import Line, open_lines
from tests.processes import HOST, free_port, wait_until
from tests.rig import HOPELESS_S, PASSWORD, Service, run_command
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = Path(__file__).with_name("verified_application.py")
#: What docs/verifier.md promises: so long after a revocation was answered nobody takes the token (seconds).
PROMISED_LAG_S = 1.0
#: Whoever is asked answers in less (seconds), or the machine stood still: no step of the lag counts for more.
STEP_S = 0.1
#: Looks at a token after it was refused for the first time: a no stays a no.
LOOKS_AFTERWARDS = 5


def client_options(service: Service, folder: Path) -> dict[str, Any]:
    """What a verifier of *service* is told, with a new client."""
    done = run_command(
        "clients", "create", f"verifier {uuid4().hex}", env=service.env, folder=folder, entry=PATIENT
    )
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
        connection = HTTPConnection(HOST, self.port, timeout=HOPELESS_S)
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
        wait_until(self._is_up, what="the verifying service")
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


@dataclass(slots=True)
class Player:
    """Somebody who stays logged in, while they log in and out beside that; *lines* lead to each worker."""

    verified: Verified
    service: Service
    lines: list[Line]
    email: str = field(default_factory=lambda: f"{uuid4().hex}@example.com")
    staying: str = ""

    def enter(self) -> None:
        """Sign up, and log in for good."""
        assert self.service.register(self.email).status_code == 201
        self.staying = self._log_in()

    def play(self) -> Round:
        """Log in, out, and watch."""
        token = self._log_in()
        assert self.verified.check(token) == 200
        assert self.service.call("POST", "/v1/auth/logout", token=token).status_code == 204
        return self._watch(token, time.monotonic())

    def _log_in(self) -> str:
        return str(self.service.log_in(self.email, PASSWORD)["access_token"])

    def _watch(self, token: str, since_s: float) -> Round:
        """Show *token* until it is refused, and then some; a look counts from when it was begun."""
        late, looks, refused_s, lag_s, last_s = 0, 0, None, 0.0, since_s
        while looks < LOOKS_AFTERWARDS and last_s - since_s < HOPELESS_S:
            began_s = time.monotonic()
            lag_s, last_s = lag_s + min(began_s - last_s, STEP_S), began_s
            status = self.verified.check(token)
            assert status in {200, 401}
            if status == 401 and refused_s is None:
                refused_s = lag_s
            looks += refused_s is not None
            late += status == 200 and (lag_s > PROMISED_LAG_S or refused_s is not None)
            self._wait_for_everybody()
        return Round(lag_s=lag_s if refused_s is None else refused_s, late=late)

    def _wait_for_everybody(self) -> None:
        """Both workers, Redis and SQL: the lag is not theirs while one of them stands still."""
        for line in self.lines:
            assert line.ask("GET", "/v1/me/sessions", token=self.staying).status == 200
        time.sleep(0.005)


def play(service: Service, verified: Verified, *, rounds: int, threads: int) -> list[Round]:
    """*rounds* logins and logouts by users of their own, *threads* at a time."""
    with open_lines(service, each=threads) as lines, ThreadPoolExecutor(threads) as pool:
        players = [Player(verified, service, lines[2 * place : 2 * place + 2]) for place in range(threads)]
        for player in players:
            player.enter()
        played = pool.map(lambda player: [player.play() for _ in range(rounds // threads)], players)
        return [one for each in played for one in each]
