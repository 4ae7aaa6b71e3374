"""
Pods of a rendered manifest as processes of this machine: what a kubelet does, as far as that goes.

Environment, mounts, init containers, probes with their timing, preStop, SIGTERM and grace are the manifest's.
Three things differ, because there is neither an image nor a kernel namespace: paths below a mount are looked
for in a folder of the pod (in values of variables and in arguments, nowhere else), ``HOST`` is the pod's
address, one of 127.0.0.0/8, and ``authsvc`` is the command of this checkout, with time for its stores.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Self

from authsvc.cli.keys import generate_key
from authsvc.cli.manifest.documents import Container, Manifest
from authsvc.cli.manifest.environment import environment_of
from tests import ROOT
from tests.forking import Process, run_python, start_python
from tests.manifests import only
from tests.timings import PATIENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.manifests import Document

#: Those of the kubelet, where a probe says nothing else.
PROBE_DEFAULTS = {"initialDelaySeconds": 0, "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3}
#: What this model of a kubelet acts upon, or may leave alone.
CONTAINER_FIELDS = {
    *("name", "image", "imagePullPolicy", "args", "env", "envFrom", "ports", "resources", "securityContext"),
    *("startupProbe", "livenessProbe", "readinessProbe", "lifecycle", "volumeMounts"),
}
Secrets = dict[str, dict[str, str]]


def make_secrets(database_url: str, redis_url: str, folder: Path) -> Secrets:
    """Return the Secrets that the Deployment mounts, with a new key from *folder*."""
    keys = folder / "keys"
    keys.mkdir()
    generate_key(keys, "ES256")
    return {
        "authsvc": {
            "database-url": f"{database_url}\n",
            "redis-url": f"{redis_url}\n",
            "token-secret": secrets.token_urlsafe(48),
            "password-pepper": secrets.token_urlsafe(48),
        },
        "authsvc-keys": {key.name: key.read_text() for key in keys.iterdir()},
    }


class Failed(Exception):
    """What a kubelet would report as an event of the pod."""


@dataclass(frozen=True, slots=True)
class Drain:
    """How a pod ended; the time is from the start of preStop to the end of the process."""

    took_s: float
    grace_s: int
    status: int


class Pod:
    """One pod of the Deployment *authsvc* in *documents*; *secret_data* are its Secrets, by name."""

    def __init__(self, documents: list[Document], secret_data: Secrets, folder: Path) -> None:
        self.address = (
            f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(254)}.{secrets.randbelow(252) + 2}"
        )
        self.folder = folder / self.address
        self.log = self.folder / "log"
        self.documents = documents
        self.spec: Document = only(documents, "Deployment", "authsvc")["spec"]["template"]["spec"]
        (self.container,) = self.spec["containers"]
        self.process: Process | None = None
        for volume in self.spec["volumes"]:
            self._volume(volume["name"]).mkdir(parents=True)
        for name, data in secret_data.items():
            self.show(name, data)

    def show(self, secret: str, data: Mapping[str, str]) -> None:
        """Let the mounts of *secret* hold *data* alone, all of it at once, as the kubelet does."""
        for volume in (
            each for each in self.spec["volumes"] if each.get("secret", {}).get("secretName") == secret
        ):
            assert volume["secret"].keys() == {"secretName", "defaultMode"}
            _swap(self._volume(volume["name"]), data, volume["secret"]["defaultMode"])

    def environment(self, container: Document) -> dict[str, str]:
        """Return the variables of *container*, as ``config check --manifest`` finds them; raises Failed."""
        manifest = Manifest(tuple(self.documents))
        (pod,) = (each for each in manifest.pods() if each.title == "Deployment/authsvc")
        made = environment_of(Container(container["name"], container["name"], container), pod, manifest)
        if made.problems or None in made.values.values():
            raise Failed(f"{container['name']}: {made.problems or made.values}")
        values = {name: self._below(str(value), container) for name, value in made.values.items()}
        return values | {"HOST": self.address}

    def initialise(self) -> None:
        """Run the init containers, one after the other; raises Failed."""
        for container in self.spec["initContainers"]:
            command, env = self._process(container)
            done = run_python(command, cwd=self.folder, env=env)
            if done.returncode:
                raise Failed(f"{container['name']}: {done.stderr}")

    def run(self, *arguments: str) -> str:
        """What ``authsvc`` with *arguments* prints in the container (``kubectl exec``); raises Failed."""
        _, env = self._process(self.container)
        done = run_python([*PATIENT, *arguments], cwd=self.folder, env=env)
        if done.returncode:
            raise Failed(f"{arguments}: {done.stderr}")
        return done.stdout

    def start(self) -> Self:
        """Start the container and wait for the startup probe, then for the readiness probe; raises Failed."""
        command, env = self._process(self.container)
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            self.process = start_python(command, cwd=self.folder, env=env, streams=(nothing, log, log))
        for kind in ("startupProbe", "readinessProbe"):
            self._wait_for(kind)
        return self

    def probe(self, kind: str) -> bool:
        """Ask once, as the probe says: path, port, and how long to wait for the answer."""
        probe = PROBE_DEFAULTS | self.container[kind]
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        get = probe["httpGet"]
        connection = HTTPConnection(self.address, ports[get["port"]], timeout=probe["timeoutSeconds"])
        try:
            connection.request("GET", get["path"])
            return 200 <= connection.getresponse().status < 400
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def stop(self, last_moment: Callable[[], object] = bool) -> Drain:
        """
        Run preStop, send SIGTERM, and wait; raises Failed where the kubelet would kill it.

        *last_moment* is called between preStop and the signal.
        """
        assert self.process is not None
        began, grace_s = time.monotonic(), self.spec["terminationGracePeriodSeconds"]
        subprocess.run(self.container["lifecycle"]["preStop"]["exec"]["command"], check=True, timeout=grace_s)
        last_moment()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(grace_s - (time.monotonic() - began))
        except subprocess.TimeoutExpired as late:
            self.close()
            raise Failed(f"killed after {grace_s} s:\n{self.log.read_text()[-4000:]}") from late
        return Drain(time.monotonic() - began, grace_s, status)

    def close(self) -> None:
        """Kill what still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_for(self, kind: str) -> None:
        assert self.process is not None
        probe = PROBE_DEFAULTS | self.container[kind]
        time.sleep(probe["initialDelaySeconds"])
        # A pod that is not ready yet is asked on; the one that does not start up is restarted.
        tries = probe["failureThreshold"] if kind == "startupProbe" else 60
        for _ in range(tries):
            asked = time.monotonic()
            if self.process.poll() is not None:
                break
            if self.probe(kind):
                return
            time.sleep(max(0, probe["periodSeconds"] - (time.monotonic() - asked)))
        raise Failed(f"{kind}:\n{self.log.read_text()[-4000:]}")

    def _process(self, container: Document) -> tuple[list[str], dict[str, str]]:
        """Return command line and environment of *container*; raises Failed."""
        if others := container.keys() - CONTAINER_FIELDS:
            raise Failed(f"{container['name']}: {others} are not known here")
        assert container["args"][0] == "authsvc"
        arguments = [self._below(word, container) for word in container["args"][1:]]
        # PATH and PYTHONPATH take the place of what the image sets.
        image = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        return [*PATIENT, *arguments], image | self.environment(container)

    def _volume(self, name: str) -> Path:
        return self.folder / name

    def _below(self, text: str, container: Document) -> str:
        """*text*, with a path below a mount of *container* led to the folder of its volume."""
        for mount in container["volumeMounts"]:
            place = mount["mountPath"]
            if text == place or text.startswith(f"{place}/"):
                return str(self._volume(mount["name"])) + text.removeprefix(place)
        return text


def _swap(volume: Path, data: Mapping[str, str], mode: int) -> None:
    """Write *data* into a new folder, turn ``..data`` to it in one step, and only then mend the names."""
    fresh = volume / f"..{secrets.token_hex(8)}"
    fresh.mkdir()
    for name, text in data.items():
        (fresh / name).write_text(text)
        (fresh / name).chmod(mode)
    turning = volume / "..data_tmp"
    turning.symlink_to(fresh.name)
    turning.rename(volume / "..data")
    for name in data.keys() - set(_names(volume)):
        (volume / name).symlink_to(Path("..data") / name)
    for name in set(_names(volume)) - data.keys():
        (volume / name).unlink()


def _names(volume: Path) -> Iterator[str]:
    yield from (entry.name for entry in volume.iterdir() if not entry.name.startswith(".."))
