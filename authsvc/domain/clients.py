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
#: SHA-256 of a secret, in hex: with 256 random bits nothing slower is needed.
SecretDigest = NewType("SecretDigest", str)

SECRET_BYTES = 32
NAME_LENGTH = 200
#: A new secret is in use before the old one goes; a third one would be a forgotten one.
MOST_SECRETS = 2
MOST_SCOPES = 32
SCOPE_PATTERN = r"[a-z0-9._:/-]{1,64}"
_SCOPE = re.compile(SCOPE_PATTERN)


class Right(StrEnum):
    """What a client may do, in the order in which rights are listed."""

    INTROSPECT = "introspect"
    #: See refresh tokens as active, too; whoever takes them as a bearer lets in what must not be let in.
    INTROSPECT_REFRESH = "introspect-refresh"
    REVOKE = "revoke"
    FEED = "feed"
    #: Get access tokens of its own.
    TOKEN = "token"  # noqa: S105 - the name of a right


#: What a client may do for which nobody named rights or scopes.
USUAL_RIGHTS = (Right.INTROSPECT, Right.REVOKE, Right.FEED)


def is_scope(text: str) -> bool:
    """True for what may be the name of a scope."""
    return _SCOPE.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One of a client's secrets, without the secret itself."""

    id: SecretId
    created_at: datetime
    #: The day (UTC) on which it was last shown, as far as anybody noted it.
    last_used_on: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A service with secrets of its own; *name* is for people."""

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
        """True if it was given *right*; INTROSPECT comes with INTROSPECT_REFRESH."""
        return right in self.may or (right is Right.INTROSPECT and Right.INTROSPECT_REFRESH in self.may)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredClient:
    """A client, and what its secrets must come to."""

    client: Client
    digests: Mapping[SecretId, SecretDigest] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewClient:
    """A client that was just created, with its secret: nobody can show that again."""

    client: Client
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """A secret that was just made; the same holds for it."""

    id: SecretId
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientChange:
    """What becomes of a client; None leaves a field as it is."""

    name: str | None = None
    scopes: tuple[str, ...] | None = None
    may: Collection[Right] | None = None

    def applied_to(self, client: Client) -> Client:
        """
        *client* as it will be.

        Its tokens of before are cut off where a scope is taken away, or the right to have tokens.
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
    """Where clients live; each method is one transaction.  Raises StoreUnavailable."""

    def find(self, client_id: ClientId) -> StoredClient | None:
        """The client by its id: one query."""

    def every(self) -> Sequence[Client]:
        """All of them, the oldest first."""

    def add(self, client: Client, digest: SecretDigest) -> None:
        """Keep a new client with its one secret."""

    def change(self, client_id: ClientId, rule: Callable[[Client], Client]) -> Committed[Client]:
        """
        Apply *rule* under the row lock; where it raises the epoch, the log cuts off the client's tokens.

        Raises NotFound.
        """

    def remove(self, client_id: ClientId) -> Committed[Client]:
        """Forget it and end its tokens; raises NotFound."""


class SecretStore(Protocol):
    """Where the secrets of clients live; each method is one transaction.  Raises StoreUnavailable."""

    def add(self, client_id: ClientId, secret: Secret, digest: SecretDigest) -> None:
        """Keep a further secret; raises NotFound, and TooMany where the client has MOST_SECRETS."""

    def drop(self, client_id: ClientId, secret_id: SecretId) -> Committed[SecretId]:
        """Forget it and end its tokens; raises NotFound where there is no such client or secret."""

    def note_use(self, client_id: ClientId, secret_id: SecretId, on: date) -> None:
        """Store that it was used *on* that day, never an earlier one; does nothing where it is gone."""


def secret_digest(secret: str) -> SecretDigest:
    """The digest of *secret*, of whatever text."""
    return SecretDigest(hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest())


def new_secret() -> str:
    """A secret that nobody can guess."""
    return secrets.token_urlsafe(SECRET_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRegistry:
    """What admins and operators do with clients."""

    store: ClientStore
    secrets: SecretStore
    revocations: Revocations
    audit: AuditLog
    clock: Clock

    def create(
        self, name: str, *, scopes: Sequence[str] = (), may: Collection[Right] | None = None
    ) -> NewClient:
        """
        A new client with one secret.

        Where no rights are named, scopes bring TOKEN alone, and no scopes USUAL_RIGHTS.

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
        Change a client; where scopes or the right to have tokens go, its earlier tokens are dead at once.

        Raises NotFound, Invalid.
        """
        _require_valid(change.name, change.scopes)
        outcome = self.revocations.publish(self.store.change(_named(client_id), change.applied_to))
        self.audit.record(Event(Action.CLIENT_CHANGED, detail=outcome.value.id))
        return outcome

    def add_secret(self, client_id: str) -> NewSecret:
        """A second secret beside the one in use; raises NotFound, and TooMany where there are two."""
        named, text = _named(client_id), new_secret()
        made = Secret(id=SecretId(new_id()), created_at=self.clock())
        self.secrets.add(named, made, secret_digest(text))
        self.audit.record(Event(Action.CLIENT_SECRET_ADDED, session_id=made.id, detail=named))
        return NewSecret(id=made.id, secret=text)

    def drop_secret(self, client_id: str, secret_id: str) -> Outcome[SecretId]:
        """Forget a secret: it is refused from its next use on, and so are its tokens; raises NotFound."""
        named, dropped = _named(client_id), SecretId(_named(secret_id))
        outcome = self.revocations.publish(self.secrets.drop(named, dropped))
        self.audit.record(Event(Action.CLIENT_SECRET_DROPPED, session_id=dropped, detail=named))
        return outcome

    def delete(self, client_id: str) -> Outcome[Client]:
        """Forget a client: its next request is refused, and so are its tokens; raises NotFound."""
        outcome = self.revocations.publish(self.store.remove(_named(client_id)))
        self.audit.record(Event(Action.CLIENT_DELETED, detail=outcome.value.id))
        return outcome


def _named(text: str) -> ClientId:
    """The identifier *text*; raises NotFound for what names nothing."""
    found = canonical_id(text)
    if found is None:
        raise NotFound
    return ClientId(found)


def _require_valid(name: str | None, scopes: Sequence[str] | None) -> None:
    """Raise Invalid with all that is wrong."""
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
