"""The verifier: checks tokens locally, with revocations from the feed."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Self

from authsvc.verifier.claims import Acr, Claims, MachineClaims, Requirement, Rules, bearer_token, read
from authsvc.verifier.errors import (
    FeedStale,
    RoleMissing,
    ScopeMissing,
    StepUpRequired,
    TokenInvalid,
    TokenMissing,
    Unavailable,
    WrongKind,
)
from authsvc.verifier.feed import MOST_WAIT_S, Clocks, Feed, View
from authsvc.verifier.introspection import Introspection
from authsvc.verifier.keys import KeySet
from authsvc.verifier.options import Options, WhenStale
from authsvc.verifier.transport import Answer, Connection, Origin

JWKS_PATH: Final = "/.well-known/jwks.json"
#: The largest wait as a share of the staleness limit, so that there is time to notice a lost answer and ask
#: again.
WAIT_SHARE: Final = 1 / 3


class _Process:
    """The state of one process: connections, keys, a feed with its thread."""

    def __init__(self, options: Options, clocks: Clocks, on_lag: Callable[[float], None] | None) -> None:
        origin = options.origin()
        wait_s = min(MOST_WAIT_S, options.max_staleness_s * WAIT_SHARE)
        self.born_s = clocks.monotonic_s()
        self.feed = Feed(Connection(origin), clocks, wait_s=wait_s, on_lag=on_lag)
        self.keys = KeySet(
            lambda: _fetch_keys(origin, options.deadline_s),
            clocks.monotonic_s,
            refetch_s=options.refetch_keys_s,
        )
        self.introspection = Introspection(
            origin, places=options.introspections, deadline_s=options.deadline_s
        )

    def close(self) -> None:
        """Stop the feed and close connections."""
        self.feed.close()
        self.introspection.close()


class Verifier:
    """
    Verifies access tokens in this process; make one per service, at import if you like.

    Nothing is connected or started before the first check, and each forked process starts with new state.
    *wall_s* and *monotonic_s* are clocks; *on_lag* is called after each answer of the feed with its age in
    seconds: the time since the service read its log for it.
    """

    def __init__(
        self,
        options: Options,
        *,
        wall_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
        on_lag: Callable[[float], None] | None = None,
    ) -> None:
        self._options = options
        self._clocks = Clocks(wall_s=wall_s, monotonic_s=monotonic_s)
        self._on_lag = on_lag
        self._rules = Rules(
            issuer=options.issuer,
            audience=options.audience,
            lifetime_s=options.lifetime_s,
            machine_lifetime_s=options.machine_lifetime_s,
            leeway_s=options.leeway_s,
        )
        self._is_closed = False
        self._making = threading.Lock()
        self._process: _Process | None = None
        os.register_at_fork(after_in_child=partial(_after_fork, weakref.ref(self)))

    def authenticate(
        self,
        authorization: str | None,
        roles: Iterable[str] = (),
        *,
        acr: str | None = None,
        max_age_s: int | None = None,
    ) -> Claims:
        """
        The same as :meth:`verify` for the value of an ``Authorization`` header.

        Raises:
            TokenMissing: no header, another scheme, or a scheme without a token.
        """
        return self.verify(presented(authorization), roles, acr=acr, max_age_s=max_age_s)

    def verify(
        self, token: str, roles: Iterable[str] = (), *, acr: str | None = None, max_age_s: int | None = None
    ) -> Claims:
        """
        The claims of *token* if it is a person's, it is good, and its user has all of *roles*.

        With *acr* (``aal1``, ``aal2`` or ``phr``) the user must have logged in so strongly, or more so; with
        *max_age_s* they must have proven who they are within so many seconds.

        Signature and claims are checked here, revocation by what the feed has told: no request is made,
        but for keys that are missing, and for an introspection where that is the policy.

        Raises:
            TokenInvalid: forged, expired, revoked, its session over or its user changed.
            WrongKind: good, and a machine's.
            RoleMissing: good, without one of *roles*.
            StepUpRequired: good, without what *acr* or *max_age_s* asks for.
            KeysUnknown: the key to verify with cannot be fetched now.
            FeedStale, Unavailable: whether it was revoked cannot be said now.
        """
        wanted = _requirement(acr, max_age_s)
        claims = self._good(token)
        if isinstance(claims, MachineClaims):
            raise WrongKind("a machine's token")
        self._require(claims, frozenset(roles), wanted)
        return claims

    def verify_machine(self, token: str, scopes: Iterable[str] = ()) -> MachineClaims:
        """
        The claims of *token* if it is a machine's, it is good, and has all of *scopes*.

        Raises what :meth:`verify` does, and ScopeMissing: good, without one of *scopes*.
        """
        claims = self._good(token)
        if not isinstance(claims, MachineClaims):
            raise WrongKind("a person's token")
        _require_scopes(claims, frozenset(scopes))
        return claims

    def verify_any(
        self,
        token: str,
        roles: Iterable[str] = (),
        scopes: Iterable[str] = (),
        *,
        acr: str | None = None,
        max_age_s: int | None = None,
    ) -> Claims | MachineClaims:
        """
        The claims of *token* if it is good: with all of *roles* a person's, with all of *scopes* a machine's.

        With *roles* alone no machine is accepted, with *scopes* alone no person.  Raises what
        :meth:`verify` and :meth:`verify_machine` do.
        """
        wanted, roles, scopes = _requirement(acr, max_age_s), frozenset(roles), frozenset(scopes)
        claims = self._good(token)
        if isinstance(claims, MachineClaims):
            if roles and not scopes:
                raise WrongKind("a machine's token")
            _require_scopes(claims, scopes)
        else:
            if scopes and not roles:
                raise WrongKind("a person's token")
            self._require(claims, roles, wanted)
        return claims

    def wait_ready(self, timeout_s: float) -> bool:
        """Start, and wait until the feed has been read once; False if that takes longer."""
        return self._here().feed.caught_up.wait(timeout_s)

    @property
    def lag_s(self) -> float:
        """The largest age in seconds of a revocation that this process may not know yet; inf at first."""
        here = self._process
        return here.feed.age_s if here else math.inf

    def close(self) -> None:
        """Stop; checks raise Unavailable from now on."""
        with self._making:
            self._is_closed = True
            here, self._process = self._process, None
        if here is not None:
            here.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _good(self, token: str) -> Claims | MachineClaims:
        """The claims of *token*, which is not revoked."""
        here = self._here()
        claims = read(token, self._rules, here.keys.find, now_s=self._clocks.wall_s())
        self._refuse_if_revoked(here, token, claims)
        return claims

    def _require(self, claims: Claims, roles: frozenset[str], wanted: Requirement) -> None:
        if not roles <= set(claims.roles):
            raise RoleMissing("a role is missing")
        if not wanted.is_met_by(claims.level, self._clocks.wall_s()):
            raise StepUpRequired(wanted)

    def _begin_anew(self) -> None:
        """
        Reset the state: in a forked child the parent's threads are missing, and locks may be held for ever.
        """
        self._making = threading.Lock()
        self._process = None

    def _here(self) -> _Process:
        """The state of this process, with its feed running."""
        return self._process or self._make()

    def _make(self) -> _Process:
        with self._making:
            if self._is_closed:
                raise Unavailable("the verifier is closed")
            if self._process is None:
                made = _Process(self._options, self._clocks, self._on_lag)
                made.feed.start()
                self._process = made
            return self._process

    def _refuse_if_revoked(self, here: _Process, token: str, claims: Claims | MachineClaims) -> None:
        """Raise unless *token* is known to be not revoked."""
        # Read once, because the known revocations and their age belong together.
        view = here.feed.view or self._first_view(here)
        if view is not None and view.known.is_dead(claims):
            raise TokenInvalid("revoked")
        if view is not None and self._clocks.monotonic_s() - view.as_of_s <= self._options.max_staleness_s:
            return
        if self._options.when_stale is WhenStale.REFUSE:
            raise FeedStale(f"revocations are {here.feed.age_s:.1f} s old")
        if not here.introspection.is_active(token, claims):
            raise TokenInvalid("revoked")

    def _first_view(self, here: _Process) -> View | None:
        left_s = here.born_s + self._options.start_within_s - self._clocks.monotonic_s()
        here.feed.caught_up.wait(max(0.0, left_s))
        return here.feed.view


def presented(authorization: str | None) -> str:
    """The token in the value of an ``Authorization`` header; raises TokenMissing."""
    token = bearer_token(authorization)
    if token is None:
        raise TokenMissing("no bearer token")
    return token


def _requirement(acr: str | None, max_age_s: int | None) -> Requirement:
    return Requirement(acr=Acr(acr) if acr is not None else None, max_age_s=max_age_s)


def _require_scopes(claims: MachineClaims, scopes: frozenset[str]) -> None:
    if not scopes <= set(claims.scopes):
        raise ScopeMissing("a scope is missing")


def _after_fork(reference: weakref.ref[Verifier]) -> None:
    verifier = reference()
    if verifier is not None:
        verifier._begin_anew()  # noqa: SLF001 - a part of the class, which must not keep it alive


def _fetch_keys(origin: Origin, deadline_s: float) -> Answer:
    connection = Connection(origin)
    try:
        return connection.request("GET", JWKS_PATH, deadline_s=deadline_s, with_secret=False)
    finally:
        connection.close()
