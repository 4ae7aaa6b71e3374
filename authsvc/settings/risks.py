"""Weak values, which production refuses, and risky ones, which are logged as warnings at the start."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from authsvc.settings.declaration import variables_of
from authsvc.settings.kinds import MIN_SECRET_BYTES, Secret
from authsvc.settings.reader import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authsvc.settings.accounts import LimitSettings, TokenSettings
    from authsvc.settings.infrastructure import HttpSettings, RedisSettings
    from authsvc.settings.reader import Reader

#: Prefixes of sample secrets; a test checks that all samples in the docs have one.
_PLACEHOLDER = re.compile(r"change[-_ ]?me|replace[-_ ]?me|placeholder", re.IGNORECASE)
#: Passwords that the docs print in examples of URLs.
_SAMPLES = frozenset({"password"})
_URL_PASSWORD = re.compile(r"[a-z]+://[^:@/]*:([^@]*)@")
#: Without this limit a known device counts like an unknown one, so logins stay limited.
_HARMLESS = "RATE_LIMIT_LOGIN_DEVICE"
_MUST_BE_STRONG = ("TOKEN_SECRET", "PASSWORD_PEPPER", "DATA_KEY", "DATA_KEY_PREVIOUS")


def limit_warnings(limits: LimitSettings) -> Iterator[str]:
    """Limits that are off."""
    for field, variable in variables_of(type(limits)):
        if getattr(limits, field) is None and variable.name != _HARMLESS:
            yield f"{variable.name} is off: nothing bounds these attempts"


def http_warnings(http: HttpSettings) -> Iterator[str]:
    """Trusted proxies that include every address."""
    if any(network.prefixlen == 0 for network in http.trusted_proxies):
        yield "TRUSTED_PROXIES holds every address: any client can choose the address it is counted by"


def issuer_warnings(tokens: TokenSettings) -> Iterator[str]:
    """An issuer without TLS: tokens would be sent unencrypted."""
    parts = urlsplit(tokens.issuer)
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        yield "JWT_ISSUER is http:// and not of this host: keys and tokens cross the network in clear"


def redis_warnings(redis: RedisSettings, reader: Reader) -> Iterator[str]:
    """Warnings of the in-memory store, and of variables that belong to a Redis that is not configured."""
    if not redis.is_in_memory:
        return
    yield "Redis is in memory: sessions, limits and revocations are of this process alone"
    for name in reader.given("REDIS_PORT", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_DB", "REDIS_TLS"):
        yield f"{name} has no effect: there is no REDIS_HOST"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def weak_secrets(reader: Reader) -> Iterator[Problem]:
    """
    Weak secrets of the service, and secrets that are equal to one of them.

    Passwords of servers follow the policy of these servers; here it is only checked that they are not reused
    and not samples.
    """
    given = {name: value for name, value in reader.read.items() if isinstance(value, Secret)}
    for name in _MUST_BE_STRONG:
        if name not in given:
            continue
        same = (f"equal to {other}" for other in given if other != name and given[other] == given[name])
        weaknesses = (*_weaknesses(given[name].reveal()), *same)
        if weaknesses:
            message = f"is weak ({', '.join(weaknesses)}); expected {reader.variables[name].kind.expected}"
            yield Problem(name=name, message=message)


def sample_passwords(reader: Reader) -> Iterator[Problem]:
    """Passwords of servers that are samples from the documentation."""
    for name, value in reader.read.items():
        if name in _MUST_BE_STRONG or not isinstance(value, Secret):
            continue
        in_url = _URL_PASSWORD.match(value.reveal())
        password = unquote(in_url[1]) if in_url else value.reveal()
        if _PLACEHOLDER.search(password) or password in _SAMPLES:
            yield Problem(
                name=name, message="has a sample of the documentation as password; expected your own"
            )


def _weaknesses(text: str) -> Iterator[str]:
    if len(text.encode()) < MIN_SECRET_BYTES:
        yield f"shorter than {MIN_SECRET_BYTES} bytes"
    if len(set(text)) == 1:
        yield "one character repeated"
    if _PLACEHOLDER.search(text):
        yield "a sample from the documentation"
