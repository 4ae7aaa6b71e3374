"""What an application asks of SQL and of Redis, and what it leaves in Redis."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import uuid4

from redis import Redis
from sqlalchemy import Engine, event

from authsvc.store.statements import Statement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from authsvc.store.postgres.connecting import DeadlineConnection
    from authsvc.store.statements import Answer
    from tests.api.driver import Api


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
    """The keys of one application in Redis, by their names without prefix and version."""

    def __init__(self, api: Api) -> None:
        self._root = f"{api.env['CACHE_KEY_PREFIX']}:v1:"
        self._url = api.env["REDIS_URL"]
        self.redis: Any = Redis.from_url(self._url, decode_responses=True)

    def key(self, name: str) -> str:
        """The whole key of *name*."""
        return self._root + name

    def names(self, pattern: str = "*") -> set[str]:
        """The keys whose names match *pattern*."""
        found = self.redis.scan_iter(match=self._root + pattern, count=1000)
        return {key.removeprefix(self._root) for key in found}

    def get(self, name: str) -> str | None:
        """The text under *name*."""
        text: str | None = self.redis.get(self._root + name)
        return text

    def put(self, name: str, value: str) -> None:
        """Forge what lies under *name*; how long it lives stays as it is."""
        self.redis.set(self._root + name, value, keepttl=True)

    def drop(self, name: str) -> None:
        """Lose what lies under *name*."""
        self.redis.delete(self._root + name)

    def ttl_s(self, name: str) -> float:
        """The seconds that *name* has left; negative where it has no end, or is not there."""
        left_s: float = self.redis.pttl(self._root + name) / 1000
        return left_s

    def everything(self, pattern: str = "*") -> dict[str, str]:
        """What lies under each key, of whatever type."""
        names = sorted(self.names(pattern))
        return {name: str(self._value(self._root + name)) for name in names}

    @contextmanager
    def commands(self) -> Iterator[list[str]]:
        """Collect the commands about these keys; there when the block has ended, scripts as one each."""
        heard: list[str] = []
        with Redis.from_url(self._url) as listening, listening.monitor() as monitor:
            yield heard
            end = uuid4().hex
            self.redis.echo(end)
            while end not in (command := monitor.next_command())["command"]:
                if self._root in command["command"] and command["client_type"] != "lua":
                    heard.append(command["command"])

    def close(self) -> None:
        """Let the connections go."""
        self.redis.close()

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
