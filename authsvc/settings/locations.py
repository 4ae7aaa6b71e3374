"""Parsers of hosts, addresses, networks and URLs. A URL with a password is never shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from authsvc.settings.kinds import InvalidValue, Kind, Secret, port, shown
from authsvc.settings.postgresql import check_database_url

T = TypeVar("T")
Network = IPv4Network | IPv6Network

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:]+)):(?P<port>[0-9]+)")
_NETWORK = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_]+(?:[.-]+[a-z0-9_]+)*|\[[0-9a-f:.]+\])(?::[1-9][0-9]*)?")
#: SHA-256 of the certificate that an application was signed with, in base64url.
_ANDROID = re.compile(r"android:apk-key-hash:[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_MAILBOX = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?=.{1,253}$)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_REDIS_PATH = re.compile(r"/?|/(0|[1-9][0-9]{0,3})")
_ENCODING_ADVICE = "percent-encode what is special in its user name or password"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A host (an IPv6 address without brackets) and a TCP port."""

    host: str
    port: int


def host() -> Kind[str]:
    """A host name or an address; IPv6 in brackets or without, returned without."""
    return Kind(expected="a host name or an IP address", parse=_host)


def addresses() -> Kind[tuple[Address, ...]]:
    """``host:port`` pairs, separated by commas."""

    def parse(text: str) -> tuple[Address, ...]:
        return tuple(_address(item, n) for n, item in enumerate(_items(text), start=1))

    return Kind(expected="`host:port,host:port`, IPv6 addresses in brackets", parse=parse)


def networks() -> Kind[tuple[Network, ...]]:
    """CIDR blocks, separated by commas; the empty text means none."""

    def parse(text: str) -> tuple[Network, ...]:
        return tuple(_network(item) for item in _items(text)) if text else ()

    return Kind(expected="CIDR blocks such as `10.0.0.0/8,fd00::/8`, or nothing", parse=parse)


def origins() -> Kind[tuple[str, ...]]:
    """Web origins (RFC 6454 §6.2) as browsers write them, separated by commas; the empty text means none."""

    def parse(text: str) -> tuple[str, ...]:
        return tuple(_origin(item) for item in _items(text)) if text else ()

    expected = (
        "origins as browsers send them, such as `https://app.example.com,http://localhost:3000`, or nothing"
    )
    return Kind(expected=expected, parse=parse)


def rp_id() -> Kind[str]:
    """A WebAuthn RP ID: the host of an origin as browsers write it, and no address."""
    return Kind(expected="a host name in lower case such as `example.com`, no address", parse=_rp_id)


def webauthn_origins() -> Kind[tuple[str, ...]]:
    """Origins as they are in client data: of web pages, and of Android applications."""

    def parse(text: str) -> tuple[str, ...]:
        return tuple(item if _ANDROID.fullmatch(item) else _origin(item) for item in _items(text))

    expected = "origins such as `https://app.example.com`, separated by commas; also `android:apk-key-hash:…`"
    return Kind(expected=expected, parse=parse)


def issuer() -> Kind[str]:
    """An absolute http(s) URL, not normalised: verifiers compare it character by character."""
    return Kind(expected="an absolute https:// URL without query or fragment", parse=_issuer)


def mailbox() -> Kind[str]:
    """A mail address without a display name."""
    return Kind(expected="a mail address such as `no-reply@example.com`", parse=_mailbox)


def link_url() -> Kind[str]:
    """The base of links: https, or http on this host; no slash at the end."""
    return Kind(
        expected="an https:// URL without query, fragment or slash at its end (development: also `http://localhost`)",
        parse=_link_url,
    )


def database_url() -> Kind[Secret]:
    """A PostgreSQL or SQLite URL without a driver's name; several hosts as libpq has them."""
    expected = (
        "`postgresql://user:password@host:5432/name`, several hosts as `host1:5432,host2:5432`"
        " (development also: `sqlite:///path/to/file`)"
    )
    return Kind(expected=expected, parse=_database_url, is_secret=True)


def redis_url() -> Kind[Secret]:
    """A Redis URL; options of the client library are the service's own business."""
    expected = "`redis://user:password@host:6379/0`, or `rediss://` for TLS"
    return Kind(expected=expected, parse=_redis_url, is_secret=True)


def directory() -> Kind[Path]:
    """A path; whether it exists is checked elsewhere."""
    return Kind(expected="the path of a directory", parse=_path)


def absolute(what: str) -> Kind[Path]:
    """The absolute path of *what*; whether it exists is checked elsewhere."""

    def parse(text: str) -> Path:
        path = _path(text)
        if not path.is_absolute():
            raise InvalidValue(f"is {shown(text)}")
        return path

    return Kind(expected=f"the absolute path of a {what}", parse=parse)


def _path(text: str) -> Path:
    if not text.isprintable():
        raise InvalidValue(f"is {shown(text)}")
    return Path(text)


def _items(text: str) -> list[str]:
    return [item.strip(" ") for item in text.split(",")]


def _host(text: str) -> str:
    """*text* as a host; never repeated in a message, because it may be a whole URL with its password."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare and "://" not in bare and _is_ipv6(bare):
        return bare
    if bare != text or not _HOST.fullmatch(text):
        raise InvalidValue("is no host name")
    return text


def _is_ipv6(text: str) -> bool:
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False


def _address(item: str, number: int) -> Address:
    match = _ADDRESS.fullmatch(item)
    wrong = InvalidValue(f"has an entry, number {number}, that is no address")
    if not match or (match["six"] and not _is_ipv6(match["six"])):
        raise wrong
    try:
        return Address(host=_host(match["six"] or match["name"]), port=port().parse(match["port"]))
    except InvalidValue:
        raise wrong from None


def _network(item: str) -> Network:
    wrong = InvalidValue(f"has {shown(item)}, which is no network")
    if not _NETWORK.fullmatch(item):
        raise wrong
    try:
        return ip_network(item)
    except ValueError:
        raise wrong from None


def _origin(item: str) -> str:
    """
    An origin in a form that browsers never send would match nothing: upper case, a path, the default port.
    """
    wrong = InvalidValue(f"has {shown(item)}, which is no origin")
    if not _ORIGIN.fullmatch(item):
        raise wrong
    parts = urlsplit(item)
    try:
        is_plain = parts.port not in {0, {"http": 80, "https": 443}[parts.scheme]}
    except ValueError:
        raise wrong from None
    if not is_plain:
        raise wrong
    return item


def _rp_id(text: str) -> str:
    # A last label of digits makes it an address, whole or shortened (WHATWG URL).
    if not _DOMAIN.fullmatch(text) or text.rpartition(".")[2].isdigit():
        raise InvalidValue(f"is {shown(text)}")
    return text


def _check_letters(text: str) -> None:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidValue("has spaces, control characters or letters outside ASCII")


def _split(text: str) -> SplitResult:
    """
    *text* in parts; the parser's own messages are dropped, because they might repeat pieces of a password.
    """
    _check_letters(text)
    try:
        parts = urlsplit(text)
        port_number = parts.port
    except ValueError:
        raise InvalidValue(f"is no URL that can be read: {_ENCODING_ADVICE}") from None
    if port_number == 0:
        raise InvalidValue("has port 0")
    return parts


def _issuer(text: str) -> str:
    parts = _split(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidValue("is no absolute http:// or https:// URL")
    if "?" in text or "#" in text or "@" in parts.netloc:
        raise InvalidValue("has a query, a fragment or a user name")
    return text


def _mailbox(text: str) -> str:
    if not _MAILBOX.fullmatch(text):
        raise InvalidValue(f"is {shown(text)}")
    return text


def _link_url(text: str) -> str:
    _issuer(text)
    if text.endswith("/"):
        raise InvalidValue("ends with a slash")
    return text


def _database_url(text: str) -> Secret:
    scheme = text.partition("://")[0]
    if scheme == "sqlite":
        return _sqlite_url(text)
    _check_letters(text)
    if scheme == "postgres" or scheme.startswith("postgresql+"):
        raise InvalidValue("has another scheme than `postgresql://`: no short form, no driver's name")
    if scheme != "postgresql":
        raise InvalidValue("is of no database that is supported")
    check_database_url(text)
    return Secret(text)


def _sqlite_url(text: str) -> Secret:
    path = text.removeprefix("sqlite:///")
    if path == text or not path or path.startswith((":memory:", "file:")):
        raise InvalidValue("names no file (a database in memory would differ from thread to thread)")
    return Secret(text)


def _redis_url(text: str) -> Secret:
    parts = _split(text)
    if not text.startswith(("redis://", "rediss://")) or not parts.hostname:
        raise InvalidValue("is no redis:// or rediss:// URL with a host")
    if "?" in text or "#" in text:
        raise InvalidValue(f"has a query or a fragment: {_ENCODING_ADVICE}")
    if not _REDIS_PATH.fullmatch(parts.path):
        raise InvalidValue(f"has a path that is no database number: {_ENCODING_ADVICE}")
    return Secret(text)


def redis_url_database(url: Secret) -> int:
    """The database number in *url*, 0 when it names none."""
    return int(urlsplit(url.reveal()).path.strip("/") or 0)
