"""How a mail leaves: by SMTP to a relay, or as a file for development."""

from __future__ import annotations

import logging
import os
import smtplib
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Literal, Protocol

#: To connect, for each reply, and for a whole mail (seconds).
CONNECT_S = 5.0
REPLY_S = 10.0
TOTAL_S = 30.0

#: SMTP replies of these classes are final (RFC 5321 §4.2.1).
_PERMANENT = range(500, 600)
_READY = 220

log = logging.getLogger(__name__)


class MailRefused(Exception):
    """The relay refused the mail for good (5xx); trying again would not help."""


class RelayUnavailable(Exception):
    """The relay is away, slow, busy (4xx) or not to be trusted (TLS); worth another try."""


class Transport(Protocol):
    """A way out."""

    def send(self, message: EmailMessage) -> None:
        """Return when the other side has taken *message*; raises MailRefused, RelayUnavailable."""


class _Relay(smtplib.SMTP):
    """smtplib's client, but for bytes that arrive behind the 220 of STARTTLS: they end the connection."""

    def docmd(self, cmd: str, args: str = "") -> tuple[int, bytes]:
        """Send a command and return the reply."""
        code, text = super().docmd(cmd, args)
        if cmd == "STARTTLS" and self._has_more():
            # Sent in clear by anybody, to be read as if it had come through TLS (CVE-2011-0411).
            self.close()
            raise smtplib.SMTPServerDisconnected("bytes behind the reply to STARTTLS")
        return code, text

    def _has_more(self) -> bool:
        if self.sock is None or self.file is None:
            return False
        before = self.sock.gettimeout()
        self.sock.settimeout(0)
        try:
            return bool(self.file.peek(1))
        except BlockingIOError:
            return False
        finally:
            self.sock.settimeout(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpTransport:
    """
    One connection to the relay for each mail: STARTTLS or implicit TLS, chain and name verified.

    A relay that offers no STARTTLS gets nothing.  Credentials never travel in clear.  Nothing takes longer
    than TOTAL_S: then the connection is cut, whatever the relay is at.
    """

    host: str
    port: int
    tls: Literal["starttls", "implicit", "none"]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    def send(self, message: EmailMessage) -> None:
        """One mail over a connection of its own."""
        try:
            with self._connected() as relay:
                if self.username is not None and self.password is not None:
                    relay.login(self.username, self.password)
                relay.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            raise _by_code(max(code for code, _ in error.recipients.values())) from error
        except smtplib.SMTPResponseException as error:
            raise _by_code(error.smtp_code) from error
        except (OSError, ValueError, smtplib.SMTPException) as error:
            # The class alone: the text may hold what the relay said, an address in it.
            raise RelayUnavailable(_cause(error)) from error

    @contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        """A connection that is encrypted as asked for, and that ends after TOTAL_S."""
        relay = self._connect()
        # The watched socket is the bare one: TLS wraps it, and closing it ends both.
        cut = threading.Timer(TOTAL_S, _cut, args=(relay,))
        cut.daemon = True
        cut.start()
        try:
            if self.tls == "starttls":
                relay.starttls(context=self._context())
            yield relay
            with suppress(OSError, smtplib.SMTPException):  # the mail is taken: what follows is a courtesy
                relay.quit()
        finally:
            cut.cancel()
            relay.close()

    def _connect(self) -> smtplib.SMTP:
        if self.tls == "implicit":
            relay: smtplib.SMTP = smtplib.SMTP_SSL(timeout=CONNECT_S, context=self._context())
        else:
            relay = _Relay(timeout=CONNECT_S)
        # smtplib takes the name to verify from here, which its connect() does not set.
        relay._host = self.host  # type: ignore[attr-defined]  # noqa: SLF001 - as its constructor does
        code, text = relay.connect(self.host, self.port)
        if code != _READY:
            relay.close()
            raise smtplib.SMTPConnectError(code, text)
        if relay.sock is not None:
            relay.sock.settimeout(REPLY_S)
        return relay

    def _context(self) -> ssl.SSLContext:
        """Chain and name are verified, against the system's authorities or those of ``ca_file``."""
        return ssl.create_default_context(cafile=self.ca_file)


@dataclass(frozen=True, slots=True)
class FileTransport:
    """Writes each mail as a file, for development; the log names it."""

    folder: Path

    def send(self, message: EmailMessage) -> None:
        """The file appears whole or not at all."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{message['X-Authsvc-Mail']}.eml"
        with tempfile.NamedTemporaryFile("wb", dir=self.folder, delete=False) as draft:
            draft.write(message.as_bytes(policy=SMTP))
        path = self.folder / name
        Path(draft.name).replace(path)
        log.info("mail.written", extra={"file": os.fspath(path)})


def _cut(relay: smtplib.SMTP) -> None:
    """End the connection under whoever waits for it."""
    sock = relay.sock
    if sock is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _by_code(code: int) -> Exception:
    """What a reply with *code* means for the mail."""
    return MailRefused(f"smtp {code}") if code in _PERMANENT else RelayUnavailable(f"smtp {code}")


def _cause(error: Exception) -> str:
    """The kind of *error*, in words without anything that the relay sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "TLS"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "no STARTTLS or no AUTH offered"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return type(error).__name__
