"""Workers share the application that the master made, and nothing that belongs to one process."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import jwt
import psutil
import pytest
import requests

from authsvc.store.key_folder import read_key
from tests import ROOT
from tests.e2e.rotation import add_key
from tests.processes import HOST, wait_until
from tests.rig import HOPELESS_S, Service

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

EMAIL = "alice@example.com"
#: A key of that age signs.
SIGNS_S = 3600


@pytest.fixture(scope="module")
def service(make_service, tmp_path_factory) -> Service:
    """Two workers with one signing key."""
    folder = tmp_path_factory.mktemp("forked")
    (folder / "keys").mkdir()
    add_key(folder / "keys", "ES256", age_s=SIGNS_S + 60)
    made: Service = make_service(folder)
    assert made.register(EMAIL).status_code == 201
    return made


def connections(pid: int) -> set[tuple[int, int]]:
    """Local and remote port of each connection of a process."""
    return {(c.laddr.port, c.raddr.port) for c in psutil.Process(pid).net_connections() if c.raddr}


def test_the_master_has_neither_connections_nor_threads(service):
    """They would be shared with workers, or missing in them; the log is written by a thread of its own."""
    assert service.process is not None
    master = psutil.Process(service.process.pid)

    assert connections(master.pid) == set()
    assert master.num_threads() <= 2
    assert [file.path for file in master.open_files() if file.path.endswith((".pem", ".db"))] == []


def test_workers_share_no_connection(service):
    """Each has its own to both stores."""
    first, second = (connections(pid) for pid in service.workers())

    assert first
    assert second
    assert first & second == set()


def test_the_metrics_are_those_of_the_workers(service):
    """The master compares nothing: a gauge of its own would say that no shard of Redis is proven."""
    wait_until(lambda: scraped(service)["authsvc_redis_shards_proven"] == 1, what="both workers' comparison")
    assert {int(file.stem.rpartition("_")[2]) for file in figure_files(service)} == set(service.workers())


def test_a_worker_that_replaces_another_starts_as_of_now(service):
    """Forked from a master that is older than the keys, it has those of now, and its own connections."""
    before = service.log_in(EMAIL)["access_token"]
    keys = Path(service.env["JWT_KEYS_DIR"])
    (old,) = keys.glob("*.pem")
    new = read_key(add_key(keys, "EdDSA", age_s=SIGNS_S))
    old.unlink()

    replace_workers(service)

    first, second = (connections(pid) for pid in service.workers())
    after = service.log_in(EMAIL)["access_token"]
    assert first & second == set()
    assert jwt.get_unverified_header(after)["kid"] == new.kid
    assert (
        service.from_each_worker(lambda: (service.verify(after), service.verify(before))) == [(200, 401)] * 2
    )


def test_gunicorn_s_own_command_serves_the_same(service, tmp_path):
    """``gunicorn wsgi:app`` in the checkout: the same options, and one application for both workers."""
    gunicorn = (sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py"))

    with Service(service.env, tmp_path, entry=gunicorn, command="wsgi:app") as other:
        token = other.log_in(EMAIL)["access_token"]
        assert other.verify_everywhere(token, times=2) == {200: 4}
        assert requests.get(other.metrics_url, timeout=HOPELESS_S).status_code == 200
        assert other.process is not None
        assert connections(other.process.pid) == set()
        # A check is answered without the body that it announces, as by ``authsvc serve``.
        with socket.create_connection((HOST, other.port), timeout=HOPELESS_S) as client:
            client.sendall(b"GET /v1/auth/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert client.recv(65_536).startswith(b"HTTP/1.1 401")


def scraped(service: Service) -> dict[str, float]:
    """The metrics of the service, by name and labels."""
    lines = requests.get(service.metrics_url, timeout=HOPELESS_S).text.splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def figure_files(service: Service) -> list[Path]:
    """The files of metrics that the workers have open."""
    mapped = {file.path for pid in service.workers() for file in psutil.Process(pid).memory_maps()}
    return [Path(name) for name in mapped if name.endswith(".db")]


def replace_workers(service: Service) -> None:
    """Kill both workers; return when two others are ready."""
    killed = set(service.workers())
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(set(service.workers()) - killed) == 2, what="two new workers")
    service.wait_ready(60)
    wait_until(lambda: all(service.from_each_worker(lambda: is_ready(service))), what="both ready")


def is_ready(service: Service) -> bool:
    """True if the worker that is not frozen is ready."""
    return service.call("GET", "/v1/health/ready").status_code == 200
