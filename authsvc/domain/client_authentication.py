"""Client authentication (RFC 6749 §2.3) by id and secret."""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.clients import (
    Client,
    ClientId,
    ClientStore,
    Secret,
    SecretDigest,
    SecretId,
    SecretStore,
    StoredClient,
    secret_digest,
)
from authsvc.domain.errors import ClientRefused, StoreUnavailable
from authsvc.domain.ratelimits import Limits, Rule, ip_subject
from authsvc.domain.values.clocks import Clock, Monotonic
from authsvc.domain.values.identifiers import is_id

log = logging.getLogger(__name__)

#: How long a client that SQL has confirmed is accepted while SQL is away (seconds).
REMEMBERED_S = 300.0
#: Clients remembered at most.
REMEMBERED = 1024
#: If the day of a secret's last use could not be stored, wait this long before the next attempt (seconds).
NOTE_AGAIN_S = 60.0

#: Looked up in place of a malformed id, so that it takes as long as an unknown one; no client has it.
NOBODY = ClientId("00000000-0000-0000-0000-000000000000")
#: Compared with if there is no client; no known secret has this digest.
_NO_DIGESTS = {SecretId(NOBODY): SecretDigest("0" * 64)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredentials:
    """The id and secret that a caller presents; not verified yet."""

    client_id: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated client; *is_remembered* if SQL was away and this process remembered it."""

    client: Client
    is_remembered: bool
    #: The secret that was used; None if SQL was away.
    secret_id: SecretId | None = None


class RecentClients:
    """
    Clients that SQL confirmed recently, accepted while SQL is away.

    Keeps digests of id and secret together, at most REMEMBERED of them, each for REMEMBERED_S seconds.
    """

    def __init__(self, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._met: dict[bytes, tuple[Client, float]] = {}
        self._lock = threading.Lock()

    def met(self, credentials: ClientCredentials, client: Client) -> None:
        """Remember *credentials*, which SQL has just confirmed."""
        with self._lock:
            self._met.pop(_pair_digest(credentials), None)
            while len(self._met) >= REMEMBERED:
                del self._met[next(iter(self._met))]
            self._met[_pair_digest(credentials)] = (client, self._monotonic())

    def forget(self, credentials: ClientCredentials) -> None:
        """Forget *credentials*, which SQL has just refused."""
        with self._lock:
            self._met.pop(_pair_digest(credentials), None)

    def recall(self, credentials: ClientCredentials) -> Client | None:
        """The client that SQL confirmed for *credentials*, at most REMEMBERED_S seconds ago."""
        client, at_s = self._met.get(_pair_digest(credentials), (None, 0.0))
        return client if client and self._monotonic() - at_s <= REMEMBERED_S else None


class SecretUses:
    """Stores the day of a secret's last use: one write a day; a failed write does not fail the request."""

    def __init__(self, store: SecretStore, clock: Clock, monotonic: Monotonic) -> None:
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        #: Time of the last failed write; a read-only database is not tried on every request.
        self._failed_s: float | None = None

    def note(self, client: Client, secret: Secret) -> None:
        """Note a use of *secret*, which SQL has just confirmed."""
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
    known: RecentClients
    limits: Limits
    audit: AuditLog

    def authenticate(self, credentials: ClientCredentials, *, client_ip: str) -> Caller:
        """
        Authenticate *credentials*: one query, and the same work whether or not the client is known.

        A correct secret is never limited; wrong ones are counted by address. While SQL is away, clients that
        it confirmed in the last REMEMBERED_S seconds are still accepted.

        Raises:
            ClientRefused: unknown client or wrong secret.
            RateLimited: the same, more often than the limit allows.
            StoreUnavailable: SQL is away, and these credentials are not remembered.
        """
        try:
            stored = self.store.find(_asked_for(credentials.client_id))
        except StoreUnavailable:
            remembered = self.known.recall(credentials)
            if remembered is None:
                raise
            return Caller(client=remembered, is_remembered=True)
        # Compare for an unknown client, too, so that both cases take the same time.
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
        """
        The error of a failed authentication, counted and recorded; raises RateLimited if the limit is
        exhausted.
        """
        self.known.forget(credentials)
        self.limits.take(Rule.CLIENT_IP, ip_subject(client_ip))
        # An unknown id may be a secret in the wrong field, so it is not recorded.
        tried = stored.client.id if stored else None
        self.audit.record(Event(Action.CLIENT_REFUSED, client_ip=client_ip, detail=tried))
        return ClientRefused()


def _matching(digests: Mapping[SecretId, SecretDigest], presented: SecretDigest) -> SecretId | None:
    """The secret whose digest is *presented*; compared in constant time."""
    matching = [one for one, digest in digests.items() if hmac.compare_digest(digest, presented)]
    return matching[0] if matching else None


def _asked_for(client_id: str) -> ClientId:
    return ClientId(client_id) if is_id(client_id) else NOBODY


def _pair_digest(credentials: ClientCredentials) -> bytes:
    """A digest of id and secret; the length prefix keeps ``a, bc`` and ``ab, c`` apart."""
    parts = (credentials.client_id, credentials.secret)
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return hashlib.sha256(b"%d:" % len(encoded[0]) + b"".join(encoded)).digest()
