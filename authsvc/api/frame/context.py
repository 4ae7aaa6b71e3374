"""The context of a request: the services, the caller, the client address, the request id."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, cast

from flask import current_app, g, request

from authsvc.domain.client_authentication import Caller
from authsvc.domain.errors import NotFound
from authsvc.domain.tokens.access import AccessToken
from authsvc.domain.tokens.machines import MachineTokens
from authsvc.domain.users import User
from authsvc.services import PasskeyServices, RecoveryServices, SecondFactorServices, Services

EXTENSION = "authsvc"
#: The header that sends a device token, and returns a new one.
DEVICE_HEADER = "X-Device-Token"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: An address with a port, as Azure Application Gateway (always) and AWS ALB (by option) write it.
_HOP = re.compile(r"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[^\[\]]*:[^\[\]]*)\])(?::[0-9]{1,5})?")
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
USER_AGENT_LENGTH = 512


def services() -> Services:
    """All services that views may use."""
    return cast("Services", current_app.extensions[EXTENSION])


def recovery() -> RecoveryServices:
    """Services that send mails; routes that call this exist only with them."""
    found = services().recovery
    if found is None:
        raise NotFound
    return found


def second_factors() -> SecondFactorServices:
    """Second-factor services; routes that call this exist only with them."""
    found = services().second_factors
    if found is None:
        raise NotFound
    return found


def passkeys() -> PasskeyServices:
    """Passkey services; routes that call this exist only with them."""
    found = services().passkeys
    if found is None:
        raise NotFound
    return found


def issuer_of_tokens() -> MachineTokens:
    """The issuer of tokens to clients; the route that calls this exists only with it."""
    found = services().machines
    if found is None:
        raise NotFound
    return found


def own_user() -> User | None:
    """The caller's user, for a view guarded with *reads_user*; None if the cache had no copy."""
    return cast("User | None", g.own_user)


def identity() -> AccessToken:
    """The caller, as the guard of this view identified them."""
    return cast("AccessToken", g.identity)


def caller() -> Caller:
    """The calling client, as the guard of this view identified it."""
    return cast("Caller", g.client)


def client_ip() -> str:
    """The caller's address: that of the connection, unless a trusted proxy names another."""
    return resolve_client(request.environ, services().http.trusted_proxies)


def user_agent() -> str | None:
    """The User-Agent, shortened, without characters that the database rejects."""
    return user_agent_of(request.environ)


def user_agent_of(environ: Mapping[str, Any]) -> str | None:
    """The same of a request that is answered without Flask."""
    text = environ.get("HTTP_USER_AGENT", "")
    if not (text.isascii() and text.isprintable()):
        clean = "".join(character for character in text if character.isprintable())
        text = clean.encode("utf-8", "replace").decode()
    return text[:USER_AGENT_LENGTH] or None


def request_id_of(environ: Mapping[str, Any]) -> str:
    """The client's request id if it is valid, else a new one."""
    return request_id_from(environ.get("HTTP_X_REQUEST_ID", ""))


def request_id_from(given: str) -> str:
    """The request id for the value of its header, "" if there is none."""
    return given if given and _SANE_ID.fullmatch(given) else secrets.token_hex(16)


def resolve_client(environ: Mapping[str, Any], trusted: Sequence[Network]) -> str:
    """
    The client's address: the rightmost in ``X-Forwarded-For`` that is not a trusted proxy.

    If all are trusted, the leftmost. A hop that is not an address ends the search at the last valid one.
    ``Forwarded`` (RFC 7239) is ignored: a proxy that sets one header passes the other on as sent.
    """
    current = _address(environ.get("REMOTE_ADDR", ""))
    if current is None:
        return "0.0.0.0"  # noqa: S104 - a UNIX socket has no address; nothing is bound here
    hops = [hop.strip() for hop in environ.get("HTTP_X_FORWARDED_FOR", "").split(",")]
    while hops and any(current in network for network in trusted):
        following = _hop(hops.pop())
        if following is None:
            break
        current = following
    return str(current)


def _hop(text: str) -> Address | None:
    """The address in *text*: ``v4``, ``v6``, ``v4:port``, ``[v6]`` or ``[v6]:port``."""
    found = _HOP.fullmatch(text)
    return _address((found["v4"] or found["v6"]) if found else text)


def _address(text: str) -> Address | None:
    """*text* as an address; IPv4 inside IPv6 counts as IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    # Without its zone id, which has no meaning here and can have any length.
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
