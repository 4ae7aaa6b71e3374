"""The server under clients that mean it ill: most of these attacks once stopped a worker or its threads."""

from __future__ import annotations

import resource
import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.e2e.server.test_server import PATIENCE_S, SOON_S, TinyServer, clients_that_send
from tests.processes import HOST, wait_until
from tests.rig import HOPELESS_S

pytestmark = pytest.mark.e2e

#: So many descriptors leave a worker 64 connections.
FEW_DESCRIPTORS = 320
#: More than one worker's share of slow readers, and more than the threads of both.
SLOW_READERS = 80
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
FOUR_KIB = b"1000\r\n" + b"a" * 4_096 + b"\r\n"
HALF_REQUESTS = {
    "chunked": CHUNKED + b"5\r\nab",
    "a chunk without its end": CHUNKED + b"2\r\nab",
    "chunks without their end": CHUNKED + b"2\r\nab\r\n0\r\nX: y\r\n",
    "expect": POST + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
    "ten digits": POST + b"Content-Length: 0000000010\r\n\r\nab",
    "too long": POST + b"Content-Length: 99999\r\n\r\nab",
    "unread": b"POST /ready HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\nab",
}


@pytest.fixture(scope="module")
def shared_server():
    with TinyServer() as server:
        yield server


@pytest.fixture(scope="module")
def patient_server():
    with TinyServer(patience_s=PATIENCE_S) as server:
        yield server


@contextmanager
def few_descriptors():
    """What is started meanwhile may open 320 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(port: int, stack: ExitStack, *, receive_bytes: int | None = None) -> socket.socket:
    connection = stack.enter_context(socket.socket())
    connection.settimeout(HOPELESS_S)
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect((HOST, port))
    return connection


def answer_to(port: int, *pieces: bytes) -> bytes:
    """All that comes back until the server closes, while the client keeps its side open."""
    with ExitStack() as stack:
        connection = connect(port, stack)
        for piece in pieces:
            connection.sendall(piece)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def slowest_answer_s(server: TinyServer, count: int = 8) -> float:
    durations_s = []
    for _ in range(count):
        begun = time.perf_counter()
        assert server.get("/")[0] == 200
        durations_s.append(time.perf_counter() - begun)
    return max(durations_s)


def knock(port: int, stack: ExitStack) -> socket.socket:
    """Begin to connect, and do not wait for it."""
    connection = stack.enter_context(socket.socket())
    connection.setblocking(False)
    connection.connect_ex((HOST, port))
    return connection


def test_a_flood_of_connections_kills_no_worker():
    """More connections than a worker keeps, and those that give way speak in the same moment."""
    with ExitStack() as stack:
        with few_descriptors():
            server = stack.enter_context(TinyServer())
        before = server.workers()

        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and server.workers() == before:
            flood(server.port)

        assert server.workers() == before


def flood(port: int) -> None:
    with ExitStack() as stack:
        for begun in [[knock(port, stack) for _ in range(50)] for _ in range(4)]:
            for connection in begun:
                with suppress(OSError):  # it has given way
                    connection.send(b"G")


@pytest.mark.parametrize("sent", HALF_REQUESTS.values(), ids=HALF_REQUESTS)
def test_half_sent_bodies_hold_up_nobody(patient_server, sent):
    """Three times as many clients as threads stall within a body: others are answered at once."""
    with clients_that_send(patient_server.port, sent):
        # The server does not show how many connections it has accepted; this long is plenty.
        time.sleep(0.2)

        assert slowest_answer_s(patient_server) < SOON_S


def test_slow_readers_hold_up_nobody(patient_server):
    """More of them than there are threads, each with an answer that fits no buffer."""
    with ExitStack() as stack:

        def read_slowly() -> None:
            request = b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n"
            connect(patient_server.port, stack, receive_bytes=1024).sendall(request)

        def are_both_sending() -> bool:
            read_slowly()  # one more: all of them may have come to one worker
            return len(list(patient_server.folder.glob("huge-*"))) == 2

        for _ in range(SLOW_READERS):
            read_slowly()
        wait_until(are_both_sending)

        assert slowest_answer_s(patient_server) < SOON_S


def test_long_heads_are_refused_before_they_fill_the_memory(shared_server):
    """64 KiB is enough, however they are cut; a thread sees none of them."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\n" + (b"A: " + b"a" * 8_000 + b"\r\n") * 9
    late = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + head

    answers = [answer_to(shared_server.port, head), answer_to(shared_server.port, late)]

    assert answers[0].startswith(b"HTTP/1.1 431 ")
    assert answers[1].startswith(b"HTTP/1.1 200 ")
    assert b"\r\n\r\nhelloHTTP/1.1 431 " in answers[1]


def test_many_halves_of_requests_do_not_fill_the_memory(patient_server):
    """Two workers hold 16 MiB each; who comes after is refused, and room is there when they have gone."""
    half = CHUNKED + (b"1;x=" + b"y" * 8_000 + b"\r\na\r\n") * 30
    before = patient_server.workers()
    with ExitStack() as stack:
        connections = [connect(patient_server.port, stack) for _ in range(200)]
        for connection in connections:
            connection.sendall(half)
        refused, _, _ = select.select(connections, [], [], HOPELESS_S)
        answers = [connection.recv(65_536) for connection in refused]

        assert answers
        assert {answer[:13] for answer in answers} == {b"HTTP/1.1 413 "}
        assert len(answers) < len(connections)
        assert slowest_answer_s(patient_server) < SOON_S
    whole = POST + b"Connection: close\r\nContent-Length: 3\r\n\r\n"

    # Once the server has seen that they are gone.
    wait_until(lambda: answer_to(patient_server.port, whole, b"one").endswith(b"one"), what="room")
    assert patient_server.workers() == before


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        pytest.param([POST + b"Content-Length: 200000\r\n\r\n", b"a" * 200_000], 413, id="length"),
        pytest.param([POST + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n"], 400, id="endless length"),
        pytest.param([POST + b"Content-Length: " + b"9" * 4_000 + b"\r\n\r\n"], 413, id="huge length"),
        pytest.param([CHUNKED + b"FFFFFF\r\n", b"a" * 200_000], 413, id="one chunk"),
        pytest.param([CHUNKED, *[FOUR_KIB] * 40], 413, id="chunks"),
        pytest.param([CHUNKED + b"3\r\nabcdef\r\n"], 400, id="wrong chunk"),
        pytest.param([CHUNKED + b"1;" + b"x" * 9_000], 400, id="endless chunk size"),
        pytest.param([CHUNKED + b"1;x\r\na\r\n" * 60_000], 400, id="more framing than body"),
        pytest.param([POST + b"Expect: a miracle\r\nContent-Length: 9\r\n\r\n"], 417, id="expectation"),
        pytest.param([b"GET / HTTP/1.1\r\nX: y\r\n\r\n"], 400, id="no host"),
    ],
)
def test_a_connection_that_will_close_says_so(patient_server, pieces, status):
    """Answers to requests that are not read to their end, without waiting for more of them."""
    begun = time.perf_counter()
    answer = answer_to(patient_server.port, *pieces)

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in answer
    assert time.perf_counter() - begun < SOON_S


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([POST + b"Content-Length: 0000000003\r\n\r\n", b"o", b"ne"], id="leading zeros"),
        pytest.param([CHUNKED + b"1\r\no", b"\r\n", b"00002;x=y\r", b"\nne\r\n0\r", b"\n\r\n"], id="chunks"),
        pytest.param([CHUNKED + b"3\r\none\r\n0\r\nX: y\r", b"\n\r", b"\n"], id="trailer"),
        pytest.param(
            [b"PO", *(bytes([byte]) for byte in POST[2:]), b"Content-Length: 3\r\n\r\none"], id="bytes"
        ),
    ],
)
def test_requests_in_pieces_are_answered(shared_server, pieces):
    """However they are cut, and a second one on the same connection after them."""
    with ExitStack() as stack:
        connection = connect(shared_server.port, stack)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for piece in pieces:
                connection.sendall(piece)
                # The kernel merges what is sent without a pause; no call tells that a packet has been read.
                time.sleep(0.001)
            answer = b""
            while not answer.endswith(b"one"):
                piece = connection.recv(65_536)
                assert piece, answer
                answer += piece


def test_who_asks_whether_to_go_on_is_told_so_once(shared_server):
    """Expect: 100-continue costs no thread and no time; an HTTP/1.0 client gets no answer it cannot know."""
    head = POST + b"Expect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
    with ExitStack() as stack:
        connection = connect(shared_server.port, stack)
        connection.sendall(head)
        first = connection.recv(65_536)
        connection.sendall(b"o")
        connection.sendall(b"ne")
        rest = b"".join(iter(lambda: connection.recv(65_536), b""))
    old = answer_to(shared_server.port, head.replace(b"/1.1", b"/1.0"), b"one")

    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert rest.startswith(b"HTTP/1.1 200 ")
    assert rest.endswith(b"one")
    assert old.startswith(b"HTTP/1.0 200 ")


@pytest.mark.slow
def test_half_a_request_is_answered_at_its_deadline(shared_server):
    """Five seconds after its first byte, whether it stopped in the head or in the body."""
    halves = [
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        POST + b"Content-Length: 9\r\n\r\nabc",
        HALF_REQUESTS["chunked"],
    ]
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(halves)) as pool:
        answers = list(pool.map(lambda half: answer_to(shared_server.port, half), halves))

    assert 5 <= time.perf_counter() - begun < 5 * 5
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 408 "] * len(halves)
    assert all(b"\r\nConnection: close\r\n" in answer for answer in answers)


def test_clients_that_hang_up_are_no_errors(shared_server):
    """Who goes while the answer is being sent leaves no traceback in the log."""
    for _ in range(5):
        with ExitStack() as stack:
            connection = connect(shared_server.port, stack, receive_bytes=1024)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(10)

    assert slowest_answer_s(shared_server) < SOON_S
    log = shared_server.log_path.read_text()
    assert "response.broken" not in log
    assert "Traceback" not in log


def test_lengthy_requests_leave_threads_to_the_others():
    """More of them than both workers have threads: the others are answered meanwhile, and they in the end."""
    with TinyServer() as server, ExitStack() as stack:
        slow = [connect(server.port, stack) for _ in range(200)]
        for client in slow:
            client.sendall(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        wait_until((server.folder / "slow-begun").exists)

        meanwhile = [server.get("/")[0] for _ in range(20)]
        are_waiting = not select.select(slow, [], [], 0)[0]
        (server.folder / "slow-may-end").touch()
        answers = [client.recv(65_536).partition(b"\r\n")[0] for client in slow]

    assert meanwhile == [200] * 20
    assert are_waiting
    assert answers == [b"HTTP/1.1 200 OK"] * 200
