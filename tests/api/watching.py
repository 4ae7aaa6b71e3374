"""What an application asks of SQL and of Redis, and what it leaves in Redis."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import uuid4

from redis import Redis, RedisCluster
from sqlalchemy import Engine, event

from authsvc.cache.keys import spread_tags
from authsvc.domain.values.shards import CLUSTER_SHARDS, shard_of
from authsvc.store.statements import Statement
from tests.rig import operator_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from authsvc.store.postgres.connecting import DeadlineConnection
    from authsvc.store.statements import Answer
    from tests.api.driver import Api


TAGS = spread_tags(CLUSTER_SHARDS)


@contextmanager
def sql_statements() -> Iterator[list[str]]:
    """Collect every statement that is sent meanwhile, by any application of this process; its trail aside."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "audit_events" not in statement:
            sent.append(statement)

    execute = Statement.execute  # past SQLAlchemy's events

    def noting(statement: Statement, connection: DeadlineConnection, values: Mapping[str, Any]) -> Answer:
        if "audit_events" not in statement.text:
            sent.append(statement.text)
        return execute(statement, connection, values)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        with patch.object(Statement, "execute", noting):
            yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


class Shelf:
    """
    The keys of one application in Redis, by their names without prefix and version.

    On a cluster a name has no hash tag either, and may be that of a key in each shard.
    """

    def __init__(self, api: Api) -> None:
        self._root = f"{api.env['CACHE_KEY_PREFIX']}:v1:"
        self._env = api.env
        self.redis: Any = operator_of(api.env)
        self._is_cluster = isinstance(self.redis, RedisCluster)

    def key(self, name: str) -> str:
        """The whole key of *name*, if it is about a user or has no hash tag."""
        space, _, owner = name.partition(":")
        if not self._is_cluster or space != "user":
            return self._root + name
        return f"{self._root}{{{TAGS[shard_of(owner, CLUSTER_SHARDS)]}}}:{name}"

    def keys(self, pattern: str = "*") -> list[str]:
        """The whole keys that are there, and whose names match *pattern*."""
        patterns = [self._root + pattern, *([f"{self._root}{{*}}:{pattern}"] if self._is_cluster else [])]
        return sorted({key for one in patterns for key in self.redis.scan_iter(match=one, count=1000)})

    def names(self, pattern: str = "*") -> set[str]:
        """The keys whose names match *pattern*."""
        return set(map(self._name, self.keys(pattern)))

    def get(self, name: str) -> str | None:
        """The text under *name*."""
        text: str | None = next((self.redis.get(key) for key in self.keys(name)), None)
        return text

    def put(self, name: str, value: str) -> None:
        """Forge what lies under *name*; how long it lives stays as it is."""
        (key,) = self.keys(name)
        self.redis.set(key, value, keepttl=True)

    def drop(self, pattern: str) -> int:
        """Lose the keys whose names match *pattern*; how many there were."""
        keys = self.keys(pattern)
        return sum(self.redis.delete(key) for key in keys)

    def ttl_s(self, name: str) -> float:
        """The seconds that *name* has left, the least of several; negative where one has no end."""
        left_s: float = min(self.redis.pttl(key) for key in self.keys(name)) / 1000
        return left_s

    def everything(self, pattern: str = "*") -> dict[str, str]:
        """What lies under each key, of whatever type."""
        return {key.removeprefix(self._root): str(self._value(key)) for key in self.keys(pattern)}

    @contextmanager
    def commands(self) -> Iterator[list[str]]:
        """Collect the commands about these keys; there when the block has ended, scripts as one each."""
        heard: list[str] = []
        with ExitStack() as stack:
            servers = [stack.enter_context(server) for server in self._servers()]
            monitors = [stack.enter_context(server.monitor()) for server in servers]
            yield heard
            for server, monitor in zip(servers, monitors, strict=True):
                end = uuid4().hex
                server.echo(end)
                while end not in (command := monitor.next_command())["command"]:
                    if self._root in command["command"] and command["client_type"] != "lua":
                        heard.append(command["command"])

    def close(self) -> None:
        """Let the connections go."""
        self.redis.close()

    def _name(self, key: str) -> str:
        rest = key.removeprefix(self._root)
        return rest.partition("}:")[2] if self._is_cluster and rest.startswith("{") else rest

    def _servers(self) -> list[Redis]:
        """A client of each."""
        if not self._is_cluster:
            return [operator_of(self._env)]
        return [Redis(host=node.host, port=node.port) for node in self.redis.get_primaries()]

    def _value(self, key: str) -> object:
        readers = {
            "string": self.redis.get,
            "hash": self.redis.hgetall,
            "zset": lambda name: self.redis.zrange(name, 0, -1, withscores=True),
            "set": self.redis.smembers,
            "list": lambda name: self.redis.lrange(name, 0, -1),
        }
        read = readers.get(self.redis.type(key), lambda _: "")  # a key may end between two questions
        return read(key)
