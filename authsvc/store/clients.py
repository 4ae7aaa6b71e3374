"""OAuth clients: services that may introspect and revoke tokens."""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import insert

from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import new_id
from authsvc.store.sql import Database
from authsvc.store.tables import clients

SECRET_BYTES = 32


class SqlClientStore:
    """Clients as rows; a secret is kept as its SHA-256: with 256 random bits nothing slower is needed."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, name: str) -> tuple[str, str]:
        """A new client: its id and its secret, which is shown this once."""
        client_id, secret = new_id(), secrets.token_urlsafe(SECRET_BYTES)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        row = {"id": client_id, "name": name, "secret_hash": digest, "created_at": self._clock()}
        with self._database.transaction() as connection:
            connection.execute(insert(clients).values(row))
        return client_id, secret
