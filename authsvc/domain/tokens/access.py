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
    """A token whose signature held, with what binds it to its text; times in seconds since the epoch."""

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
    """The same of a machine: a client that showed one of its secrets."""

    token_id: TokenId
    client_id: ClientId
    digest: str

    @property
    def user_id(self) -> UserId:
        """Whose it is, for the index and the log: a client stands there where a user does."""
        return UserId(self.client_id)

    @property
    def secret_id(self) -> SecretId:
        """The secret that was shown; it stands where a session does."""
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


#: A person's or a machine's.
Token = AccessToken | MachineToken


def is_about(token: AccessToken, user: User) -> bool:
    """
    True if *token* was issued to *user* as they are now.

    A role that was not in ``ROLES`` when the token was issued is not in it; a role that the user lost
    since has raised the epoch.
    """
    issued = tuple(role for role in user.roles if role in BUILT_IN or role in token.roles)
    return user.id == token.user_id and user.epoch == token.epoch and issued == token.roles


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProfile(Rules):
    """What every token of this service has in common; ``lifetime_s`` and ``leeway_s`` in seconds."""

    lifetime_s: int
    machine_lifetime_s: int = 600
    #: False while readers of version 0.1.0 are there, which refuse a claim that they do not know.
    has_client_id: bool = True
    #: True where tokens say how their user has shown who they are.
    has_levels: bool = False
    #: No token names others.
    roles: RoleNames = field(default_factory=RoleNames)

    @property
    def longest_s(self) -> int:
        """No token that is issued now lives longer (seconds)."""
        return max(self.lifetime_s, self.machine_lifetime_s)


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """Issues access tokens with the key that signs now."""

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
        """A token of *user* for *session_id* that ends after its lifetime, or at *not_after* if sooner."""
        issued_at = int(now.timestamp())
        token = AccessToken(
            token_id=TokenId(new_id()),
            session_id=session_id,
            user_id=user.id,
            roles=self.profile.roles.shown(user.roles),
            epoch=user.epoch,
            issued_at=issued_at,
            # A validator without a leeway whose clock is a little behind takes it all the same.
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
        """A token of *client*, which has shown the secret *secret_id*, for *scopes*."""
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
    Verifies access tokens; says nothing of revocation.

    A signature that held is remembered by the whole text of its token, never whether the token lives, for
    the last *most* tokens; the memory goes with the key ring, so a removed key takes its tokens along.
    """

    def __init__(self, profile: TokenProfile, ring: Callable[[], KeyRing], *, most: int = REMEMBERED) -> None:
        self._profile = profile
        self._ring = ring
        self._most = most
        self._remembered: tuple[KeyRing, dict[str, Token]] = (ring(), {})
        #: For writers of the memory alone: a token that is remembered is found without it.
        self._lock = threading.Lock()

    def read(self, text: str, *, now: datetime) -> Token:
        """The token in *text*, valid at *now*; raises TokenInvalid for everything else."""
        token = self.read_expired(text, now=now)
        if now.timestamp() >= self.window_s(token)[1]:
            raise TokenInvalid("expired")
        return token

    def read_expired(self, text: str, *, now: datetime) -> Token:
        """The same, but its time may be over: good enough to end its session."""
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
        """From when on, and until when, *token* is in time: seconds since the epoch, the leeway included."""
        return token.window_s(self._profile.leeway_s)

    def recall(self, text: str, ring: KeyRing) -> Token | None:
        """The token in *text* if its signature is remembered to hold by *ring*; its time may be over."""
        known, remembered = self._remembered
        return remembered.get(text) if known is ring else None

    def _remember(self, remembered: dict[str, Token], text: str, token: Token) -> None:
        """Keep *token*, forgetting the oldest when the memory is full."""
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
    The digest of what is signed in the compact JWS *text*: header and payload as they are spelt there.

    Without the signature, which has several spellings: unused bits of its last character, and with ECDSA
    also (r, n - s).
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
