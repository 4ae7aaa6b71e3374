"""A cluster of three primaries, a primary with a replica under three Sentinels, and TLS in front."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from redis import Redis

from tests.processes import free_port, wait_until
from tests.servers import RedisServer
from tests.servers.binaries import tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.certificates import Certificate

SLOTS = 16384
SERVICE = "library"


class ClusterServer(RedisServer):
    """One node; the port of the cluster's bus lies where the tests' other ports cannot be."""

    name = "cluster"

    def __init__(self, *options: str, timeout_ms: int = 5000) -> None:
        bus = free_port()
        super().__init__(
            "--cluster-enabled", "yes", "--cluster-port", str(bus),
            "--cluster-node-timeout", str(timeout_ms), *options,
        )  # fmt: skip
        self.bus = bus

    def restore(self, dump: Path) -> None:
        """Bring it up with what *dump* holds, as the node that it was."""
        itself = (self.data / "nodes.conf").read_bytes()
        self.kill()
        for file in self.data.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        (self.data / "nodes.conf").write_bytes(itself)
        shutil.copy2(dump, self._rdb)
        self.start()
        self._forget_rdb()


class TlsClusterServer(ClusterServer):
    """One node that speaks TLS to clients and other nodes; the plain port is there for the tests alone."""

    def __init__(self, *options: str, certificate: Certificate, timeout_ms: int = 5000) -> None:
        self.tls_port = free_port()
        super().__init__(
            "--tls-port", str(self.tls_port), "--tls-cluster", "yes", "--tls-auth-clients", "no",
            "--tls-cert-file", str(certificate.public), "--tls-key-file", str(certificate.private),
            "--tls-ca-cert-file", str(certificate.public), *options,
            timeout_ms=timeout_ms,
        )  # fmt: skip

    def _command(self) -> list[str]:
        # The server of the wheel is built without TLS.
        return [str(tool("redis-server", "redis-server")), *super()._command()[1:]]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Primaries that share the slots, and their replicas in the same order."""

    nodes: tuple[ClusterServer, ...]
    replicas: tuple[ClusterServer, ...] = ()

    @property
    def all(self) -> tuple[ClusterServer, ...]:
        """Primaries and replicas."""
        return (*self.nodes, *self.replicas)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each primary."""
        return tuple((node.host, node.port) for node in self.nodes)

    @property
    def url(self) -> str:
        """All primaries, as a setting names them."""
        return ",".join(f"{host}:{port}" for host, port in self.addresses)

    def kill(self) -> None:
        """End all nodes at once, with what they hold."""
        for node in self.all:
            node.kill()

    def start(self) -> None:
        """Bring all nodes up again, empty, and wait until they serve."""
        for node in self.all:
            node.start()
        for index in range(len(self.all)):
            wait_until(partial(_is_whole, self, index, len(self.all)), what="cluster state ok")

    def save_dump(self) -> list[Path]:
        """Write what each primary holds to a file."""
        return [node.save_dump() for node in self.nodes]

    def restore(self, dumps: list[Path]) -> None:
        """Bring each primary up with what it held then."""
        for node, dump in zip(self.nodes, dumps, strict=True):
            node.restore(dump)
        for index in range(len(self.all)):
            wait_until(partial(_is_whole, self, index, len(self.all)), what="cluster state ok")

    def ask(self, index: int, *command: Any) -> Any:
        """Send one command to one node."""
        with Redis.from_url(self.all[index].url) as client:
            return client.execute_command(*command)

    def move_slot(self, slot: int, origin: int, target: int) -> None:
        """Move *slot* with its keys to another node; nodes by index."""
        ids = [self.ask(index, "CLUSTER", "MYID").decode() for index in (origin, target)]
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        self.ask(origin, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        while self.migrate_keys(slot, origin, target):
            pass
        for index in (target, origin):
            self.ask(index, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    def migrate_keys(self, slot: int, origin: int, target: int) -> int:
        """Carry keys of a slot that is being moved; how many there were, at most a hundred."""
        node = self.nodes[target]
        keys = self.ask(origin, "CLUSTER", "GETKEYSINSLOT", slot, 100)
        if keys:
            self.ask(origin, "MIGRATE", node.host, node.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)


@contextmanager
def cluster(
    *options: str,
    has_replicas: bool = False,
    timeout_ms: int = 5000,
    make: Callable[..., ClusterServer] = ClusterServer,
) -> Iterator[Cluster]:
    """Start a cluster of three and wait until all of it answers; with replicas it has six nodes."""
    with ExitStack() as stack:
        count = 6 if has_replicas else 3
        started = tuple(stack.enter_context(make(*options, timeout_ms=timeout_ms)) for _ in range(count))
        running = Cluster(started[:3], started[3:])
        bounds = [SLOTS * index // 3 for index in range(4)]
        for index, node in enumerate(started):
            running.ask(index, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            if index < 3:
                running.ask(index, "CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
            running.ask(0, "CLUSTER", "MEET", node.host, node.port, node.bus)
        for index in range(count):
            wait_until(partial(_is_whole, running, index, count), what="cluster state ok")
        for index in range(3, count):
            running.ask(index, "CLUSTER", "REPLICATE", running.ask(index - 3, "CLUSTER", "MYID"))
            wait_until(partial(_is_following, running, index), what="replica")
        yield running


def _is_whole(running: Cluster, index: int, count: int) -> bool:
    info = running.ask(index, "CLUSTER", "INFO")
    return b"cluster_state:ok" in info and f"cluster_known_nodes:{count}".encode() in info


def _is_following(running: Cluster, index: int) -> bool:
    return bool(running.ask(index, "INFO", "replication").get("master_link_status") == "up")


class SentinelServer(RedisServer):
    """One Sentinel of *primary*; it is patient for two seconds: a busy machine may keep it waiting."""

    name = "sentinel"

    def __init__(self, primary: RedisServer) -> None:
        super().__init__()
        self.config = self.folder / "sentinel.conf"
        watched = [
            f"sentinel monitor {SERVICE} {primary.host} {primary.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} 2000",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        self.config.write_text("\n".join([f"port {self.port}", f"bind {self.host}", *watched, ""]))

    def _command(self) -> list[str]:
        return [super()._command()[0], str(self.config), "--sentinel"]


@dataclass(frozen=True, slots=True)
class Watched:
    """A primary, its replica, and those who watch them."""

    primary: RedisServer
    replica: RedisServer
    sentinels: tuple[SentinelServer, ...]

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each Sentinel."""
        return tuple((sentinel.host, sentinel.port) for sentinel in self.sentinels)


def cut_off(replica: RedisServer, primary: RedisServer) -> None:
    """
    Stop *replica*, and break its link: it misses what *primary* is told from now on.

    Without the break it would find all of that in its socket when it goes on.
    """
    replica.pause()
    with Redis.from_url(primary.url) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")


@contextmanager
def watched() -> Iterator[Watched]:
    """Start a primary, a replica and three Sentinels, and wait until they know each other."""
    with ExitStack() as stack:
        primary = stack.enter_context(RedisServer("--repl-diskless-sync-delay", "0"))
        replica = stack.enter_context(RedisServer("--replicaof", f"{primary.host} {primary.port}"))
        sentinels = tuple(stack.enter_context(SentinelServer(primary)) for _ in range(3))
        for sentinel in sentinels:
            wait_until(partial(_knows_all, sentinel), what="Sentinels")
        yield Watched(primary, replica, sentinels)


def _knows_all(sentinel: SentinelServer) -> bool:
    with Redis.from_url(sentinel.url) as client:
        state = client.sentinel_master(SERVICE)
    return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2)


class TlsFront:
    """Ends TLS in front of a server that cannot: the binary that the tests bring along is built without."""

    def __init__(self, target: RedisServer, certificate: Path, key: Path) -> None:
        self.target = target
        self.port = free_port()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server((target.host, self.port))
        self._sockets: list[socket.socket] = []
        #: How many clients trusted the certificate.
        self.encrypted = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # A blocked accept() keeps a closed listener alive; shutting it down first wakes it.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            client = self._context.wrap_socket(plain, server_side=True)
        except OSError:  # a client that does not trust us hangs up
            plain.close()
            return
        self.encrypted += 1
        server = socket.create_connection((self.target.host, self.target.port))
        self._sockets += [client, server]
        threading.Thread(target=_pump, args=(server, client), daemon=True).start()
        _pump(client, server)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            sink.sendall(chunk)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
