"""Servers that tests start: real ones, and a proxy that breaks the way to them."""

from tests.servers.stores import PostgresServer, RedisServer, Remote, drop_database

__all__ = ["PostgresServer", "RedisServer", "Remote", "drop_database"]
