"""Options of a verifier, set in code or in environment variables."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

from authsvc.verifier.transport import Origin

#: Prefix of the variables of :meth:`Options.from_env`.
PREFIX: Final = "AUTHSVC_VERIFIER_"
#: Smallest staleness limit (seconds): even with a healthy service, data gets this old between two answers.
LEAST_STALENESS_S: Final = 1.0


class WhenStale(Enum):
    """How to treat a valid token while the known revocations are too old."""

    #: Raise FeedStale.
    REFUSE = "refuse"
    #: Introspect each token; raise Unavailable if the service does not answer.
    INTROSPECT = "introspect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    The service's address, the expected claims, and the staleness limit.

    ``url`` is where the service is reached, ``issuer`` and ``audience`` are its ``JWT_ISSUER`` and
    ``JWT_AUDIENCE``; a client is registered with ``authsvc clients create``.
    """

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    issuer: str
    audience: str
    #: The longest life of a person's token (seconds), the service's ``REDIS_AUTH_TOKEN_TTL``; None: any.
    lifetime_s: int | None = None
    #: The same for a machine's token, the service's ``MACHINE_TOKEN_TTL``.
    machine_lifetime_s: int | None = None
    #: Largest difference between clocks (seconds).
    leeway_s: int = 5
    #: Staleness limit: largest age of the known revocations when a token is accepted (seconds).
    max_staleness_s: float = 10.0
    when_stale: WhenStale = WhenStale.REFUSE
    #: Time limit of one request to the service (seconds).
    deadline_s: float = 2.0
    #: How long the first checks of a process wait for the feed (seconds, from its start).
    start_within_s: float = 2.0
    #: A key id that the service does not publish is not requested again within this time (seconds).
    refetch_keys_s: float = 10.0
    #: Largest number of concurrent introspections.
    introspections: int = 8
    #: None: the system's certificates, host names checked.
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        if self.max_staleness_s < LEAST_STALENESS_S:
            raise ValueError(f"max_staleness_s must be at least {LEAST_STALENESS_S:g}")
        # Refuses an invalid URL.
        self.origin()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """
        The options from the variables ``AUTHSVC_VERIFIER_*`` in *environ*, each under its name in upper case.

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


#: Variables: the option of each, how it is read, and the kind of value for the error message.
_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], Any], str]]] = {
    PREFIX + "URL": ("url", str, "a text"),
    PREFIX + "CLIENT_ID": ("client_id", str, "a text"),
    PREFIX + "CLIENT_SECRET": ("client_secret", str, "a text"),
    PREFIX + "CLIENT_SECRET_FILE": ("client_secret", _secret, "a file that holds a secret"),
    PREFIX + "ISSUER": ("issuer", str, "a text"),
    PREFIX + "AUDIENCE": ("audience", str, "a text"),
    PREFIX + "MACHINE_LIFETIME_S": ("machine_lifetime_s", _count, "a whole number"),
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
