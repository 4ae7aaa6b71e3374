"""Debian's Chromium without a window, driven over the DevTools protocol through a pipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

#: The browser reads commands from descriptor 3 and writes answers to 4; the shell gives them these numbers.
_LAUNCH = 'exec "$@" 3<&"$COMMANDS" 4>&"$ANSWERS"'
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)
_LOADED = "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
#: No answer takes so long (seconds), however busy the machine is.
HOPELESS_S = 120


def find() -> str | None:
    """The program, where it is installed."""
    return shutil.which("chromium")


class Refused(Exception):
    """The browser did not do what it was told to."""


class Chromium:
    """One browser with one page; a context manager."""

    def __init__(self, program: str, folder: Path) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._log = (folder / "chromium.log").open("wb")
        self._process = subprocess.Popen(
            ["bash", "-c", _LAUNCH, "chromium", program, *_FLAGS, f"--user-data-dir={folder / 'profile'}"],
            env={**os.environ, "COMMANDS": str(commands), "ANSWERS": str(answers), "HOME": str(folder)},
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        os.close(commands)
        os.close(answers)
        self._reader = os.fdopen(self._answers, "rb")
        self._numbers = iter(range(1, 1_000_000))
        self._session: str | None = None

    def __enter__(self) -> Self:
        # A browser that hangs ends, and so does whoever waits for its answer.
        self._watchdog = threading.Timer(HOPELESS_S, self._process.kill)
        self._watchdog.start()
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        os.close(self._commands)
        self._process.kill()
        self._process.wait()
        self._reader.close()
        self._log.close()

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command to the page (or, before there is one, to the browser), and return its result."""
        number = next(self._numbers)
        command: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == number:
                if "error" in message:
                    raise Refused(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    def evaluate(self, expression: str) -> Any:
        """The value of *expression* in the page, of a promise when it is kept."""
        result = self.tell(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            # As if a person had clicked: some of what pages ask for needs that.
            userGesture=True,
        )
        if "exceptionDetails" in result:
            raise Refused(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def open(self, url: str) -> None:
        """Go to *url* and wait until it is loaded."""
        self.tell("Page.enable")
        self.tell("Page.navigate", url=url)
        self.evaluate(
            "new Promise(r => document.readyState === 'complete' ? r() : addEventListener('load', r))"
        )

    def add_authenticator(self, **options: Any) -> str:
        """A virtual authenticator, which answers at once as if somebody had touched it; its id."""
        self.tell("WebAuthn.enable", enableUI=False)
        settings = {
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": True,
            "hasUserVerification": True,
            "isUserVerified": True,
            "automaticPresenceSimulation": True,
            **options,
        }
        made: str = self.tell("WebAuthn.addVirtualAuthenticator", options=settings)["authenticatorId"]
        return made

    def _read(self) -> dict[str, Any]:
        buffer: deque[bytes] = deque()
        while (byte := self._reader.read(1)) != b"\0":
            if not byte:
                raise Refused("the browser has ended")
            buffer.append(byte)
        message: dict[str, Any] = json.loads(b"".join(buffer))
        return message
