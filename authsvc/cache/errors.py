"""
Errors between a service and its Redis.

CacheError ├── CacheUnavailable no answer, or a refusal for now (reason) └── CacheMisuse the command itself is
wrong: a bug on our side, not an outage

An error reply is a misuse only if its text is a known one; all others, including those of proxies and hosted
services, are an outage. Messages contain only a reason: commands, addresses and values are in the driver's
error, the ``__cause__``.
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
    """Why Redis could not be used; a short, fixed set of words, usable as labels of a metric."""

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
    """Base of all errors of this library."""


class CacheUnavailable(CacheError):
    """Redis did not execute the command, and may do so later; ``reason`` is one of :class:`Reason`."""

    def __init__(self, reason: str) -> None:
        self.reason = Reason(reason)
        super().__init__(self.reason.value)


class CacheMisuse(CacheError):
    """The server rejected the command itself: wrong type, wrong syntax, a failing script."""


class HandshakeRefused(driver.ConnectionError):
    """The server accepted the connection, then rejected HELLO, AUTH or SELECT; its error is the cause."""


class SentinelsFailed(driver.ConnectionError):
    """
    No Sentinel named a primary. The cause is the error of the first that did not answer; None if all
    answered.
    """


class ServerAvoided(driver.ConnectionError):
    """The circuit breaker of the server that owns the keys is open: nothing was sent."""


class ServerFailed(driver.RedisError):
    """One server of a cluster failed; its own circuit breaker has counted this."""

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

# Errors without a class in the driver, or wrapped by it in the error of a script (the last two
# alternatives: servers before 7, and an ACL that denies a command inside a script).
_REFUSAL: Final = re.compile(
    r"(?:ERR )?(?:Error running script .*?: -?)?"
    r"(OOM|READONLY|MISCONF|NOREPLICAS|CLUSTERDOWN|MASTERDOWN|LOADING|BUSY|NOPERM|NOAUTH|WRONGPASS"
    r"|ACL failure in script)\b"
)
_UNSUPPORTED: Final = re.compile(r"unknown (?:redis )?(?:sub)?command\b", re.IGNORECASE)
# Replies to commands that can never succeed, as the driver passes them on: mostly without "ERR".
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
    """Return *error* as an error of this library; raise the result ``from`` *error*."""
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
    """Return whether *error* means that the command can never succeed."""
    if isinstance(error, driver.DataError | driver.ClusterCrossSlotError | driver.NoScriptError):
        return True
    return isinstance(error, driver.ResponseError) and _MISUSE.match(str(error)) is not None


def is_exhaustion(error: driver.RedisError) -> bool:
    """
    Return whether *error* is the one that the driver's blocking pool raises if all connections are in use.
    """
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
    """Yield *error* and its causes: the driver repeats an error of the system only as text."""
    if error is not None:
        yield error
        if isinstance(error, driver.ConnectionError) and isinstance(error.__context__, OSError):
            yield error.__context__
