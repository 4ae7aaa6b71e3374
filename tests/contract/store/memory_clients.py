"""The client store of the unit tests: in memory, notes what it is asked, and can be out of reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from authsvc.domain.clients import Client, ClientId, SecretDigest, StoredClient
from authsvc.domain.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class MemoryClientStore:
    """Clients in a dictionary."""

    rows: dict[ClientId, StoredClient] = field(default_factory=dict)
    asked: list[ClientId] = field(default_factory=list)
    is_away: bool = False

    def find(self, client_id: ClientId) -> StoredClient | None:
        """The client by its id."""
        self.asked.append(client_id)
        self._require_here()
        return self.rows.get(client_id)

    def add(self, client: Client, digest: SecretDigest) -> None:
        """Keep a new client."""
        self._require_here()
        self.rows[client.id] = StoredClient(client=client, digest=digest)

    def every(self) -> Sequence[Client]:
        """All of them, the oldest first."""
        self._require_here()
        return sorted(
            (stored.client for stored in self.rows.values()),
            key=lambda client: (client.created_at, client.id),
        )

    def remove(self, client_id: ClientId) -> bool:
        """Forget it; False where there is none."""
        self._require_here()
        return self.rows.pop(client_id, None) is not None

    def _require_here(self) -> None:
        if self.is_away:
            raise StoreUnavailable("sql")
