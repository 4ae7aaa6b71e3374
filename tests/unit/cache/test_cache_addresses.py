"""Where a Redis is."""

from __future__ import annotations

import pytest

from authsvc.cache import RedisAddress


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress(host="h")),
        ("redis://h:7000/3", RedisAddress(host="h", port=7000, db=3)),
        ("redis://h/", RedisAddress(host="h")),
        ("rediss://h", RedisAddress(host="h", tls=True)),
        ("redis://:p%40ss@h", RedisAddress(host="h", password="p@ss")),
        ("redis://u:p%2Fq%23@[::1]:7", RedisAddress(host="::1", port=7, username="u", password="p/q#")),
    ],
)
def test_a_url_is_read(url, address):
    """Scheme, user, password, host, port and database are taken from it, percent-decoded."""
    assert RedisAddress.from_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://hunter2@h",
        "hunter2",
        "redis://",
        "redis://:hunter2@",
        "redis://:hunter2@h:port",
        "redis://:hunter2@h:99999",
        "redis://:hunter2@h/users",
        "redis://:hunter2@h/-1",
        "redis://:hunter2@h/²",
        "redis://:hunter2@h/0?socket_timeout=60",
        "redis://:hunter2#x@h/0",
        "redis://:hunter2/x@h/0",
        "unix:///hunter2",
    ],
)
def test_a_url_that_says_something_else_is_refused(url):
    """An option that nobody would read, or a password that was not encoded, is not passed over."""
    with pytest.raises(ValueError, match="Redis URL") as refusal:
        RedisAddress.from_url(url)

    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def test_a_password_is_not_shown():
    """The repr of an address may be logged."""
    assert "hunter2" not in repr(RedisAddress(host="h", password="hunter2"))
