"""A whole service on a cluster: the same people, who look into the shard of whatever they ask for."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from authsvc.cache.keys import spread_tags
from authsvc.domain.values.shards import CLUSTER_SHARDS, shard_of
from tests.fault.world import PEOPLE, SETTINGS, World, sign_up, start_both
from tests.rig import Service, development, migrate
from tests.servers import PostgresServer
from tests.servers.clusters import SLOTS, Cluster, cluster
from tests.servers.proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

ROOT_KEY = "authsvc:v1:"
TAGS = spread_tags(CLUSTER_SHARDS)
#: Whoever has a slot serves it, whatever becomes of the others.
OPTIONS = ("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0")


class ClusterAdmin:
    """Reads keys that are named as on one server, in whatever shard they are; a context manager."""

    def __init__(self, nodes: Cluster) -> None:
        self._clients = [
            Redis.from_url(node.url, decode_responses=True, socket_timeout=10) for node in nodes.all
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()

    def get(self, key: str) -> str | None:
        """The value, from the primary that has it."""
        value: str | None = self.first(key, lambda client, name: client.get(name))
        return value

    def mget(self, keys: Sequence[str]) -> list[str | None]:
        """One after the other."""
        return [self.get(key) for key in keys]

    def zcard(self, key: str) -> int:
        """The size of a sorted set."""
        return self.first(key, lambda client, name: client.zcard(name)) or 0

    def ping(self) -> None:
        """Raise unless every node answers."""
        for client in self._clients:
            client.ping()

    def first(self, key: str, read: Callable[[Redis, Any], Any]) -> Any:
        """What *read* finds of the key with any tag, or without one."""
        rest = key.removeprefix(ROOT_KEY)
        for client in self.primaries():
            for name in [*client.keys(f"{ROOT_KEY}{{*}}:{rest}"), *client.keys(key)]:
                return read(client, name)
        return None

    def primaries(self) -> Iterator[Redis]:
        """The nodes that are primaries now, as far as they answer."""
        for client in self._clients:
            try:
                if client.info("replication")["role"] == "master":
                    yield client
            except RedisError:  # killed
                continue

    def markers(self) -> list[int]:
        """The numbers that the markers show."""
        found: list[int] = []
        for client in self.primaries():
            for name in client.keys(f"{ROOT_KEY}{{*}}:auth:revocations:seq"):
                value = client.get(name) or ""
                found += [int(value)] if value.isdigit() else []
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterWorld(World):
    """A world whose Redis is a cluster."""

    nodes: Cluster

    def redis_admin(self, *, timeout_s: float | None = 10) -> Any:
        """Somebody who finds keys in any shard."""
        return ClusterAdmin(self.nodes)

    def _replayed(self) -> int:
        """The lowest number of all markers; 0 until all are there."""
        with ClusterAdmin(self.nodes) as admin:
            markers = admin.markers()
        return min(markers) if len(markers) == CLUSTER_SHARDS else 0

    def home_of(self, user_id: str) -> int:
        """Which of the three primaries had the shard of *user_id* at the start."""
        slot = key_slot(TAGS[shard_of(user_id, CLUSTER_SHARDS)].encode())
        return next(index for index in range(3) if slot < SLOTS * (index + 1) // 3)


@contextmanager
def open_cluster_world(folder: Path, *, has_replicas: bool = False) -> Iterator[ClusterWorld]:
    """A new one, with everybody registered."""
    with ExitStack() as stack:
        nodes = stack.enter_context(cluster(*OPTIONS, has_replicas=has_replicas))
        postgres = stack.enter_context(PostgresServer(fsync=True))
        env = development(postgres.create_database(), nodes.url, folder, **SETTINGS)
        migrate(env)
        ahead, beside = start_both(stack, Service(env, folder), Service(env, folder))
        for name in (*PEOPLE, "visitor", "forgotten"):
            sign_up(ahead, f"{name}@example.com")
        yield ClusterWorld(
            redis=nodes.nodes[0],
            postgres=postgres,
            redis_proxy=stack.enter_context(TcpProxy(nodes.nodes[0].url)),
            sql_proxy=stack.enter_context(TcpProxy(postgres.url)),
            ahead=ahead,
            beside=beside,
            service=ahead,
            forgotten=[],
            nodes=nodes,
        )
