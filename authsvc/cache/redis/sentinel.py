"""Connections to the primary that the Sentinels name at the time of connecting."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection

from authsvc.cache.errors import SentinelsFailed
from authsvc.cache.redis.connections import (
    Deadlines,
    Generations,
    Pool,
    RedisAddress,
    login_options,
    socket_options,
    stamped,
)
from authsvc.cache.redis.tls import SentinelTlsConnection, TlsConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelAddress:
    """
    The Sentinels, as (host, port), and the name of their service.

    *redis* has the login to the servers of the service; its host and port are not used. The Sentinels have
    their own password, and use TLS if the servers do.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    redis: RedisAddress = field(default_factory=lambda: RedisAddress(host="sentinel"))
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def sentinel_pool(
    address: SentinelAddress,
    *,
    size: int,
    protocol: Literal[2, 3] = 3,
    client_name: str | None = None,
    deadlines: Deadlines | None = None,
    generations: Generations | None = None,
) -> Pool:
    """
    Return a pool like :func:`~authsvc.cache.redis.connections.bounded_pool`, to the primary of the moment.

    A failover breaks the connections; later ones lead to the new primary and have higher stamps, so that a
    comparison of the old primary with SQL does not cover them.
    """
    limits = deadlines or Deadlines()
    connection_class = SentinelTlsConnection if address.redis.tls else SentinelManagedConnection
    pool = BlockingConnectionPool(  # type: ignore[no-untyped-call]
        max_connections=size,
        timeout=limits.wait_s,
        connection_class=stamped(
            connection_class, client_name=client_name, generations=generations, deadlines=limits
        ),
        connection_pool=_Primary(address, limits),
        **login_options(address.redis),
        **socket_options(limits, protocol),
    )
    return cast("Pool", pool)


class _Primary:
    """
    The part of a pool that redis-py's Sentinel-managed connections use.

    redis-py's SentinelConnectionPool does not wait for a free connection, and has no bound by default.
    """

    is_master = True
    check_connection = False

    def __init__(self, address: SentinelAddress, limits: Deadlines) -> None:
        self.service_name = address.service
        login = login_options(
            replace(address.redis, username=address.username, password=address.password, db=0)
        )
        tls: dict[str, Any] = {"ssl": True} if address.redis.tls else {}
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(address.sentinels),
            sentinel_kwargs={
                **login,
                **tls,
                "socket_connect_timeout": limits.connect_s,
                "socket_timeout": limits.read_s,
                "retry": Retry(NoBackoff(), 0),
                "max_connections": 4,
            },
        )
        if address.redis.tls:
            for sentinel in self._sentinel.sentinels:
                sentinel.connection_pool.connection_class = TlsConnection

    def get_master_address(self) -> tuple[str, int]:
        """Ask the Sentinels in turn, first the one that answered last time; raises SentinelsFailed."""
        sentinels = self._sentinel.sentinels
        failure: RedisError | None = None
        for number, sentinel in enumerate(sentinels):
            try:
                known = cast("dict[str, dict[str, Any]]", sentinel.sentinel_masters())
            except RedisError as error:
                failure = failure or error
                continue
            state = known.get(self.service_name)
            if state and self._sentinel.check_master_state(state, self.service_name):  # type: ignore[no-untyped-call]
                sentinels[0], sentinels[number] = sentinel, sentinels[0]
                return cast("str", state["ip"]), cast("int", state["port"])
        raise SentinelsFailed from failure
