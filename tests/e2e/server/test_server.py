"""The server as a process of its own, with an application that does as little as can be."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests import ROOT
from tests.processes import HOST, ServerProcess, free_port, wait_until
from tests.rig import HOPELESS_S

pytestmark = pytest.mark.e2e

APPLICATION = str(Path(__file__).with_name("tiny_application.py"))
#: Of a server whose clients take their time; who is held up by them waits so long (seconds).
PATIENCE_S = 60
#: On a busy machine, too (seconds).
SOON_S = 20
#: Three times as many as the two workers have threads.
SILENT_CLIENTS = 192
PRODUCTS = (b"gunicorn", b"werkzeug", b"flask", b"python", b"server:")


class TinyServer(ServerProcess):
    """
    The server with two workers and the application beside this file.

    With *patience_s* it bears so long with clients that stall or linger, instead of some seconds.
    """

    name = "tiny"

    def __init__(self, *, patience_s: float = 0) -> None:
        super().__init__()
        self.patience_s = patience_s
        self.metrics_port = free_port()
        self.figures = self.folder / "figures"

    def _command(self) -> list[str]:
        return [sys.executable, APPLICATION, str(self.folder), str(self.port), str(self.metrics_port)]

    def _popen_options(self):
        figures = {"PROMETHEUS_MULTIPROC_DIR": str(self.figures)}
        return {"env": environment(PATIENCE_S=str(self.patience_s), **figures)}

    def _is_ready(self) -> bool:
        return len(list(self.folder.glob("started-*"))) == 2

    def get(self, path: str, *, port: int | None = None, headers: dict[str, str] | None = None):
        """Answer of a GET on a new connection: status and body."""
        connection = http.client.HTTPConnection(self.host, port or self.port, timeout=HOPELESS_S)
        try:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def workers(self) -> set[int]:
        return {child.pid for child in self._running().children()}

    def term(self) -> None:
        self._running().send_signal(signal.SIGTERM)

    def wait(self) -> int:
        status: int = self._running().wait(timeout=HOPELESS_S)
        self._process = None
        return status


class UnreadServer(TinyServer):
    """Its standard output is a pipe that nobody reads from."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.writer = os.pipe()

    def _command(self) -> list[str]:
        return ["sh", "-c", f'exec "$@" >/dev/fd/{self.writer}', "sh", *super()._command()]

    def _popen_options(self):
        return super()._popen_options() | {"pass_fds": (self.writer,)}

    def close(self) -> None:
        super().close()
        os.close(self.reader)
        os.close(self.writer)


class CrampedServer(TinyServer):
    """
    Its metrics lie where there is room for one page of 4 KiB, and none for the next.

    That is a file system of its own where this machine lets us mount one, else a limit to the size of files.
    """

    def _command(self) -> list[str]:
        self.figures.mkdir(exist_ok=True)
        apart = ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c"]
        mount = f"mount -t tmpfs -o size=4k tmpfs {self.figures}"
        if subprocess.run([*apart, mount], capture_output=True, check=False).returncode:
            return ["sh", "-c", 'ulimit -f 16; exec "$@"', "sh", *super()._command()]
        return [*apart, f'{mount} && exec "$@"', "sh", *super()._command()]


def environment(**more: str) -> dict[str, str]:
    root = str(ROOT)
    return {**os.environ, "PYTHONPATH": root, "WEB_CONCURRENCY": "1", **more}


@pytest.fixture(scope="module")
def shared_server():
    with TinyServer() as server:
        yield server


@pytest.fixture(scope="module")
def patient_server():
    with TinyServer(patience_s=PATIENCE_S) as server:
        yield server


@pytest.fixture
def server():
    with TinyServer() as server:
        yield server


def exchange(port: int, data: bytes) -> bytes:
    """Everything that comes back for *data*, until the server closes or is quiet."""
    with socket.create_connection((HOST, port), timeout=HOPELESS_S) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@contextmanager
def clients_that_send(port: int, data: bytes):
    """Connections that send *data* and then nothing."""
    with ExitStack() as stack:
        for _ in range(SILENT_CLIENTS):
            connection = stack.enter_context(socket.create_connection((HOST, port)))
            connection.sendall(data)
        yield


def test_an_answer_names_no_product(shared_server):
    """Who asks does not learn what serves."""
    answer = exchange(shared_server.port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nhello")
    assert not [product for product in PRODUCTS if product in answer.lower()]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"NONSENSE\r\n\r\n", 400, id="no request line"),
        pytest.param(b"GET / HTTP/1.1\nHost: x\n\n", 400, id="bare line feeds"),
        pytest.param(b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400, id="unknown version"),
        pytest.param(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, id="long line"),
        pytest.param(b"GET /" + b"a" * 5000, 414, id="endless line"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431, id="long header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431, id="many headers"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, id="negative length"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400, id="coding"),
    ],
)
def test_what_the_server_itself_refuses_is_a_problem_without_a_product(shared_server, data, status):
    """The application never sees these; the answer has the shape of its own all the same."""
    head, _, body = exchange(shared_server.port, data).partition(b"\r\n\r\n")

    problem = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    assert b"\r\nX-Request-Id: " + problem["request_id"].encode() in head
    assert (problem["status"], problem["code"]) == (status, "malformed_request")
    assert not [product for product in PRODUCTS if product in (head + body).lower()]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", id="no chunk size"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", id="chunk too long"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n3\r\nab", id="chunk cut off"),
        pytest.param(b"Content-Length: 10\r\n\r\nabc", id="body cut off"),
    ],
)
def test_a_broken_body_is_the_client_s_fault(shared_server, body):
    """400, never 500, whichever way the framing is wrong."""
    answer = exchange(shared_server.port, b"POST /echo HTTP/1.1\r\nHost: x\r\n" + body)

    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "framing",
    [
        pytest.param(b"Content-Length: 9\r\n\r\n", id="no body"),
        pytest.param(b"Content-Length: 9\r\n\r\nabc", id="half a body"),
        pytest.param(b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n", id="a body on demand"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n", id="no chunk"),
    ],
)
def test_where_no_body_is_read_none_is_waited_for(shared_server, framing):
    """Gateways send the Content-Length of the original request without its body: 200, then an end."""
    with socket.create_connection((HOST, shared_server.port), timeout=HOPELESS_S) as connection:
        connection.sendall(b"GET /port?x=1 HTTP/1.1\r\nHost: x\r\n" + framing)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answer


def test_where_no_body_is_read_one_that_came_along_keeps_the_connection(shared_server):
    """What arrived as a whole is passed over: the next request on the connection is read from its begin."""
    whole = b"GET /port/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    last = b"GET /port HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    answers = exchange(shared_server.port, whole + last)

    assert answers.count(b"HTTP/1.1 404 ") == 1
    assert answers.count(b"HTTP/1.1 200 ") == 1


def test_requests_in_one_packet_are_answered_in_order(shared_server):
    """Pipelining works, also where the last request of a packet is only half there."""
    post = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"

    with socket.create_connection((HOST, shared_server.port), timeout=HOPELESS_S) as connection:
        connection.sendall(post + b"one" + post + b"two" + post[:20])
        # The kernel merges what is sent without a pause; no call tells that a packet has been read.
        time.sleep(0.1)
        connection.sendall(post[20:].replace(b"Host: x", b"Host: x\r\nConnection: close") + b"end")
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))

    assert [answers.index(word) for word in (b"one", b"two", b"end")] == sorted(
        answers.index(word) for word in (b"one", b"two", b"end")
    )
    assert answers.count(b"HTTP/1.1 200 OK") == 3


JSON_POST = (
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
)


def test_a_fault_in_a_group_is_an_answer_and_stops_nothing(shared_server):
    """500 with a problem and the end of the connection; others are served."""
    good, bad = (
        exchange(shared_server.port, JSON_POST % (len(body), body)) for body in (b'"good"', b'"bad"')
    )

    assert good.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nX-Grouped: yes\r\n" in good
    assert bad.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b'"code": "internal_error"' in bad
    assert b"\r\nConnection: close\r\n" in bad
    left = exchange(shared_server.port, JSON_POST % (0, b""))
    assert left.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"X-Grouped" not in left
    assert exchange(shared_server.port, JSON_POST % (6, b'"more"')).endswith(b'"more"')


def test_the_port_is_the_socket_s_whatever_the_host_header_says(shared_server):
    """Metrics and service are told apart by SERVER_PORT: nobody can forge it."""
    forged = {"Host": f"{HOST}:{shared_server.metrics_port}", "X-Forwarded-Port": "1"}

    answers = [
        shared_server.get("/port", headers=forged),
        shared_server.get("/port", port=shared_server.metrics_port),
    ]

    assert answers == [(200, str(shared_server.port)), (200, str(shared_server.metrics_port))]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"G", id="one byte"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n", id="half a head"),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", id="half a body"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET", id="half a second request"),
    ],
)
def test_stalled_clients_hold_up_nobody(patient_server, sent):
    """More of them than there are threads, and a request is still answered at once."""
    with clients_that_send(patient_server.port, sent):
        # The server does not show how many connections it has accepted; this long is plenty.
        time.sleep(0.2)
        durations_s = []
        for _ in range(5):
            begun = time.perf_counter()
            status, _ = patient_server.get("/")
            durations_s.append(time.perf_counter() - begun)

    assert status == 200
    assert max(durations_s) < SOON_S


def test_a_stop_finishes_what_was_begun_and_closes_what_is_idle(server):
    """SIGTERM: not ready any more, in-flight requests answered, then status 0."""
    idle = socket.create_connection((HOST, server.port))
    answers: list[tuple[int, str]] = []
    client = threading.Thread(target=lambda: answers.append(server.get("/slow")))
    client.start()
    wait_until((server.folder / "slow-begun").exists)
    pids = server.workers()

    server.term()
    wait_until(lambda: is_refused_or_draining(server))
    (server.folder / "slow-may-end").touch()
    status = server.wait()

    client.join()
    assert answers == [(200, "slow")]
    assert status == 0
    assert idle.recv(1) == b""
    assert {int(path.name.split("-")[1]) for path in server.folder.glob("closed-*")} == pids
    idle.close()


def is_refused_or_draining(server):
    try:
        return server.get("/ready") == (503, "draining")
    except ConnectionError:
        return True


def test_a_worker_that_stops_says_so_before_it_refuses(patient_server):
    """A probe on a new connection learns that the service is draining while it still has work."""
    server = patient_server
    client = threading.Thread(target=server.get, args=("/slow",))
    client.start()
    wait_until((server.folder / "slow-begun").exists)

    server.term()
    try:
        wait_until(lambda: server.get("/ready")[0] == 503, what="a draining worker's answer")
        # The worker must go on draining: a later probe gets the same answer.
        time.sleep(0.3)
        answer = server.get("/ready")
    finally:
        (server.folder / "slow-may-end").touch()
        client.join()

    assert answer == (503, "draining")
    assert server.wait() == 0


def test_a_killed_worker_is_replaced_and_its_counts_stay(server):
    """What it measured of the present goes with it; what it counted does not."""
    for _ in range(20):
        server.get("/")
    before = server.workers()
    victim = before.copy().pop()

    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(server.workers()) == 2 and victim not in server.workers())
    wait_until(lambda: len(list(server.folder.glob("started-*"))) == 3)

    assert not list(server.figures.glob(f"gauge_live*_{victim}.db"))
    assert 'authsvc_logins_total{result="ok"} 20.0' in server.get("/metrics")[1]


def test_a_wiped_metrics_folder_stops_nothing(server):
    """Requests and scrapes go on, and no worker's counts are lost for long."""
    for _ in range(10):
        server.get("/")

    # In one step: a worker that writes a file meanwhile would keep the folder.
    server.figures.rename(server.folder / "wiped")
    shutil.rmtree(server.folder / "wiped")

    answers = [server.get("/")[0] for _ in range(10)]
    wait_until(lambda: 'authsvc_logins_total{result="ok"} 20.0' in server.get("/metrics")[1])
    assert answers == [200] * 10


def test_only_metrics_of_an_earlier_run_are_removed():
    """Whoever names a folder with data of their own keeps them."""
    with TinyServer() as other:
        other.get("/")
        other.term()
        other.wait()
        stale = {path.name for path in other.figures.glob("*.db")}
        kept = {"accounts.db", "counter_.db", "gauge_all_1.db.bak", "counter_12a.db", "my_histogram_1.db"}
        for name in kept:
            (other.figures / name).write_text("theirs")
        for started in other.folder.glob("started-*"):
            started.unlink()
        other.start()
        found = {path.name for path in other.figures.iterdir()}
        texts = {(other.figures / name).read_text() for name in kept}
        status, _ = other.get("/metrics")

    assert stale
    assert found & stale == set()
    assert found >= kept
    assert texts == {"theirs"}
    assert status == 200


def test_no_room_for_metrics_stops_nothing():
    """Each worker counts in memory, which the log says once, and answers; none dies."""
    with CrampedServer() as cramped:
        before = cramped.workers()
        answers = [cramped.get("/")[0] for _ in range(20)]
        scrape = cramped.get("/metrics")[1]
        after = cramped.workers()
        said = cramped.log_path.read_text().count('"metrics.in_memory"')

    assert answers == [200] * 20
    assert "authsvc_logins_total" in scrape
    assert after == before
    assert said == 1


def test_workers_that_die_at_once_are_replaced_ever_more_slowly(server):
    """The pause grows while they die, and ends with the cause."""
    began_s = time.monotonic()
    (server.folder / "die").touch()
    for worker in server.workers():
        os.kill(worker, signal.SIGBUS)

    wait_until(lambda: pauses(server)[:5] == [0.5, 1.0, 2.0, 4.0, 8.0], what="pauses")
    # Two may die at a time; then the longer pause of the two is waited for: at the least 0.5 and 2.
    assert time.monotonic() - began_s > 0.5 + 2.0
    (server.folder / "die").unlink()
    for started in server.folder.glob("started-*"):
        started.unlink()
    wait_until(lambda: len(list(server.folder.glob("started-*"))) == 2, what="new workers")
    assert server.get("/") == (200, "hello")


def pauses(server: TinyServer) -> list[float]:
    """Each pause that was announced, once, in order."""
    lines = server.log_path.read_text().splitlines()
    return list(dict.fromkeys(json.loads(x)["pause_s"] for x in lines if '"worker.dies_at_once"' in x))


def test_threads_of_a_worker_share_one_heap(server):
    """Else each would have its own, which keeps what it freed: 10 MB of every worker."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: server.get("/chatter"), range(200)))

    assert answers == [(200, "said")] * 200
    # The master's thread that writes the log began before the heap was shared; its heap is inherited.
    assert max(heaps_of_threads(worker) for worker in server.workers()) <= 1


def heaps_of_threads(pid: int) -> int:
    """How many heaps beside the main one a process has: glibc reserves 64 MiB for each, and uses a part."""
    lines = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    both = [(used, rest) for used, rest in pairwise(lines) if (used[1], rest[1]) == ("rw-p", "---p")]
    return sum(end_of(rest) - start_of(used) == 64 << 20 for used, rest in both)


def start_of(mapping: list[str]) -> int:
    return int(mapping[0].split("-")[0], 16)


def end_of(mapping: list[str]) -> int:
    return int(mapping[0].split("-")[1], 16)


def test_a_log_that_nobody_reads_stops_nothing():
    """The pipe is full after some hundred lines; 25,000 more change nothing for those who ask."""
    unread = UnreadServer()
    with unread:
        answers = [unread.get("/chatter") for _ in range(50)]
        unread.term()
        status = unread.wait()

    assert answers == [(200, "said")] * 50
    assert status == 0


def test_an_application_that_refuses_to_start_stops_the_service():
    """No endless restarts of workers that cannot come up."""
    command = [sys.executable, APPLICATION, "refuse", str(free_port()), str(free_port())]

    done = subprocess.run(
        command, env=environment(), capture_output=True, timeout=HOPELESS_S, check=False, text=True
    )

    assert done.returncode == 3
    assert "Traceback" not in done.stderr
