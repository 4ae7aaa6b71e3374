"""Driver errors in this library's words."""

from __future__ import annotations

import pytest
from redis import exceptions as driver

from authsvc.cache.errors import CacheMisuse, CacheUnavailable, HandshakeRefused, Reason, translate


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (driver.ConnectionError("Error 111 connecting to h:1. Connection refused."), "refused"),
        (driver.TimeoutError("Timeout reading from h:1"), "timeout"),
        (driver.BusyLoadingError("Redis is loading the dataset in memory"), "loading"),
        (driver.ReadOnlyError("You can't write against a read only replica."), "readonly"),
        (driver.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "oom"),
        (driver.ResponseError("OOM command not allowed when used memory > 'maxmemory'."), "oom"),
        (driver.ResponseError("MISCONF Errors writing to the AOF file: No space left"), "misconf"),
        (driver.ResponseError("NOREPLICAS Not enough good replicas to write."), "noreplicas"),
        (driver.ClusterDownError("The cluster is down"), "clusterdown"),
        (driver.MasterDownError("Link with MASTER is down"), "clusterdown"),
        (driver.ResponseError("MASTERDOWN Link with MASTER is down"), "clusterdown"),
        (driver.MovedError("3999 127.0.0.1:6381"), "clusterdown"),
        (driver.TryAgainError("Multiple keys request during rehashing of slot"), "clusterdown"),
        (driver.AuthenticationError("invalid username-password pair"), "denied"),
        (driver.AuthenticationWrongNumberOfArgsError("wrong number of arguments"), "denied"),
        (driver.NoPermissionError("User u has no permissions to run the 'get' command"), "denied"),
        (driver.ResponseError("NOAUTH Authentication required."), "denied"),
        (driver.ResponseError("ACL failure in script: User u has no permissions"), "denied"),
        (driver.ResponseError("unknown command 'FOO', with args beginning with: 'secret'"), "unsupported"),
        (driver.ResponseError("Unknown Redis command called from script script: 5bca"), "unsupported"),
        (driver.ResponseError("max daily request limit exceeded. Limit: 10000, Usage: 10000"), "other"),
        (driver.ResponseError("no upstream host"), "other"),
        (driver.ResponseError("DENIED Redis is running in protected mode"), "other"),
        (driver.ResponseError("BUSY Redis is busy running a script."), "busy"),
        (driver.MaxConnectionsError("Too many connections"), "exhausted"),
        (driver.InvalidResponse("Protocol Error: b'HTTP/1.1 400'"), "other"),
        (
            driver.ResponseError(
                "Error running script (call to f_1): @user_script:3: -OOM command not allowed"
            ),
            "oom",
        ),
        (
            driver.ResponseError("Error running script (call to f_1): @user_script: 3: -READONLY You"),
            "readonly",
        ),
    ],
)
def test_what_means_not_now_is_unavailable(error, reason):
    """By class or by the first word of the message, each refusal has a reason fit for a metric."""
    translated = translate(error)

    assert isinstance(translated, CacheUnavailable)
    assert translated.reason == reason


@pytest.mark.parametrize(
    "error",
    [
        driver.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        driver.ResponseError("wrong number of arguments for 'get' command"),
        driver.ResponseError("value is not an integer or out of range"),
        driver.ResponseError("user_script:1: Script attempted to access nonexistent global variable"),
        driver.ResponseError("BUSYGROUP Consumer Group name already exists"),
        driver.DataError("Invalid input of type: 'NoneType'."),
    ],
)
def test_a_bug_is_no_outage(error):
    """A command that can never work is a misuse, which nobody should answer with a fallback."""
    assert isinstance(translate(error), CacheMisuse)


def test_a_refused_handshake_is_never_a_misuse():
    """A server without HELLO, or without the database asked for, cannot be used at all."""
    unknown, denied = HandshakeRefused(), HandshakeRefused()
    unknown.__cause__ = driver.ResponseError("unknown command 'HELLO'")
    denied.__cause__ = driver.NoPermissionError("no permissions to run the 'select' command")

    reasons = [str(translate(error)) for error in (unknown, denied)]

    assert reasons == ["unsupported", "denied"]


@pytest.mark.parametrize(
    "error",
    [
        driver.ConnectionError("Error connecting to redis://user:hunter2@host"),
        driver.ResponseError("unknown command 'hunter2'"),
    ],
)
def test_messages_repeat_nothing(error):
    """Neither text nor repr carries what the driver said."""
    translated = translate(error)

    assert "hunter2" not in f"{translated} {translated!r}"


def test_only_known_reasons_exist():
    """A metric's label is an enumeration."""
    assert CacheUnavailable("timeout").reason is Reason.TIMEOUT
    with pytest.raises(ValueError, match="weather"):
        CacheUnavailable("weather")
