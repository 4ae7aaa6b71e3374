"""The client stores of the unit tests: in memory, note what they are asked, and can be out of reach."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from authsvc.domain.clients import (
    MOST_SECRETS,
    Client,
    ClientId,
    Secret,
    SecretDigest,
    SecretId,
    StoredClient,
)
from authsvc.domain.errors import NotFound, StoreUnavailable, TooMany
from authsvc.domain.revocations import Committed, Revocation
from authsvc.domain.values.identifiers import SessionId, UserId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date

#: The memory knows no time of its own.
AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass
class MemoryClientStore:
    """Clients in a dictionary."""

    rows: dict[ClientId, StoredClient] = field(default_factory=dict)
    asked: list[ClientId] = field(default_factory=list)
    is_away: bool = False
    seq: int = 0

    def find(self, client_id: ClientId) -> StoredClient | None:
        """The client by its id."""
        self.asked.append(client_id)
        self.require_here()
        return self.rows.get(client_id)

    def every(self) -> Sequence[Client]:
        """All of them, the oldest first."""
        self.require_here()
        return sorted(
            (stored.client for stored in self.rows.values()),
            key=lambda client: (client.created_at, client.id),
        )

    def add(self, client: Client, digest: SecretDigest) -> None:
        """Keep a new client."""
        self.require_here()
        self.rows[client.id] = StoredClient(
            client=client, digests={secret.id: digest for secret in client.secrets}
        )

    def change(self, client_id: ClientId, rule: Callable[[Client], Client]) -> Committed[Client]:
        """Apply *rule*."""
        stored = self.row(client_id)
        wanted = rule(stored.client)
        self.rows[client_id] = replace(stored, client=wanted)
        if wanted == stored.client:
            return Committed(wanted, (self.entry(client_id, epoch=wanted.epoch, is_new=False),))
        is_cut = wanted.epoch != stored.client.epoch
        return Committed(wanted, (self.entry(client_id, epoch=wanted.epoch),) if is_cut else ())

    def remove(self, client_id: ClientId) -> Committed[Client]:
        """Forget it."""
        client = self.row(client_id).client
        del self.rows[client_id]
        ends = [self.entry(client_id, secret_id=secret.id) for secret in client.secrets]
        return Committed(client, (*ends, self.entry(client_id, epoch=client.epoch + 1)))

    def row(self, client_id: ClientId) -> StoredClient:
        """The client; raises NotFound."""
        self.require_here()
        if client_id not in self.rows:
            raise NotFound
        return self.rows[client_id]

    def entry(
        self,
        client_id: ClientId,
        *,
        secret_id: SecretId | None = None,
        epoch: int | None = None,
        is_new: bool = True,
    ) -> Revocation:
        """An entry of the log."""
        self.seq += is_new
        return Revocation(
            seq=self.seq if is_new else 0,
            at=AT,
            reason="memory",
            expires_at=AT + timedelta(hours=1),
            user_id=UserId(client_id),
            session_id=SessionId(secret_id) if secret_id else None,
            epoch=epoch,
        )

    def require_here(self) -> None:
        """Raise StoreUnavailable while it is away."""
        if self.is_away:
            raise StoreUnavailable("sql")


@dataclass
class MemorySecretStore:
    """The secrets of the clients in a MemoryClientStore; *noted* are the writes of last uses."""

    clients: MemoryClientStore
    noted: list[tuple[SecretId, date]] = field(default_factory=list)
    #: Like a database that takes no writes.
    is_read_only: bool = False

    def add(self, client_id: ClientId, secret: Secret, digest: SecretDigest) -> None:
        """Keep a further secret."""
        stored = self.clients.row(client_id)
        if len(stored.client.secrets) >= MOST_SECRETS:
            raise TooMany
        client = replace(stored.client, secrets=(*stored.client.secrets, secret))
        self.clients.rows[client_id] = StoredClient(
            client=client, digests={**stored.digests, secret.id: digest}
        )

    def drop(self, client_id: ClientId, secret_id: SecretId) -> Committed[SecretId]:
        """Forget it."""
        stored = self.clients.row(client_id)
        if stored.client.secret(secret_id) is None:
            raise NotFound
        kept = tuple(secret for secret in stored.client.secrets if secret.id != secret_id)
        client = replace(stored.client, secrets=kept)
        digests = {one: digest for one, digest in stored.digests.items() if one != secret_id}
        self.clients.rows[client_id] = StoredClient(client=client, digests=digests)
        return Committed(secret_id, (self.clients.entry(client_id, secret_id=secret_id),))

    def note_use(self, client_id: ClientId, secret_id: SecretId, on: date) -> None:
        """Store the day of the last use."""
        stored = self.clients.rows.get(client_id)
        self.noted.append((secret_id, on))
        if self.is_read_only:
            raise StoreUnavailable("sql: read only")
        if stored is None:
            return

        def used(secret: Secret) -> Secret:
            is_later = secret.last_used_on is None or secret.last_used_on < on
            return replace(secret, last_used_on=on) if secret.id == secret_id and is_later else secret

        client = replace(stored.client, secrets=tuple(map(used, stored.client.secrets)))
        self.clients.rows[client_id] = replace(stored, client=client)
