"""
How what Redis holds is divided: everything about one owner (a user, an address) is in one shard.

One Redis is one shard.  On a cluster there are many, so that its servers share them evenly.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Shards of a cluster.  Keys are named by it: another number would not find what is there.
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
        """The one of *owner*'s shard."""
        return self.each[shard_of(owner, len(self.each))]
