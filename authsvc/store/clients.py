"""Registered clients in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import RowMapping, delete, insert, select

from authsvc.domain.clients import Client, ClientId, Right, SecretDigest, StoredClient
from authsvc.store.sql import Database
from authsvc.store.tables import clients


class SqlClientStore:
    """Clients as rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, client_id: ClientId) -> StoredClient | None:
        """The client by its id: one query."""
        statement = select(clients).where(clients.c.id == client_id)
        with self._database.read() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return StoredClient(client=_to_client(row), digest=SecretDigest(row["secret_hash"])) if row else None

    def add(self, client: Client, digest: SecretDigest) -> None:
        """Keep a new client."""
        row = {
            "id": client.id,
            "name": client.name,
            "secret_hash": digest,
            "may": " ".join(client.may),
            "created_at": client.created_at,
        }
        with self._database.transaction() as connection:
            connection.execute(insert(clients).values(row))

    def every(self) -> Sequence[Client]:
        """All of them, the oldest first."""
        statement = select(clients).order_by(clients.c.created_at, clients.c.id)
        with self._database.read() as connection:
            return [_to_client(row) for row in connection.execute(statement).mappings()]

    def remove(self, client_id: ClientId) -> bool:
        """Forget it; False where there is none."""
        with self._database.transaction() as connection:
            return connection.execute(delete(clients).where(clients.c.id == client_id)).rowcount == 1


def _to_client(row: RowMapping) -> Client:
    # A right that only a newer version knows is none here.
    named = row["may"].split()
    may = tuple(right for right in Right if right in named)
    return Client(id=row["id"], name=row["name"], may=may, created_at=row["created_at"])
