"""Registered clients: services that ask about tokens, revoke them, or get tokens of their own."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import StrEnum
from typing import NewType, Protocol

from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.errors import Invalid, NotFound
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.identifiers import canonical_id, new_id

ClientId = NewType("ClientId", str)
SecretId = NewType("SecretId", str)
#: SHA-256 of a secret, in hex: a secret of 256 random bits needs no slow hash.
SecretDigest = NewType("SecretDigest", str)

SECRET_BYTES = 32
NAME_LENGTH = 200
#: Two allow rotation without an outage; a third one would only be a forgotten one.
MOST_SECRETS = 2
MOST_SCOPES = 32
SCOPE_PATTERN = r"[a-z0-9._:/-]{1,64}"
_SCOPE = re.compile(SCOPE_PATTERN)


class Right(StrEnum):
    """What a client may do, in the order in which rights are listed."""

    INTROSPECT = "introspect"
    #: Introspect refresh tokens, too. A resource server must not have it: it would accept refresh tokens as
    #: bearers.
    INTROSPECT_REFRESH = "introspect-refresh"
    REVOKE = "revoke"
    FEED = "feed"
    #: Get its own access tokens.
    TOKEN = "token"  # noqa: S105 - the name of a right


#: Default rights of a client that is created without rights and scopes.
USUAL_RIGHTS = (Right.INTROSPECT, Right.REVOKE, Right.FEED)


def is_scope(text: str) -> bool:
    """True if *text* is a valid name of a scope."""
    return _SCOPE.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One of a client's secrets, without the secret itself."""

    id: SecretId
    created_at: datetime
    #: The day (UTC) of its last recorded use.
    last_used_on: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A registered service with its own secrets; *name* is for people to read."""

    id: ClientId
    name: str
    scopes: tuple[str, ...] = ()
    may: tuple[Right, ...]
    created_at: datetime
    #: The cut-off counter: a token of the client that carries another value is refused.
    epoch: int = 0
    #: The oldest first.
    secrets: tuple[Secret, ...] = ()

    def secret(self, secret_id: str) -> Secret | None:
        """The live secret with that id."""
        return next((secret for secret in self.secrets if secret.id == secret_id), None)

    def has(self, right: Right) -> bool:
        """True if it has *right*; INTROSPECT_REFRESH includes INTROSPECT."""
        return right in self.may or (right is Right.INTROSPECT and Right.INTROSPECT_REFRESH in self.may)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredClient:
    """A client with the digests of its secrets."""

    client: Client
    digests: Mapping[SecretId, SecretDigest] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewClient:
    """A new client with its secret, which is never shown again."""

    client: Client
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """A new secret, which is never shown again."""

    id: SecretId
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientChange:
    """A change of a client; None leaves a field unchanged."""

    name: str | None = None
    scopes: tuple[str, ...] | None = None
    may: Collection[Right] | None = None

    def applied_to(self, client: Client) -> Client:
        """
        The changed *client*.

        Its earlier tokens are revoked if a scope or the right to tokens is removed.
        """
        wanted = replace(
            client,
            name=client.name if self.name is None else self.name,
            scopes=client.scopes if self.scopes is None else _in_order(self.scopes),
            may=client.may if self.may is None else _rights(self.may),
        )
        keeps_scopes = set(client.scopes) <= set(wanted.scopes)
        keeps_right = wanted.has(Right.TOKEN) or not client.has(Right.TOKEN)
        return wanted if keeps_scopes and keeps_right else replace(wanted, epoch=client.epoch + 1)


class ClientStore(Protocol):
    """Stores clients; each method is one transaction. Raises StoreUnavailable."""

    def find(self, client_id: ClientId) -> StoredClient | None:
        """The client by its id: one query."""

    def every(self) -> Sequence[Client]:
        """All of them, the oldest first."""

    def add(self, client: Client, digest: SecretDigest) -> None:
        """Store a new client with its first secret."""

    def change(self, client_id: ClientId, rule: Callable[[Client], Client]) -> Committed[Client]:
        """
        Apply *rule* under the row lock; if it raises the epoch, the log revokes the client's tokens.

        Raises NotFound.
        """

    def remove(self, client_id: ClientId) -> Committed[Client]:
        """Delete it and revoke its tokens; raises NotFound."""


class SecretStore(Protocol):
    """Stores secrets of clients; each method is one transaction. Raises StoreUnavailable."""

    def add(self, client_id: ClientId, secret: Secret, digest: SecretDigest) -> None:
        """Store another secret; raises NotFound, and TooMany if the client has MOST_SECRETS."""

    def drop(self, client_id: ClientId, secret_id: SecretId) -> Committed[SecretId]:
        """Delete it and revoke its tokens; raises NotFound if there is no such client or secret."""

    def note_use(self, client_id: ClientId, secret_id: SecretId, on: date) -> None:
        """Store the day of its last use, never an earlier one; does nothing if it is deleted."""


def secret_digest(secret: str) -> SecretDigest:
    """The digest of *secret*, which may be any text."""
    return SecretDigest(hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest())


def new_secret() -> str:
    """A new random secret."""
    return secrets.token_urlsafe(SECRET_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRegistry:
    """Operations of admins and operators on clients."""

    store: ClientStore
    secrets: SecretStore
    revocations: Revocations
    audit: AuditLog
    clock: Clock

    def create(
        self, name: str, *, scopes: Sequence[str] = (), may: Collection[Right] | None = None
    ) -> NewClient:
        """
        Create a client with one secret.

        Without rights, the default is TOKEN if there are scopes, else USUAL_RIGHTS.

        Raises:
            Invalid: *name* or a scope breaks a rule.
            StoreUnavailable.
        """
        _require_valid(name, scopes)
        if may is None:
            may = (Right.TOKEN,) if scopes else USUAL_RIGHTS
        now, text = self.clock(), new_secret()
        client = Client(
            id=ClientId(new_id()),
            name=name,
            scopes=_in_order(scopes),
            may=_rights(may),
            created_at=now,
            secrets=(Secret(id=SecretId(new_id()), created_at=now),),
        )
        self.store.add(client, secret_digest(text))
        self.audit.record(Event(Action.CLIENT_CREATED, detail=client.id))
        return NewClient(client=client, secret=text)

    def every(self) -> Sequence[Client]:
        """All clients, the oldest first."""
        return self.store.every()

    def get(self, client_id: str) -> Client:
        """One of them; raises NotFound."""
        found = self.store.find(_named(client_id))
        if found is None:
            raise NotFound
        return found.client

    def change(self, client_id: str, change: ClientChange) -> Outcome[Client]:
        """
        Change a client; if scopes or the right to tokens are removed, its earlier tokens are revoked at once.

        Raises NotFound, Invalid.
        """
        _require_valid(change.name, change.scopes)
        outcome = self.revocations.publish(self.store.change(_named(client_id), change.applied_to))
        self.audit.record(Event(Action.CLIENT_CHANGED, detail=outcome.value.id))
        return outcome

    def add_secret(self, client_id: str) -> NewSecret:
        """Add a second secret; raises NotFound, and TooMany if there are two."""
        named, text = _named(client_id), new_secret()
        made = Secret(id=SecretId(new_id()), created_at=self.clock())
        self.secrets.add(named, made, secret_digest(text))
        self.audit.record(Event(Action.CLIENT_SECRET_ADDED, session_id=made.id, detail=named))
        return NewSecret(id=made.id, secret=text)

    def drop_secret(self, client_id: str, secret_id: str) -> Outcome[SecretId]:
        """Delete a secret: from the next request on it is refused, and so are its tokens; raises NotFound."""
        named, dropped = _named(client_id), SecretId(_named(secret_id))
        outcome = self.revocations.publish(self.secrets.drop(named, dropped))
        self.audit.record(Event(Action.CLIENT_SECRET_DROPPED, session_id=dropped, detail=named))
        return outcome

    def delete(self, client_id: str) -> Outcome[Client]:
        """Delete a client: from the next request on it is refused, and so are its tokens; raises NotFound."""
        outcome = self.revocations.publish(self.store.remove(_named(client_id)))
        self.audit.record(Event(Action.CLIENT_DELETED, detail=outcome.value.id))
        return outcome


def _named(text: str) -> ClientId:
    """*text* as an identifier; raises NotFound if it is malformed."""
    found = canonical_id(text)
    if found is None:
        raise NotFound
    return ClientId(found)


def _require_valid(name: str | None, scopes: Sequence[str] | None) -> None:
    """Raise Invalid with all violations."""
    wrong: dict[str, list[str]] = {}
    if name is not None and (not name.strip() or not name.isprintable() or len(name) > NAME_LENGTH):
        wrong["name"] = [f"must have 1 to {NAME_LENGTH} printable characters"]
    for number, scope in enumerate(scopes or ()):
        if not is_scope(scope):
            wrong[f"scopes.{number}"] = ["must have 1 to 64 of the characters a-z 0-9 . _ : / -"]
    if scopes and len(set(scopes)) > MOST_SCOPES:
        wrong["scopes"] = [f"must be {MOST_SCOPES} at most"]
    if wrong:
        raise Invalid(wrong)


def _in_order(scopes: Sequence[str]) -> tuple[str, ...]:
    """Each once, in the order of the alphabet."""
    return tuple(sorted(set(scopes)))


def _rights(may: Collection[Right]) -> tuple[Right, ...]:
    return tuple(right for right in Right if right in may)
