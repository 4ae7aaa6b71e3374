"""
Shards of the data in Redis: all data about one owner (a user, an address) is in one shard.

One Redis is one shard.  A cluster has many, which spread evenly over its servers.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Number of shards on a cluster.  It is part of the key names: with another number, existing keys would not
#: be found.
CLUSTER_SHARDS: Final = 64
#: The shard of the pages of the admin list, which depend on every user.
PAGES: Final = 0


def shard_of(owner: str, count: int) -> int:
    """The shard, 0 to *count* - 1, of everything about *owner*."""
    return crc_hqx(owner.encode(), 0) * count >> 16


@dataclass(frozen=True, slots=True)
class Sharded(Generic[T]):
    """One T for each shard."""

    each: tuple[T, ...]

    def about(self, owner: str) -> T:
        """The T for the shard of *owner*."""
        return self.each[shard_of(owner, len(self.each))]
