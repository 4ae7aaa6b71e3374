"""Registered clients: services that ask about tokens, revoke them, or get tokens of their own."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import StrEnum
from typing import NewType, Protocol

from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.errors import ClientRefused, Invalid, NotFound, StoreUnavailable
from authsvc.domain.ratelimits import Limits, Rule, ip_subject
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.values.clocks import Clock, Monotonic
from authsvc.domain.values.identifiers import canonical_id, is_id, new_id

log = logging.getLogger(__name__)

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
#: How long a client that SQL has confirmed is believed while SQL is away (seconds).
REMEMBERED_S = 300.0
#: Clients remembered at most.
REMEMBERED = 1024
#: Where the day of a secret's last use could not be stored, it is tried again after so long (seconds).
NOTE_AGAIN_S = 60.0

#: Looked up for an id of wrong form, so that it costs what an unknown one costs; never given to a client.
NOBODY = ClientId("00000000-0000-0000-0000-000000000000")
#: Compared with where there is no client; no secret is known to have it.
_NO_DIGESTS = {SecretId(NOBODY): SecretDigest("0" * 64)}


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
    #: The one that was shown; None where SQL was away.
    secret_id: SecretId | None = None


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
        """Store that it was used *on* that day; never an earlier one than is stored."""


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


class SecretUses:
    """Stores the day on which a secret was last used: one write a day, whose failure refuses nobody."""

    def __init__(self, store: SecretStore, clock: Clock, monotonic: Monotonic) -> None:
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        #: When a write failed last; a database that reads alone is not asked with every request.
        self._failed_s: float | None = None

    def note(self, client: Client, secret: Secret) -> None:
        """SQL has just confirmed *secret*."""
        today = self._clock().date()
        is_noted = secret.last_used_on is not None and secret.last_used_on >= today
        if is_noted or (self._failed_s is not None and self._monotonic() - self._failed_s < NOTE_AGAIN_S):
            return
        try:
            self._store.note_use(client.id, secret.id, today)
        except StoreUnavailable as error:
            self._failed_s = self._monotonic()
            log.warning("client.use_unnoted", extra={"client_id": client.id, "cause": error.store})
        else:
            self._failed_s = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProof:
    """Authenticates clients."""

    store: ClientStore
    uses: SecretUses
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
        shown_id = _matching(stored.digests if stored else _NO_DIGESTS, secret_digest(credentials.secret))
        shown = stored.client.secret(shown_id) if stored and shown_id else None
        if stored is None or shown is None:
            raise self._refused(credentials, stored, client_ip)
        self.known.met(credentials, stored.client)
        self.uses.note(stored.client, shown)
        return Caller(client=stored.client, is_remembered=False, secret_id=shown.id)

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


def _matching(digests: Mapping[SecretId, SecretDigest], presented: SecretDigest) -> SecretId | None:
    """Whose digest *presented* is; compared in constant time."""
    matching = [one for one, digest in digests.items() if hmac.compare_digest(digest, presented)]
    return matching[0] if matching else None


def _asked_for(client_id: str) -> ClientId:
    return ClientId(client_id) if is_id(client_id) else NOBODY


def _pair_digest(credentials: ClientCredentials) -> bytes:
    """Of id and secret; the length in front keeps ``a, bc`` and ``ab, c`` apart."""
    parts = (credentials.client_id, credentials.secret)
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return hashlib.sha256(b"%d:" % len(encoded[0]) + b"".join(encoded)).digest()
