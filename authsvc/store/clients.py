"""Registered clients and their secrets in SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, exists, func, insert, or_, select, update

from authsvc.domain.clients import (
    MOST_SECRETS,
    Client,
    ClientId,
    Right,
    Secret,
    SecretDigest,
    SecretId,
    StoredClient,
)
from authsvc.domain.errors import NotFound, TooMany
from authsvc.domain.revocations import Committed
from authsvc.domain.tokens.access import MachineToken
from authsvc.domain.tokens.machines import MachineStanding
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.sql import Database
from authsvc.store.tables import client_secrets, clients, revocations

_WITH_SECRETS = (
    select(clients, client_secrets)
    .outerjoin_from(clients, client_secrets, client_secrets.c.client_id == clients.c.id)
    .order_by(clients.c.created_at, clients.c.id, client_secrets.c.created_at, client_secrets.c.id)
)


class SqlClientStore:
    """Clients as rows."""

    def __init__(self, database: Database, log: SqlRevocationLog) -> None:
        self._database = database
        self._log = log

    def find(self, client_id: ClientId) -> StoredClient | None:
        """The client by its id: one query."""
        with self._database.read() as connection:
            found = _stored(connection, _WITH_SECRETS.where(clients.c.id == client_id))
        return found[0] if found else None

    def every(self) -> Sequence[Client]:
        """All of them, the oldest first."""
        with self._database.read() as connection:
            return [stored.client for stored in _stored(connection, _WITH_SECRETS)]

    def add(self, client: Client, digest: SecretDigest) -> None:
        """Store a new client with its first secret."""
        row = {"id": client.id, "secret_hash": digest, "created_at": client.created_at}
        with self._database.transaction() as connection:
            connection.execute(insert(clients).values({**row, **_from_client(client)}))
            for secret in client.secrets:
                connection.execute(insert(client_secrets).values(_from_secret(client.id, secret, digest)))

    def change(self, client_id: ClientId, rule: Callable[[Client], Client]) -> Committed[Client]:
        """Apply *rule* under the row lock; see the protocol."""
        with self._database.transaction() as connection:
            client = _locked(connection, client_id).client
            wanted = rule(client)
            entry = self._log.draft_cut_off(UserId(client.id), "client_changed", epoch=wanted.epoch)
            if wanted == client:
                # This may repeat a change whose entry has not reached Redis: write it again.
                return Committed(client, (entry,))
            connection.execute(update(clients).where(clients.c.id == client_id).values(_from_client(wanted)))
            drafts = [entry] if wanted.epoch != client.epoch else []
            return Committed(wanted, self._log.append(connection, drafts))

    def remove(self, client_id: ClientId) -> Committed[Client]:
        """Delete it with its secrets; tombstones and the raised epoch stay in Redis."""
        with self._database.transaction() as connection:
            client = _locked(connection, client_id).client
            owner, reason = UserId(client.id), "client_deleted"
            drafts = [self._log.draft_end(owner, SessionId(one.id), reason) for one in client.secrets]
            drafts.append(self._log.draft_cut_off(owner, reason, epoch=client.epoch + 1))
            connection.execute(delete(clients).where(clients.c.id == client_id))
            return Committed(client, self._log.append(connection, drafts))


class SqlSecretStore:
    """Secrets as rows: digests, and the day of their last use."""

    def __init__(self, database: Database, log: SqlRevocationLog) -> None:
        self._database = database
        self._log = log

    def add(self, client_id: ClientId, secret: Secret, digest: SecretDigest) -> None:
        """Store another secret; raises NotFound, and TooMany if the client has MOST_SECRETS."""
        with self._database.transaction() as connection:
            if len(_locked(connection, client_id).client.secrets) >= MOST_SECRETS:
                raise TooMany
            connection.execute(insert(client_secrets).values(_from_secret(client_id, secret, digest)))
            _tell_older_versions(connection, client_id)

    def drop(self, client_id: ClientId, secret_id: SecretId) -> Committed[SecretId]:
        """Delete it and revoke its tokens; raises NotFound if there is no such client or secret."""
        with self._database.transaction() as connection:
            if _locked(connection, client_id).client.secret(secret_id) is None:
                raise NotFound
            connection.execute(delete(client_secrets).where(client_secrets.c.id == secret_id))
            _tell_older_versions(connection, client_id)
            entry = self._log.draft_end(UserId(client_id), SessionId(secret_id), "secret_dropped")
            return Committed(secret_id, self._log.append(connection, [entry]))

    def note_use(self, client_id: ClientId, secret_id: SecretId, on: date) -> None:
        """Store the day of its last use; never an earlier one than is stored."""
        last = client_secrets.c.last_used_on
        used = (
            update(client_secrets)
            .where(client_secrets.c.id == secret_id, or_(last.is_(None), last < on))
            .values(last_used_on=on)
        )
        with self._database.transaction() as connection:
            if str(secret_id) == client_id:  # perhaps one that an older version added
                with suppress(NotFound):  # deleted meanwhile
                    _locked(connection, client_id)
            connection.execute(used)


class SqlMachineTokenStore:
    """The state of machines' tokens in SQL."""

    def __init__(self, database: Database, log: SqlRevocationLog) -> None:
        self._database = database
        self._log = log

    def standing(self, token: MachineToken, /) -> MachineStanding | None:
        """The client of *token*, in one query; None if it or the secret is deleted."""
        statement = _WITH_SECRETS.add_columns(_is_revoked(token)).where(clients.c.id == token.client_id)
        with self._database.read() as connection:
            rows = connection.execute(statement).mappings().all()
        client = _to_stored(rows).client if rows else None
        if client is None or client.secret(token.session_id) is None:
            return None
        return MachineStanding(client=client, is_revoked=rows[0]["is_revoked"])

    def revoke(self, token: MachineToken, /) -> Committed[None]:
        """Add the revocation of this one token to the log; returns the existing entry if there is one."""
        draft = self._log.draft_end(token.user_id, None, "revoked", token_id=token.token_id)
        with self._database.transaction() as connection:
            if connection.execute(select(_is_revoked(token))).scalar_one():
                return Committed(None, (draft,))
            return Committed(None, self._log.append(connection, [draft]))


def _is_revoked(token: MachineToken) -> ColumnElement[bool]:
    """True if the log has an entry for that one token."""
    entry = exists().where(revocations.c.token_id == token.token_id, revocations.c.session_id.is_(None))
    return entry.label("is_revoked")


def _locked(connection: Connection, client_id: ClientId) -> StoredClient:
    """
    The client under its row lock; raises NotFound.

    A secret that an older version added becomes a row of its own.
    """
    lock = select(clients.c.id).where(clients.c.id == client_id).with_for_update()
    if connection.execute(lock).first() is None:
        raise NotFound
    (stored,) = _stored(connection, _WITH_SECRETS.where(clients.c.id == client_id))
    known = select(func.count()).where(client_secrets.c.client_id == client_id)
    if stored.client.secrets and not connection.execute(known).scalar_one():
        (secret,) = stored.client.secrets
        row = _from_secret(client_id, secret, stored.digests[secret.id])
        connection.execute(insert(client_secrets).values(row))
    return stored


def _tell_older_versions(connection: Connection, client_id: ClientId) -> None:
    """Store the digest of the oldest secret also where earlier versions read it."""
    oldest = (
        select(client_secrets.c.secret_hash)
        .where(client_secrets.c.client_id == client_id)
        .order_by(client_secrets.c.created_at, client_secrets.c.id)
        .limit(1)
        .scalar_subquery()
    )
    connection.execute(
        update(clients).where(clients.c.id == client_id).values(secret_hash=func.coalesce(oldest, ""))
    )


def _stored(connection: Connection, statement: Select[Any]) -> list[StoredClient]:
    """The clients that *statement* selects, each with its secrets."""
    by_client: dict[str, list[Mapping[Any, Any]]] = {}
    for row in connection.execute(statement).mappings():
        by_client.setdefault(row[clients.c.id], []).append(row)
    return [_to_stored(rows) for rows in by_client.values()]


def _to_stored(rows: Sequence[Mapping[Any, Any]]) -> StoredClient:
    """The client in *rows*, one row per secret."""
    first = rows[0]
    client = _to_client(first)
    if first[client_secrets.c.id] is not None:
        secrets = tuple(_to_secret(row) for row in rows)
        digests = {SecretId(row[client_secrets.c.id]): row[client_secrets.c.secret_hash] for row in rows}
    elif first[clients.c.secret_hash]:
        # A version before this one added the client.
        secrets = (Secret(id=SecretId(client.id), created_at=client.created_at),)
        digests = {SecretId(client.id): first[clients.c.secret_hash]}
    else:
        secrets, digests = (), {}
    return StoredClient(client=replace(client, secrets=secrets), digests=digests)


def _to_secret(row: Mapping[Any, Any]) -> Secret:
    return Secret(
        id=row[client_secrets.c.id],
        created_at=row[client_secrets.c.created_at],
        last_used_on=row[client_secrets.c.last_used_on],
    )


def _from_secret(client_id: ClientId, secret: Secret, digest: SecretDigest) -> dict[str, Any]:
    return {
        "id": secret.id,
        "client_id": client_id,
        "secret_hash": digest,
        "created_at": secret.created_at,
        "last_used_on": secret.last_used_on,
    }


def _to_client(row: Mapping[Any, Any]) -> Client:
    # Rights that only a newer version knows are ignored.
    named = row[clients.c.may].split()
    return Client(
        id=row[clients.c.id],
        name=row[clients.c.name],
        scopes=tuple(row[clients.c.scopes].split()),
        may=tuple(right for right in Right if right in named),
        created_at=row[clients.c.created_at],
        epoch=row[clients.c.epoch],
    )


def _from_client(client: Client) -> dict[str, Any]:
    """The columns of a client that may change."""
    return {
        "name": client.name,
        "scopes": " ".join(client.scopes),
        "may": " ".join(client.may),
        "epoch": client.epoch,
    }
