"""Access tokens: signed JWTs (RFC 7519, RFC 9068), issued and read with every claim checked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import lru_cache

from jwt.utils import base64url_encode

from authsvc.domain.clients import Client, ClientId, SecretId
from authsvc.domain.errors import TokenInvalid
from authsvc.domain.revocations import TokenKeys
from authsvc.domain.tokens.claims import (
    CLIENT_ID,
    JWS,
    TYPE,
    Claims,
    InvalidToken,
    MachineClaims,
    Rules,
    read,
)
from authsvc.domain.tokens.keys import KeyRing, SigningKey
from authsvc.domain.users import BUILT_IN, RoleNames, User
from authsvc.domain.values.identifiers import SessionId, TokenId, UserId, new_id
from authsvc.domain.values.jsontext import Json, canonical
from authsvc.domain.values.levels import Level

#: Signatures remembered at most; a token and its claims take about 2 KB.
REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken(Claims):
    """A token with a valid signature, and the digest of its signed text; times in seconds since the epoch."""

    token_id: TokenId
    session_id: SessionId
    user_id: UserId
    #: SHA-256 of the signed text, base64url; empty before it is signed.
    digest: str

    @property
    def keys(self) -> TokenKeys:
        """What the revocation index needs to look this token up."""
        return TokenKeys(
            token_id=self.token_id,
            session_id=self.session_id,
            user_id=self.user_id,
            roles=self.roles,
            epoch=self.epoch,
            digest=self.digest,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineToken(MachineClaims):
    """The access token of a machine: of a client that authenticated with one of its secrets."""

    token_id: TokenId
    client_id: ClientId
    digest: str

    @property
    def user_id(self) -> UserId:
        """The owner in the index and the log: the client, in place of a user."""
        return UserId(self.client_id)

    @property
    def secret_id(self) -> SecretId:
        """The secret that was used, in place of a session."""
        return SecretId(self.session_id)

    @property
    def keys(self) -> TokenKeys:
        """What the revocation index needs to look this token up."""
        return TokenKeys(
            token_id=self.token_id,
            session_id=SessionId(self.session_id),
            user_id=self.user_id,
            roles=self.scopes,
            epoch=self.epoch,
            digest=self.digest,
        )


#: The token of a person or of a machine.
Token = AccessToken | MachineToken


def is_about(token: AccessToken, user: User) -> bool:
    """
    True if *token* still matches *user*.

    A role of the user that is missing in the token is ignored unless it is built in: it was not in ``ROLES``
    when the token was issued. The loss of a role has raised the epoch.
    """
    issued = tuple(role for role in user.roles if role in BUILT_IN or role in token.roles)
    return user.id == token.user_id and user.epoch == token.epoch and issued == token.roles


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProfile(Rules):
    """Settings of all tokens of this service; ``lifetime_s`` and ``leeway_s`` in seconds."""

    lifetime_s: int
    machine_lifetime_s: int = 600
    #: False while readers of version 0.1.0 are in use, which reject unknown claims.
    has_client_id: bool = True
    #: True if tokens contain the level of authentication.
    has_levels: bool = False
    #: Tokens contain only these roles.
    roles: RoleNames = field(default_factory=RoleNames)

    @property
    def longest_s(self) -> int:
        """Longest lifetime of a token issued now (seconds)."""
        return max(self.lifetime_s, self.machine_lifetime_s)


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """Issues access tokens with the current signing key."""

    profile: TokenProfile
    ring: Callable[[], KeyRing]

    def require_key(self, now: datetime) -> None:
        """Raise StoreUnavailable while there is no key to sign with."""
        self.ring().signer(now)

    def issue(
        self,
        user: User,
        session_id: SessionId,
        *,
        now: datetime,
        not_after: datetime,
        level: Level | None = None,
    ) -> tuple[str, AccessToken]:
        """
        Issue a token of *user* for *session_id*; it expires after its lifetime, or at *not_after* if sooner.
        """
        issued_at = int(now.timestamp())
        token = AccessToken(
            token_id=TokenId(new_id()),
            session_id=session_id,
            user_id=user.id,
            roles=self.profile.roles.shown(user.roles),
            epoch=user.epoch,
            issued_at=issued_at,
            # Also valid for a validator without leeway whose clock is slightly behind.
            not_before=issued_at - self.profile.leeway_s,
            expires_at=min(issued_at + self.profile.lifetime_s, int(not_after.timestamp())),
            issuer=self.profile.issuer,
            audience=self.profile.audience,
            level=level if self.profile.has_levels else None,
            digest="",
        )
        text = _sign(_claims_of(token, self.profile), self.ring().signer(now))
        return text, replace(token, digest=signed_digest(text))

    def issue_to_machine(
        self, client: Client, secret_id: SecretId, scopes: tuple[str, ...], *, now: datetime
    ) -> tuple[str, MachineToken]:
        """Issue a token for *scopes* to *client*, which authenticated with the secret *secret_id*."""
        issued_at = int(now.timestamp())
        token = MachineToken(
            token_id=TokenId(new_id()),
            session_id=secret_id,
            client_id=client.id,
            scopes=scopes,
            epoch=client.epoch,
            issued_at=issued_at,
            not_before=issued_at - self.profile.leeway_s,
            expires_at=issued_at + self.profile.machine_lifetime_s,
            issuer=self.profile.issuer,
            audience=self.profile.audience,
            digest="",
        )
        text = _sign(_claims_of_machine(token), self.ring().signer(now))
        return text, replace(token, digest=signed_digest(text))


class TokenReader:
    """
    Verifies access tokens, but not whether they are revoked.

    The last *most* valid signatures are remembered, by the whole text of the token. Expiry and revocation are
    never remembered. A new key ring discards the memory, so tokens of a removed key are refused.
    """

    def __init__(self, profile: TokenProfile, ring: Callable[[], KeyRing], *, most: int = REMEMBERED) -> None:
        self._profile = profile
        self._ring = ring
        self._most = most
        self._remembered: tuple[KeyRing, dict[str, Token]] = (ring(), {})
        #: Only for writers of the memory; readers do not need it.
        self._lock = threading.Lock()

    def read(self, text: str, *, now: datetime) -> Token:
        """The token in *text*, if it is valid at *now*; else raises TokenInvalid."""
        token = self.read_expired(text, now=now)
        if now.timestamp() >= self.window_s(token)[1]:
            raise TokenInvalid("expired")
        return token

    def read_expired(self, text: str, *, now: datetime) -> Token:
        """The same, but it may have expired: enough to end its session."""
        ring, remembered = self._remembered
        if ring is not self._ring():
            ring, remembered = self._remembered = (self._ring(), {})
        token = remembered.get(text)
        if token is None:
            token = self._verify(text, ring)
            with self._lock:
                self._remember(remembered, text, token)
        if now.timestamp() < self.window_s(token)[0]:
            raise TokenInvalid("from the future")
        return token

    def window_s(self, token: Token) -> tuple[int, int]:
        """Begin and end of *token*'s validity: seconds since the epoch, leeway included."""
        return token.window_s(self._profile.leeway_s)

    def recall(self, text: str, ring: KeyRing) -> Token | None:
        """The token in *text* if its signature by a key of *ring* is remembered; it may have expired."""
        known, remembered = self._remembered
        return remembered.get(text) if known is ring else None

    def _remember(self, remembered: dict[str, Token], text: str, token: Token) -> None:
        """Remember *token*; forget the oldest if the memory is full."""
        while len(remembered) >= self._most:
            del remembered[next(iter(remembered))]
        remembered[text] = token

    def _verify(self, text: str, ring: KeyRing) -> Token:
        """Signature and claims of *text*, by a key of *ring*."""
        try:
            claims = read(text, self._profile, ring.by_id.get)
        except InvalidToken as error:
            raise TokenInvalid(str(error)) from error
        named = {one.name: getattr(claims, one.name) for one in fields(claims)}
        kind = MachineToken if isinstance(claims, MachineClaims) else AccessToken
        return kind(**named, digest=signed_digest(text))


def signed_digest(text: str) -> str:
    """
    The digest of the signed part of the compact JWS *text*: header and payload as written there.

    The signature is left out, because it has several valid forms: unused bits of its last character, and with
    ECDSA also (r, n - s).
    """
    signed, _, _ = text.rpartition(".")
    return base64url_encode(hashlib.sha256(signed.encode()).digest()).decode()


def _claims_of(token: AccessToken, profile: TokenProfile) -> dict[str, Json]:
    claims: dict[str, Json] = {**_common_claims(token), "roles": list(token.roles)}
    if profile.has_client_id:
        claims["client_id"] = CLIENT_ID
    if token.level is not None:
        claims.update(token.level.claims())
    return claims


def _claims_of_machine(token: MachineToken) -> dict[str, Json]:
    return {**_common_claims(token), "client_id": token.client_id, "scope": " ".join(token.scopes)}


def _common_claims(token: Token) -> dict[str, Json]:
    return {
        "iss": token.issuer,
        "aud": token.audience,
        "sub": token.user_id,
        "iat": token.issued_at,
        "nbf": token.not_before,
        "exp": token.expires_at,
        "jti": token.token_id,
        "sid": token.session_id,
        "epoch": token.epoch,
    }


def _sign(claims: dict[str, Json], key: SigningKey) -> str:
    """The compact form of a token with *claims*, signed by *key*."""
    signed = _header(key.kid, key.algorithm) + b"." + base64url_encode(canonical(claims).encode())
    signature = JWS.get_algorithm_by_name(key.algorithm).sign(signed, key.private)
    return (signed + b"." + base64url_encode(signature)).decode()


@lru_cache(maxsize=64)
def _header(kid: str, algorithm: str) -> bytes:
    """The first part of every token that the key *kid* signs."""
    return base64url_encode(canonical({"typ": TYPE, "kid": kid, "alg": algorithm}).encode())
