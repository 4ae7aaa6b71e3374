"""Connections to Redis as the settings name it: one server, Sentinels, a cluster, or in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypedDict, cast

from authsvc.cache.breaker import CircuitBreaker
from authsvc.cache.redis.cluster import ClusterServers
from authsvc.cache.redis.connections import Deadlines, Generations, Pool, RedisAddress, bounded_pool, stamped
from authsvc.cache.redis.link import Link
from authsvc.cache.redis.sentinel import SentinelAddress, sentinel_pool
from authsvc.cache.redis.topology import ClusterAddress, ServerGenerations, Topology
from authsvc.settings import RedisSettings


def redis_links(
    redis: RedisSettings,
    deadlines: Deadlines,
    *,
    size: int,
    breaker_of: Callable[[str], CircuitBreaker] | None = None,
) -> tuple[Pool | Link, Pool | Link]:
    """
    Connections of two kinds, *size* and a single one to each server, which are counted together.

    The servers of a cluster have circuit breakers of their own, made by *breaker_of*.
    """
    generations = Generations()
    if redis.is_in_memory:
        return _embedded_pools(generations, size)
    protocol = cast("Literal[2, 3]", redis.protocol)
    if redis.is_cluster:
        counted = ServerGenerations()
        every, single = (_topology(redis, protocol, deadlines, counted, size=size) for size in (size, 1))
        return ClusterServers(every, breaker_of), ClusterServers(single)

    def pool(size: int) -> Pool:
        common = _Common(
            size=size, protocol=protocol, client_name="authsvc", deadlines=deadlines, generations=generations
        )
        if redis.sentinels:
            return sentinel_pool(_sentinels(redis), **common)
        return bounded_pool(_address(redis), **common)

    return pool(size), pool(1)


def pool_to(link: Pool | Link, name: str) -> Pool:
    """A pool of connections to the server called *name*, counted with those of *link*."""
    return link.pool_to(name) if isinstance(link, ClusterServers) else cast("Pool", link)


def _topology(
    redis: RedisSettings,
    protocol: Literal[2, 3],
    deadlines: Deadlines,
    generations: ServerGenerations,
    *,
    size: int,
) -> Topology:
    nodes = tuple((address.host, address.port) for address in redis.cluster_nodes)
    address = ClusterAddress(nodes=nodes, redis=_address(redis))
    return Topology(
        address,
        size=size,
        protocol=protocol,
        client_name="authsvc",
        deadlines=deadlines,
        generations=generations,
    )


class _Common(TypedDict):
    """Options of both kinds of pools."""

    size: int
    protocol: Literal[2, 3]
    client_name: str
    deadlines: Deadlines
    generations: Generations


def _sentinels(redis: RedisSettings) -> SentinelAddress:
    return SentinelAddress(
        sentinels=tuple((address.host, address.port) for address in redis.sentinels),
        service=redis.sentinel_service or "",
        redis=_address(redis),
        username=redis.sentinel_username,
        password=redis.sentinel_password.reveal() if redis.sentinel_password else None,
    )


def _address(redis: RedisSettings) -> RedisAddress:
    authorities = str(redis.ca_file) if redis.ca_file else None
    if redis.url:
        return replace(RedisAddress.from_url(redis.url.reveal()), tls_ca=authorities)
    return RedisAddress(
        host=redis.host or "",
        port=redis.port,
        db=redis.db,
        username=redis.username,
        password=redis.password.reveal() if redis.password else None,
        tls=redis.is_tls,
        tls_ca=authorities,
    )


def _embedded_pools(generations: Generations, size: int) -> tuple[Pool, Pool]:
    """Redis in this process, for development; no other process shares it."""
    import fakeredis
    from redis import ConnectionPool

    connection_class = stamped(fakeredis.FakeRedisConnection, generations=generations)
    server = fakeredis.FakeServer()

    def pool(size: int) -> Pool:
        made = ConnectionPool(connection_class=connection_class, server=server, max_connections=size)
        return cast("Pool", made)

    return pool(size), pool(1)
