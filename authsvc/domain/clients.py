"""Registered clients: services that may ask about tokens and revoke them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType, Protocol

from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.errors import ClientRefused, Invalid, NotFound, StoreUnavailable
from authsvc.domain.ratelimits import Limits, Rule, ip_subject
from authsvc.domain.values.clocks import Clock, Monotonic
from authsvc.domain.values.identifiers import canonical_id, is_id, new_id

ClientId = NewType("ClientId", str)
#: SHA-256 of a secret, in hex: with 256 random bits nothing slower is needed.
SecretDigest = NewType("SecretDigest", str)

SECRET_BYTES = 32
NAME_LENGTH = 200
#: How long a client that SQL has confirmed is believed while SQL is away (seconds).
REMEMBERED_S = 300.0
#: Clients remembered at most.
REMEMBERED = 1024

#: Looked up for an id of wrong form, so that it costs what an unknown one costs; never given to a client.
NOBODY = ClientId("00000000-0000-0000-0000-000000000000")
#: Compared with where there is no client; no secret is known to have it.
_NO_DIGEST = SecretDigest("0" * 64)


class Right(StrEnum):
    """What a client may do, in the order in which rights are listed."""

    INTROSPECT = "introspect"
    #: See refresh tokens as active, too; whoever takes them as a bearer lets in what must not be let in.
    INTROSPECT_REFRESH = "introspect-refresh"
    REVOKE = "revoke"
    FEED = "feed"


#: What a client may do whose rights nobody named.
USUAL_RIGHTS = (Right.INTROSPECT, Right.REVOKE, Right.FEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A service with a secret of its own; *name* is for people."""

    id: ClientId
    name: str
    may: tuple[Right, ...]
    created_at: datetime

    def has(self, right: Right) -> bool:
        """True if it was given *right*; INTROSPECT comes with INTROSPECT_REFRESH."""
        return right in self.may or (right is Right.INTROSPECT and Right.INTROSPECT_REFRESH in self.may)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredClient:
    """A client, and what its secret must come to."""

    client: Client
    digest: SecretDigest = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewClient:
    """A client that was just created, with its secret: nobody can show that again."""

    client: Client
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredentials:
    """What a caller says to be a client's id and secret; both may be anything."""

    client_id: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A client that has shown its secret; *is_remembered* if SQL was away and could not confirm it."""

    client: Client
    is_remembered: bool


class ClientStore(Protocol):
    """Where clients live; raises StoreUnavailable."""

    def find(self, client_id: ClientId) -> StoredClient | None:
        """The client by its id: one query."""

    def add(self, client: Client, digest: SecretDigest) -> None:
        """Keep a new client."""

    def every(self) -> Sequence[Client]:
        """All of them, the oldest first."""

    def remove(self, client_id: ClientId) -> bool:
        """Forget it; False where there is none."""


def secret_digest(secret: str) -> SecretDigest:
    """The digest of *secret*, of whatever text."""
    return SecretDigest(hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRegistry:
    """What the operator does with clients."""

    store: ClientStore
    audit: AuditLog
    clock: Clock

    def create(self, name: str, *, may: Collection[Right] = USUAL_RIGHTS) -> NewClient:
        """
        A new client with a new secret and the rights *may*.

        Raises:
            Invalid: *name* is empty, too long, or not printable.
            StoreUnavailable.
        """
        if not name.strip() or not name.isprintable() or len(name) > NAME_LENGTH:
            raise Invalid({"name": [f"must have 1 to {NAME_LENGTH} printable characters"]})
        rights = tuple(right for right in Right if right in may)
        client = Client(id=ClientId(new_id()), name=name, may=rights, created_at=self.clock())
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self.store.add(client, secret_digest(secret))
        self.audit.record(Event(Action.CLIENT_CREATED, detail=client.id))
        return NewClient(client=client, secret=secret)

    def every(self) -> Sequence[Client]:
        """All clients, the oldest first."""
        return self.store.every()

    def delete(self, client_id: str) -> None:
        """Forget a client: its next request is refused; raises NotFound, StoreUnavailable."""
        named = canonical_id(client_id)
        if named is None or not self.store.remove(ClientId(named)):
            raise NotFound
        self.audit.record(Event(Action.CLIENT_DELETED, detail=named))


class Acquaintances:
    """
    The clients that SQL confirmed to this process lately, for when it cannot be asked.

    Keeps digests of id and secret together, at most REMEMBERED of them, each for REMEMBERED_S seconds.
    """

    def __init__(self, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._met: dict[bytes, tuple[Client, float]] = {}
        self._lock = threading.Lock()

    def met(self, credentials: ClientCredentials, client: Client) -> None:
        """SQL has just confirmed *credentials*."""
        with self._lock:
            self._met.pop(_pair_digest(credentials), None)
            while len(self._met) >= REMEMBERED:
                del self._met[next(iter(self._met))]
            self._met[_pair_digest(credentials)] = (client, self._monotonic())

    def forget(self, credentials: ClientCredentials) -> None:
        """SQL has just refused *credentials*."""
        with self._lock:
            self._met.pop(_pair_digest(credentials), None)

    def recall(self, credentials: ClientCredentials) -> Client | None:
        """The client that *credentials* were confirmed to be, at most REMEMBERED_S seconds ago."""
        client, at_s = self._met.get(_pair_digest(credentials), (None, 0.0))
        return client if client and self._monotonic() - at_s <= REMEMBERED_S else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProof:
    """Authenticates clients."""

    store: ClientStore
    known: Acquaintances
    limits: Limits
    audit: AuditLog

    def authenticate(self, credentials: ClientCredentials, *, client_ip: str) -> Caller:
        """
        Whose *credentials* these are: one query, and the same work whether the client is known.

        A right secret is never limited; wrong ones are counted by address.  While SQL is away, whoever
        it confirmed in the last REMEMBERED_S seconds is still accepted.

        Raises:
            ClientRefused: unknown client or wrong secret.
            RateLimited: the same, once too often.
            StoreUnavailable: SQL is away, and these credentials are not remembered.
        """
        try:
            stored = self.store.find(_asked_for(credentials.client_id))
        except StoreUnavailable:
            remembered = self.known.recall(credentials)
            if remembered is None:
                raise
            return Caller(client=remembered, is_remembered=True)
        # Also for an unknown client: what is compared takes the same time, whoever it is.
        expected = stored.digest if stored else _NO_DIGEST
        is_right = hmac.compare_digest(expected, secret_digest(credentials.secret))
        if stored is None or not is_right:
            raise self._refused(credentials, stored, client_ip)
        self.known.met(credentials, stored.client)
        return Caller(client=stored.client, is_remembered=False)

    def _refused(
        self, credentials: ClientCredentials, stored: StoredClient | None, client_ip: str
    ) -> ClientRefused:
        """The one refusal, counted and written down; raises RateLimited instead, once too often."""
        self.known.forget(credentials)
        self.limits.take(Rule.CLIENT_IP, ip_subject(client_ip))
        # An id that nobody has may be a secret in the wrong place: it is not written down.
        tried = stored.client.id if stored else None
        self.audit.record(Event(Action.CLIENT_REFUSED, client_ip=client_ip, detail=tried))
        return ClientRefused()


def _asked_for(client_id: str) -> ClientId:
    return ClientId(client_id) if is_id(client_id) else NOBODY


def _pair_digest(credentials: ClientCredentials) -> bytes:
    """Of id and secret; the length in front keeps ``a, bc`` and ``ab, c`` apart."""
    parts = (credentials.client_id, credentials.secret)
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return hashlib.sha256(b"%d:" % len(encoded[0]) + b"".join(encoded)).digest()
