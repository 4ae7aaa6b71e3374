"""The slot map of a cluster, and the connections to each server."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final, Literal, cast

from redis.cluster import ClusterNode, NodesManager
from redis.connection import BlockingConnectionPool, Connection
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as DriverConnectionError

from authsvc.cache.redis.connections import (
    Connections,
    Deadlines,
    Generations,
    Pool,
    RedisAddress,
    Wire,
    login_options,
    socket_options,
    stamped,
)
from authsvc.cache.redis.tls import TlsConnection

#: Upper bound of connections to one server.
_RANGE_BITS: Final = 40
#: The slot map is read at most this often, in seconds.
REFRESH_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAddress:
    """Some servers of the cluster, as (host, port); *redis* has the login to all of them."""

    nodes: tuple[tuple[str, int], ...]
    redis: RedisAddress = field(default_factory=lambda: RedisAddress(host="cluster"))


class ServerGenerations:
    """
    Stamps from a separate range for each server: a stamp shows which server its connection leads to.

    Several pools of connections to the same server must share one object.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_name: dict[str, Generations] = {}

    def __call__(self, name: str) -> Generations:
        """Return the stamps of the server called *name*."""
        with self._lock:
            if name not in self._by_name:
                self._by_name[name] = Generations(len(self._by_name) << _RANGE_BITS)
            return self._by_name[name]


class Topology:
    """
    The slot map, read when first needed and again after :meth:`doubt`; all methods raise the driver's errors.

    At most *size* connections to each server.  *generations* returns the stamps for the server with a name
    like host:port; without it, all servers share one count.  The map is read at most every :data:`REFRESH_S`
    seconds by *clock*, so that reads of the map do not make an outage worse.
    """

    def __init__(
        self,
        address: ClusterAddress,
        *,
        size: int,
        protocol: Literal[2, 3] = 3,
        client_name: str | None = None,
        deadlines: Deadlines | None = None,
        generations: Callable[[str], Generations] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = deadlines or Deadlines()
        together = Generations()
        self._generations = generations or (lambda _: together)
        self._client_name, self._limits = client_name, limits
        self._address = address
        self._options: dict[str, Any] = {
            **{key: value for key, value in login_options(address.redis).items() if key != "db"},
            **socket_options(limits, protocol),
            "max_connections": size,
            "timeout": limits.wait_s,
        }
        self._clock = clock
        self._reading = Lock()
        self._making = Lock()
        self._nodes: NodesManager | None = None
        self._is_doubted = False
        self._read_at_s = 0.0
        self._pools: dict[str, Connections] = {}

    def owner(self, key: bytes) -> ClusterNode:
        """Return the primary of *key*'s slot."""
        try:
            return self._map().get_node_from_slot(key_slot(key))
        except RedisClusterException as error:
            self.doubt()
            raise ClusterDownError("slot without a server") from error

    def primaries(self) -> list[ClusterNode]:
        """Return all primaries."""
        return cast("list[ClusterNode]", self._map().get_nodes_by_server_type("primary"))

    def any_primary(self) -> ClusterNode:
        """Return one."""
        primaries = self.primaries()
        if not primaries:
            raise ClusterDownError("no primary")
        return primaries[0]

    def redirected(self, refusal: AskError) -> ClusterNode:
        """Return the server that *refusal* redirects to; after MOVED, the map is updated."""
        nodes = self._map()
        if isinstance(refusal, MovedError):
            self.doubt()
            nodes.move_slot(refusal)
        known = nodes.get_node(host=refusal.host, port=refusal.port)
        return known or ClusterNode(refusal.host, refusal.port)  # type: ignore[no-untyped-call]

    def connections(self, node: ClusterNode) -> Connections:
        """Return the connections to *node*."""
        return self.connections_to(node.name)

    def connections_to(self, name: str) -> Connections:
        """Return the connections to the server called *name*, which has the form host:port."""
        with self._making:
            if name not in self._pools:
                self._pools[name] = Connections(self.pool_to(name))
            return self._pools[name]

    def pool_to(self, name: str) -> Pool:
        """Return a new pool of connections to that server."""
        host, _, port = name.rpartition(":")
        connection_class = stamped(
            TlsConnection if self._address.redis.tls else Connection,
            client_name=self._client_name,
            generations=self._generations(name),
            deadlines=self._limits,
        )
        options = {"host": host, "port": int(port), "connection_class": connection_class, **self._options}
        return cast("Pool", BlockingConnectionPool(**options))  # type: ignore[no-untyped-call]

    def known(self) -> list[Connections]:
        """Return the connections to all servers used so far."""
        with self._making:
            return list(self._pools.values())

    def doubt(self) -> None:
        """Have the map read again before its next use."""
        self._is_doubted = True

    def _map(self) -> NodesManager:
        nodes = self._nodes
        if nodes is None:
            return self._first_map()
        if self._is_doubted and self._clock() - self._read_at_s >= REFRESH_S:
            self._is_doubted, self._read_at_s = False, self._clock()
            try:
                nodes.initialize()
            except RedisClusterException as error:
                self.doubt()
                raise DriverConnectionError("no server of the cluster can be reached") from error
        return nodes

    def _first_map(self) -> NodesManager:
        with self._reading:
            if self._nodes is None:
                self._nodes = self._read()
                self._read_at_s = self._clock()
            return self._nodes

    def _read(self) -> NodesManager:
        # These connections only read the map: one per server, without stamps.
        options = {**self._options, "max_connections": 1}
        del options["timeout"], options["retry"]
        is_tls = self._address.redis.tls
        try:
            return NodesManager(
                [ClusterNode(*where) for where in self._address.nodes],  # type: ignore[no-untyped-call]
                from_url=True,
                connection_class=TlsConnection if is_tls else Connection,
                **options,
            )
        except RedisClusterException as error:
            raise DriverConnectionError("no server of the cluster can be reached") from error


class ClusterFleet:
    """The connections to all servers of a cluster, as one."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._lent: dict[int, Connections] = {}

    @property
    def generation(self) -> int:
        """The latest stamp handed out, by any server's connections."""
        return max((pool.generation for pool in self._topology.known()), default=0)

    def suspect(self) -> None:
        """Have all existing connections closed and remade before their next use."""
        for pool in self._topology.known():
            pool.suspect()

    def fill(self) -> int:
        """Open (or remake) connections to every primary; returns how many are open, 0 without a cluster."""
        with suppress(RedisError):  # the returned number shows it
            return sum(self._topology.connections(node).fill() for node in self._topology.primaries())
        return 0

    def close(self) -> None:
        """Close idle connections now, and those in use when they are released."""
        for pool in self._topology.known():
            pool.close()

    def acquire(self) -> Wire:
        """Take a connection to any primary."""
        pool = self._topology.connections(self._topology.any_primary())
        wire = pool.acquire()
        self._lent[id(wire)] = pool
        return wire

    def release(self, wire: Wire) -> None:
        """Return it to its pool."""
        self._lent.pop(id(wire)).release(wire)
