"""``DATABASE_URL`` as libpq, the driver's library, reads it, and what the service sets on connections."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final

from psycopg import ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from authsvc.settings.kinds import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Settings that the code relies on, whatever the defaults of server, database and role.
SERVER_SETTINGS: Mapping[str, str] = {
    "default_transaction_isolation": "read committed",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "standard_conforming_strings": "on",
    "synchronous_commit": "on",
}
#: Further settings, with time limits of the service.
SERVER_TIMEOUTS: Final = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")

#: Parameters of libpq that the service chooses: its deadlines and its reading of texts depend on them.
_CHOSEN: Final = frozenset(
    {
        *("client_encoding", "connect_timeout", "fallback_application_name", "replication"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    }
)
_ADVICE: Final = "percent-encode what is special in its user name or password"
_SETTING: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_SPECIAL: Final = re.compile(r"([\\\s])")
_ESCAPED: Final = r"\\\1"
_VALUE: Final = re.compile(r'invalid (\w+) value: "')
_UNKNOWN: Final = re.compile(r'invalid URI query parameter: "([^"]*)"')
_HIGHEST_PORT: Final = 65_535


def connection_parts(url: str) -> dict[str, str]:
    """The parameters in *url*, by libpq's names; raises InvalidValue, which quotes nothing of it."""
    try:
        return {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except ProgrammingError as error:
        raise InvalidValue(_why(str(error))) from None


def check_database_url(url: str) -> None:
    """Raise InvalidValue if *url* does not name exactly one database, or sets what the service sets."""
    parts = connection_parts(url)
    name = parts.get("dbname", "")
    # These characters are signs of a password that was not encoded: what follows them became the name.
    if not name or any(sign in name and f"/{name}" in url for sign in "/@#"):
        raise InvalidValue(f"names no database after the host: add its name, and {_ADVICE}")
    _check_hosts(parts)
    if taken := sorted(_CHOSEN & parts.keys()):
        raise InvalidValue(f"has {taken[0]}, which the service sets by itself: remove it")
    server_settings(parts.get("options", ""))
    _check_values(parts)


def server_settings(options: str) -> dict[str, str]:
    """
    The settings in *options*, as ``PGOPTIONS`` and ``?options=`` write them; raises InvalidValue.

    Only settings: other options cannot be passed through a pooler.
    """
    found = dict(_assignments(iter(_words(options))))
    if taken := sorted({*SERVER_SETTINGS, *SERVER_TIMEOUTS, *_CHOSEN} & found.keys()):
        raise InvalidValue(f"sets {taken[0]}, which the service sets by itself: remove it")
    return found


def written(settings: Mapping[str, str]) -> str:
    """*settings* as one text of options."""
    return " ".join(f"-c {name}={_SPECIAL.sub(_ESCAPED, value)}" for name, value in settings.items())


def _words(options: str) -> list[str]:
    """Words between white space; a backslash makes the next character part of a word."""
    found = re.findall(r"(?:\\.|[^\\\s])+", options, re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL) for word in found]


def _assignments(words: Iterator[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        text = next(words, "") if word == "-c" else word.removeprefix("--" if word[:2] == "--" else "-c")
        name, is_assigned, value = text.partition("=")
        if text == word or not is_assigned or not _SETTING.fullmatch(name):
            raise InvalidValue("has options that are no settings: write each as `-c name=value`")
        yield name.replace("-", "_").lower(), value


def _check_hosts(parts: Mapping[str, str]) -> None:
    hosts, ports = (parts.get(name, "").split(",") for name in ("host", "port"))
    for port in filter(None, ports):
        if not port.isascii() or not port.isdecimal() or not 0 < int(port) <= _HIGHEST_PORT:
            raise InvalidValue(f"has a port that is none: {_ADVICE}")
    if len(ports) not in {1, len(hosts)}:
        raise InvalidValue("has another number of ports than of hosts")


def _check_values(parts: Mapping[str, str]) -> None:
    """Have libpq check each value, which it does before it connects; here to a socket that does not exist."""
    nowhere = {**parts, "host": "/nonexistent", "hostaddr": "", "port": "1"}
    connection = pq.PGconn.connect_start(make_conninfo("", **nowhere).encode())
    message = connection.error_message.decode(errors="replace")
    connection.finish()
    if found := _VALUE.search(message):
        raise InvalidValue(f"has a value of {found[1]} that does not exist")


def _why(message: str) -> str:
    """The reason in libpq's *message*, without quoted parts, which may be pieces of a password."""
    if unknown := _UNKNOWN.search(message):
        near = difflib.get_close_matches(unknown[1], _known_parameters())
        hint = f"did you mean {near[0]}?" if near else f"remove it, or {_ADVICE}"
        return f"has a parameter that does not exist: {hint}"
    if "percent-encoded" in message:
        return f"has a % that begins no escape: write %25, and {_ADVICE}"
    return f"is no URL that can be read: {_ADVICE}"


def _known_parameters() -> list[str]:
    return [option.keyword.decode() for option in pq.Conninfo.get_defaults()]
