"""Tokens of machines: registered clients that call other services in their own name (RFC 6749 §4.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.client_authentication import Caller
from authsvc.domain.clients import Client, SecretId
from authsvc.domain.errors import InvalidScope, StoreUnavailable
from authsvc.domain.ratelimits import Limits, Rule
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.tokens.access import MachineToken, TokenSigner
from authsvc.domain.values.clocks import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStanding:
    """
    The client of a token and its secret, as they are in SQL now; *is_revoked* refers to the token itself.
    """

    client: Client
    is_revoked: bool

    def is_good_for(self, token: MachineToken) -> bool:
        """True if *token* is valid for the client as it is now."""
        is_current = self.client.epoch == token.epoch and set(token.scopes) <= set(self.client.scopes)
        return is_current and not self.is_revoked


class MachineTokenStore(Protocol):
    """What SQL knows of the tokens of machines; raises StoreUnavailable."""

    def standing(self, token: MachineToken, /) -> MachineStanding | None:
        """The client of *token*, in one query; None if it or the secret is deleted."""

    def revoke(self, token: MachineToken, /) -> Committed[None]:
        """Add the revocation of this one token to the log; returns the existing entry if there is one."""


class IssuedMachineTokens(Protocol):
    """The record in Redis of issued tokens."""

    def remember_machine(self, token: MachineToken) -> None:
        """Note *token* as issued; raises StoreUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMachineToken:
    """The answer of the token endpoint (RFC 6749 §5.1); the lifetime in seconds."""

    access_token: str = field(repr=False)
    expires_in: int
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTokens:
    """Issues tokens to clients, and revokes single tokens."""

    signer: TokenSigner
    store: MachineTokenStore
    issued: IssuedMachineTokens
    revocations: Revocations
    limits: Limits
    audit: AuditLog
    clock: Clock

    def issue(self, caller: Caller, scope: str | None) -> NewMachineToken:
        """
        Issue a token for the scopes in *scope*, or for all scopes of the client.

        Raises:
            InvalidScope: the client lacks one of them.
            RateLimited: too many tokens of this client.
            StoreUnavailable: SQL is away, so the secret cannot be verified; or there is no signing key.
        """
        if caller.secret_id is None:
            raise StoreUnavailable("sql: found away")
        self.limits.take(Rule.TOKEN_CLIENT, caller.client.id)
        scopes = _granted(caller.client, scope)
        text, token = self.signer.issue_to_machine(caller.client, caller.secret_id, scopes, now=self.clock())
        self._note(token, caller.secret_id)
        return NewMachineToken(
            access_token=text, expires_in=token.expires_at - token.issued_at, scopes=scopes
        )

    def revoke(self, token: MachineToken) -> Outcome[None]:
        """Revoke only *token*, no other token of its client. An expired token needs nothing."""
        if token.window_s(self.signer.profile.leeway_s)[1] <= self.clock().timestamp():
            return Outcome(None, is_complete=True)
        return self.revocations.publish(self.store.revoke(token))

    def _note(self, token: MachineToken, secret_id: SecretId) -> None:
        try:
            self.issued.remember_machine(token)
        except StoreUnavailable:
            # Nothing is lost: the first check of this token asks SQL and writes the record.
            self.audit.record(Event(Action.TOKEN_UNRECORDED, actor_id=token.client_id, session_id=secret_id))


def _granted(client: Client, scope: str | None) -> tuple[str, ...]:
    """The scopes of *client* that *scope* names, or all; raises InvalidScope for any other text."""
    if scope is None:
        return client.scopes
    wanted = scope.split(" ")
    if not set(wanted) <= set(client.scopes):
        raise InvalidScope
    return tuple(one for one in client.scopes if one in wanted)
