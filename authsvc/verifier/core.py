"""The verifier: tokens checked here and now, revocations known from the feed."""

from __future__ import annotations

import math
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from authsvc.verifier.claims import Acr, Claims, Requirement, Rules, bearer_token, read
from authsvc.verifier.errors import (
    FeedStale,
    RoleMissing,
    StepUpRequired,
    TokenInvalid,
    TokenMissing,
    Unavailable,
)
from authsvc.verifier.feed import MOST_WAIT_S, Clocks, Feed, View
from authsvc.verifier.introspection import Introspection
from authsvc.verifier.keys import KeySet
from authsvc.verifier.transport import Answer, Connection, Origin

#: What the variables of :meth:`Options.from_env` begin with.
PREFIX: Final = "AUTHSVC_VERIFIER_"
JWKS_PATH: Final = "/.well-known/jwks.json"
#: Staleness below this (seconds) would be reached between two answers of a healthy service.
LEAST_STALENESS_S: Final = 1.0
#: Of the staleness, the part that one wait may take: an answer that never comes is noticed, and asked again.
WAIT_SHARE: Final = 1 / 3


class WhenStale(Enum):
    """What becomes of a good token while revocations are not known recently enough."""

    #: Raise FeedStale.
    REFUSE = "refuse"
    #: Ask the service about each; raise Unavailable where it does not answer.
    INTROSPECT = "introspect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    Where the service is, what its tokens must say, and how sure one has to be.

    ``url`` is where the service is reached, ``issuer`` and ``audience`` are its ``JWT_ISSUER`` and
    ``JWT_AUDIENCE``; a client is registered with ``authsvc clients create``.
    """

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    issuer: str
    audience: str
    #: The longest life of a token (seconds), the service's ``REDIS_AUTH_TOKEN_TTL``; None: not checked.
    lifetime_s: int | None = None
    #: How far clocks may be apart (seconds).
    leeway_s: int = 5
    #: The oldest knowledge of revocations that a yes may rest on (seconds).
    max_staleness_s: float = 10.0
    when_stale: WhenStale = WhenStale.REFUSE
    #: How long one request to the service may take (seconds).
    deadline_s: float = 2.0
    #: How long the first checks of a process wait for the feed (seconds, from its start).
    start_within_s: float = 2.0
    #: A key id that the service does not publish is not looked for again within this time (seconds).
    refetch_keys_s: float = 10.0
    #: Introspections at a time.
    introspections: int = 8
    #: None: the system's certificates, host names checked.
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        if self.max_staleness_s < LEAST_STALENESS_S:
            raise ValueError(f"max_staleness_s must be at least {LEAST_STALENESS_S:g}")
        # It refuses an address that is none.
        self.origin()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """
        The options that *environ* holds under ``AUTHSVC_VERIFIER_*``, each under its name in upper case.

        ``CLIENT_SECRET_FILE`` is a file with the secret, ``CA_FILE`` a PEM file of the certificates to trust.
        A variable that is set to nothing counts as not set.

        Raises:
            ValueError: with every variable that is missing, unknown or wrong, and the value of none.
        """
        given = {name: text for name, text in environ.items() if name.startswith(PREFIX) and text}
        problems = [f"{name} is unknown" for name in given if name not in _VARIABLES]
        values: dict[str, Any] = {}
        for name in given.keys() & _VARIABLES.keys():
            option, read, kind = _VARIABLES[name]
            try:
                values[option] = read(given[name])
            except (ValueError, OSError):
                problems.append(f"{name} is not {kind}")
        problems += [f"{name} and {name}_FILE are both set" for name in given if f"{name}_FILE" in given]
        required = {one.name for one in fields(cls) if one.default is MISSING}
        problems += [f"{PREFIX}{option.upper()} is missing" for option in required - values.keys()]
        if problems:
            raise ValueError("; ".join(sorted(problems)))
        return cls(**values)

    def origin(self) -> Origin:
        """Where requests go, and in whose name."""
        return Origin(url=self.url, client_id=self.client_id, client_secret=self.client_secret, tls=self.tls)


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError("not a length of time")
    return number


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError("not a number without a sign")
    return int(text)


def _secret(path: str) -> str:
    secret = Path(path).read_text(encoding="utf-8").removesuffix("\n")
    if not secret:
        raise ValueError("empty")
    return secret


def _trusting(path: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=path)


#: Variables: the option of each, how it is read, and what a wrong value is not.
_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], Any], str]]] = {
    PREFIX + "URL": ("url", str, "a text"),
    PREFIX + "CLIENT_ID": ("client_id", str, "a text"),
    PREFIX + "CLIENT_SECRET": ("client_secret", str, "a text"),
    PREFIX + "CLIENT_SECRET_FILE": ("client_secret", _secret, "a file that holds a secret"),
    PREFIX + "ISSUER": ("issuer", str, "a text"),
    PREFIX + "AUDIENCE": ("audience", str, "a text"),
    PREFIX + "LIFETIME_S": ("lifetime_s", _count, "a whole number"),
    PREFIX + "LEEWAY_S": ("leeway_s", _count, "a whole number"),
    PREFIX + "MAX_STALENESS_S": ("max_staleness_s", _seconds, "a positive number"),
    PREFIX + "WHEN_STALE": ("when_stale", WhenStale, "refuse or introspect"),
    PREFIX + "DEADLINE_S": ("deadline_s", _seconds, "a positive number"),
    PREFIX + "START_WITHIN_S": ("start_within_s", _seconds, "a positive number"),
    PREFIX + "REFETCH_KEYS_S": ("refetch_keys_s", _seconds, "a positive number"),
    PREFIX + "INTROSPECTIONS": ("introspections", _count, "a whole number"),
    PREFIX + "CA_FILE": ("tls", _trusting, "a PEM file that can be read"),
}


class _Process:
    """What one process has of its own: connections, keys, a feed with its thread."""

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
        """Stop the feed and let connections go."""
        self.feed.close()
        self.introspection.close()


class Verifier:
    """
    Verifies access tokens in this process; make one per service, at import if you like.

    Nothing is connected or started before the first check, and each process that is forked later begins
    anew.  *wall_s* and *monotonic_s* are clocks; *on_lag* hears after each answer of the feed how many
    seconds ago the service looked at its log for it.
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
        token = bearer_token(authorization)
        if token is None:
            raise TokenMissing("no bearer token")
        return self.verify(token, roles, acr=acr, max_age_s=max_age_s)

    def verify(
        self, token: str, roles: Iterable[str] = (), *, acr: str | None = None, max_age_s: int | None = None
    ) -> Claims:
        """
        The claims of *token* if it is good and its user has all of *roles*.

        With *acr* (``aal1``, ``aal2`` or ``phr``) the user must have logged in so strongly, or more so; with
        *max_age_s* they must have proven who they are within so many seconds.

        Signature and claims are checked here, revocation by what the feed has told: no request is made,
        but for keys that are missing, and for an introspection where that is the policy.

        Raises:
            TokenInvalid: forged, expired, revoked, its session over or its user changed.
            RoleMissing: good, without one of *roles*.
            StepUpRequired: good, without what *acr* or *max_age_s* asks for.
            KeysUnknown: the key to verify with cannot be fetched now.
            FeedStale, Unavailable: whether it was revoked cannot be said now.
        """
        wanted = Requirement(acr=Acr(acr) if acr is not None else None, max_age_s=max_age_s)
        here = self._here()
        claims = read(token, self._rules, here.keys.find, now_s=self._clocks.wall_s())
        self._refuse_if_revoked(here, token, claims)
        if not frozenset(roles) <= set(claims.roles):
            raise RoleMissing("a role is missing")
        if not wanted.is_met_by(claims.level, self._clocks.wall_s()):
            raise StepUpRequired(wanted)
        return claims

    def wait_ready(self, timeout_s: float) -> bool:
        """Start, and wait until the feed has been read once; False if that takes longer."""
        return self._here().feed.caught_up.wait(timeout_s)

    @property
    def lag_s(self) -> float:
        """For how many seconds at most a revocation may have gone unheard in this process; inf at first."""
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

    def _begin_anew(self) -> None:
        """Have nothing again: in a forked child the parent's thread is missing, and its locks may be held."""
        self._making = threading.Lock()
        self._process = None

    def _here(self) -> _Process:
        """What this process has, its feed running."""
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

    def _refuse_if_revoked(self, here: _Process, token: str, claims: Claims) -> None:
        """Raise unless *token* is known to be alive."""
        # One read: knowledge and its age belong together.
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
