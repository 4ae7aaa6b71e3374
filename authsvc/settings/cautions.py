"""What is weak, which production refuses, and what is risky, which the log of the start names."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from authsvc.settings import variables as v
from authsvc.settings.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from authsvc.settings.groups import HttpSettings, LimitSettings, RedisSettings, TokenSettings
    from authsvc.settings.kinds import Secret
    from authsvc.settings.reader import Reader
    from authsvc.settings.variables import Variable

#: What examples print begins so; every sample in the docs does, which a test holds them to.
_PLACEHOLDER = re.compile(r"change[-_ ]?me|replace[-_ ]?me|placeholder", re.IGNORECASE)
_MUST_BE_STRONG = (v.TOKEN_SECRET, v.PASSWORD_PEPPER)


def limit_cautions(limits: LimitSettings) -> Iterator[str]:
    """Limits that are off."""
    by_name = {
        v.RATE_LIMIT_LOGIN_IP.name: limits.login_ip,
        v.RATE_LIMIT_LOGIN_ACCOUNT.name: limits.login_account,
        v.RATE_LIMIT_REGISTER_IP.name: limits.register_ip,
        v.RATE_LIMIT_REFRESH.name: limits.refresh,
    }
    yield from (
        f"{name} is off: nothing bounds these attempts" for name, limit in by_name.items() if limit is None
    )


def http_cautions(http: HttpSettings) -> Iterator[str]:
    """Proxies that are everybody."""
    if any(network.prefixlen == 0 for network in http.trusted_proxies):
        yield "TRUSTED_PROXIES holds every address: any client can choose the address it is counted by"


def issuer_cautions(tokens: TokenSettings) -> Iterator[str]:
    """Tokens fetched and sent in clear."""
    parts = urlsplit(tokens.issuer)
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        yield "JWT_ISSUER is http:// and not of this host: keys and tokens cross the network in clear"


def redis_cautions(redis: RedisSettings, reader: Reader) -> Iterator[str]:
    """The in-memory store, and variables that name a part of a Redis that is not there."""
    if not redis.is_in_memory:
        return
    yield "Redis is in memory: sessions, limits and revocations are of this process alone"
    for name in reader.given(v.REDIS_PORT, v.REDIS_USERNAME, v.REDIS_PASSWORD, v.REDIS_DB, v.REDIS_TLS):
        yield f"{name} has no effect: there is no REDIS_HOST"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def weak_secrets(secrets: Mapping[Variable[Secret], Secret | None]) -> Iterator[Problem]:
    """
    What is weak about the token secret and the pepper, and which other secret equals one of them.

    Passwords of servers are somebody else's policy: they only must not be reused here.
    """
    for variable in _MUST_BE_STRONG:
        secret = secrets[variable]
        if secret is None:
            continue
        weaknesses = (*_weaknesses(secret.reveal()), *_twins(variable, secret, secrets))
        if weaknesses:
            message = f"is weak ({', '.join(weaknesses)}); expected {variable.kind.expected}"
            yield Problem(name=variable.name, message=message)


def _weaknesses(text: str) -> Iterator[str]:
    if len(text.encode()) < v.MIN_SECRET_BYTES:
        yield f"shorter than {v.MIN_SECRET_BYTES} bytes"
    if len(set(text)) == 1:
        yield "one character repeated"
    if _PLACEHOLDER.search(text):
        yield "a sample from the documentation"


def _twins(
    variable: Variable[Secret], secret: Secret, secrets: Mapping[Variable[Secret], Secret | None]
) -> Iterator[str]:
    for other, twin in secrets.items():
        if other is not variable and twin == secret:
            yield f"equal to {other.name}"
