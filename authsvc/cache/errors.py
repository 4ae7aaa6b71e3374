"""
What can go wrong between a service and its Redis.

CacheError ├── CacheUnavailable no answer, or a refusal for now (reason) └── CacheMisuse the command itself is
wrong: a bug on our side, not an outage

An error reply is a misuse only where its words say so; all others, those of proxies and of hosted services
included, are an outage.

Messages hold a reason and nothing else: commands, addresses and values stay in the driver's error,
which is the ``__cause__``.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from enum import StrEnum
from queue import Empty
from typing import Final

from redis import exceptions as driver


class Reason(StrEnum):
    """Why Redis could not be used; short and finite, so that it may label a metric."""

    REFUSED = "refused"  # refused, reset, closed
    UNRESOLVED = "unresolved"  # the name of the server cannot be resolved
    TLS = "tls"  # no TLS there, or a certificate that is not trusted
    TIMEOUT = "timeout"
    LOADING = "loading"
    READONLY = "readonly"
    OOM = "oom"
    MISCONF = "misconf"
    NOREPLICAS = "noreplicas"
    CLUSTERDOWN = "clusterdown"
    DENIED = "denied"  # wrong or missing password, or an ACL that forbids the command
    BUSY = "busy"  # a script blocks the server
    UNSUPPORTED = "unsupported"  # a command that the server does not have, or has under another name
    OPEN = "open"  # the circuit breaker's: nothing was sent
    EXHAUSTED = "exhausted"  # the connection pool's: nothing was sent
    OTHER = "other"


class CacheError(Exception):
    """Root of every error of this library."""


class CacheUnavailable(CacheError):
    """Redis did not do what was asked, and may do it later; ``reason`` is one of :class:`Reason`."""

    def __init__(self, reason: str) -> None:
        self.reason = Reason(reason)
        super().__init__(self.reason.value)


class CacheMisuse(CacheError):
    """The server understood and refused: wrong type, wrong syntax, a script that fails."""


class HandshakeRefused(driver.ConnectionError):
    """The server let us connect and then refused HELLO, AUTH or SELECT; the refusal is the cause."""


class SentinelsFailed(driver.ConnectionError):
    """No Sentinel named a primary: the cause is why the first did not answer, None if all answered."""


class ServerAvoided(driver.ConnectionError):
    """The circuit breaker of the server that owns the keys is open: nothing was sent."""


class ServerFailed(driver.RedisError):
    """One server of a cluster did not do what was asked; its own circuit breaker has heard of it."""

    def __init__(self, error: driver.RedisError) -> None:
        super().__init__()
        self.error = error


_BY_CLASS: Final[tuple[tuple[tuple[type[Exception], ...], Reason], ...]] = (
    ((ServerAvoided,), Reason.OPEN),
    ((driver.MaxConnectionsError,), Reason.EXHAUSTED),
    ((driver.BusyLoadingError,), Reason.LOADING),
    ((driver.AuthenticationError, driver.AuthorizationError), Reason.DENIED),
    ((driver.ExternalAuthProviderError, driver.AuthenticationWrongNumberOfArgsError), Reason.DENIED),
    ((driver.NoPermissionError,), Reason.DENIED),
    ((driver.OutOfMemoryError,), Reason.OOM),
    ((driver.ReadOnlyError,), Reason.READONLY),
    ((driver.ClusterDownError, driver.TryAgainError, driver.AskError), Reason.CLUSTERDOWN),
    ((ssl.SSLError,), Reason.TLS),
    ((socket.gaierror,), Reason.UNRESOLVED),
    ((driver.TimeoutError,), Reason.TIMEOUT),
    ((driver.ConnectionError,), Reason.REFUSED),
)

# Errors for which the driver has no class, or that it hides in the error of a script (the last two
# alternatives: servers before 7, and an ACL that denies a command inside a script).
_REFUSAL: Final = re.compile(
    r"(?:ERR )?(?:Error running script .*?: -?)?"
    r"(OOM|READONLY|MISCONF|NOREPLICAS|CLUSTERDOWN|MASTERDOWN|LOADING|BUSY|NOPERM|NOAUTH|WRONGPASS"
    r"|ACL failure in script)\b"
)
_UNSUPPORTED: Final = re.compile(r"unknown (?:redis )?(?:sub)?command\b", re.IGNORECASE)
# What a server says to a command that can never work, as the driver hands it on: mostly without its "ERR".
_MISUSE: Final = re.compile(
    r"(?:ERR )?(?:WRONGTYPE|BUSYGROUP|NOGROUP|NOSCRIPT|EXECABORT|wrong number of arguments|syntax error"
    r"|invalid expire time|no such key|index out of range|(?:hash )?value is not|min or max is not"
    r"|increment or decrement|Number of keys)|.*\bscript\b",
    re.IGNORECASE | re.DOTALL,
)
_BY_WORD: Final = {
    "MASTERDOWN": Reason.CLUSTERDOWN,
    "NOPERM": Reason.DENIED,
    "NOAUTH": Reason.DENIED,
    "WRONGPASS": Reason.DENIED,
    "ACL failure in script": Reason.DENIED,
}


def translate(error: driver.RedisError) -> CacheError:
    """Return *error* in this library's words; raise the result ``from`` *error*."""
    if isinstance(error, ServerFailed):
        return translate(error.error)
    if isinstance(error, HandshakeRefused):
        return CacheUnavailable(_reason(error.__cause__) or Reason.OTHER)
    if isinstance(error, SentinelsFailed):
        return CacheUnavailable(_reason(error.__cause__ or error) or Reason.OTHER)
    if is_exhaustion(error):
        return CacheUnavailable(Reason.EXHAUSTED)
    reason = _reason(error)
    if reason is None and is_misuse(error):
        return CacheMisuse(type(error).__name__)
    return CacheUnavailable(reason or Reason.OTHER)


def is_misuse(error: driver.RedisError) -> bool:
    """Return whether *error* says of the command that it can never work."""
    if isinstance(error, driver.DataError | driver.ClusterCrossSlotError | driver.NoScriptError):
        return True
    return isinstance(error, driver.ResponseError) and _MISUSE.match(str(error)) is not None


def is_exhaustion(error: driver.RedisError) -> bool:
    """Return whether *error* is how the driver's blocking pool says that all connections are in use."""
    return isinstance(error.__context__, Empty)


def _reason(error: BaseException | None) -> Reason | None:
    causes = tuple(_with_causes(error))
    for classes, reason in _BY_CLASS:
        if any(isinstance(cause, classes) for cause in causes):
            return reason
    found = _REFUSAL.match(str(error))
    if found is not None:
        word = found.group(1)
        return _BY_WORD.get(word) or Reason(word.lower())
    return Reason.UNSUPPORTED if _UNSUPPORTED.search(str(error)) else None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error*, and what the system said to the driver, which repeats it as a text alone."""
    if error is not None:
        yield error
        if isinstance(error, driver.ConnectionError) and isinstance(error.__context__, OSError):
            yield error.__context__
