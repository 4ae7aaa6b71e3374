"""Transports of mails: SMTP to a relay, or files for development."""

from __future__ import annotations

import logging
import os
import smtplib
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Literal, Protocol

from authsvc.mail import SmtpTimings

#: SMTP replies of these classes are final (RFC 5321 §4.2.1).
_PERMANENT = range(500, 600)
_READY = 220
#: The reply with which a relay closes the connection, to any command.
_CLOSING = 421

log = logging.getLogger(__name__)


class MailRefused(Exception):
    """The relay rejected this mail permanently (5xx); a retry would not help."""


class MailDeferred(Exception):
    """The relay does not accept this mail now (4xx), but may accept others."""


class RelayUnavailable(Exception):
    """The relay is away, slow, busy, not trusted (TLS) or refuses the login; no mail was rejected."""


class Transport(Protocol):
    """Sends mails."""

    def send(self, message: EmailMessage) -> None:
        """
        Return once the other side has accepted *message*; raises MailRefused, MailDeferred, RelayUnavailable.
        """


class _Relay(smtplib.SMTP):
    """smtplib's client over a connected socket; bytes after the 220 of STARTTLS end the connection."""

    def __init__(self, sock: socket.socket, host: str, own_name: str) -> None:
        super().__init__(local_hostname=own_name)
        #: The name that ``starttls()`` verifies.
        self._host = host
        self.sock = sock
        code, text = self.getreply()
        if code != _READY:
            raise smtplib.SMTPConnectError(code, text)

    def docmd(self, cmd: str, args: str = "") -> tuple[int, bytes]:
        """Send a command and return the reply."""
        code, text = super().docmd(cmd, args)
        if cmd == "STARTTLS" and self._has_more():
            # Bytes that an attacker sent unencrypted would be read as if they came through TLS
            # (CVE-2011-0411).
            raise smtplib.SMTPServerDisconnected("bytes behind the reply to STARTTLS")
        return code, text

    def _has_more(self) -> bool:
        if self.sock is None or self.file is None:
            return False
        before = self.sock.gettimeout()
        self.sock.settimeout(0)
        try:
            return bool(self.file.peek(1))
        finally:
            self.sock.settimeout(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpTransport:
    """
    One connection to the relay for each mail: STARTTLS or implicit TLS, chain and name verified.

    Sends nothing to a relay that does not offer STARTTLS. Credentials are never sent unencrypted. After
    ``total_s`` of *timings* the connection is closed.
    """

    host: str
    port: int
    tls: Literal["starttls", "implicit", "none"]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    timings: SmtpTimings = field(default_factory=SmtpTimings)

    def send(self, message: EmailMessage) -> None:
        """Send one mail over its own connection."""
        try:
            with self._session(message["From"].addresses[0].domain) as relay:
                relay.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            raise _refusal(max(code for code, _ in error.recipients.values())) from error
        except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as error:
            raise _refusal(error.smtp_code) from error
        except smtplib.SMTPResponseException as error:
            # Before MAIL FROM, a 5xx is about the relay, too: a wrong password must not lose a mail.
            raise RelayUnavailable(f"smtp {error.smtp_code}") from error
        except (OSError, UnicodeError) as error:
            raise RelayUnavailable(_cause(error)) from error

    @contextmanager
    def _session(self, own_name: str) -> Iterator[smtplib.SMTP]:
        """A connection with the configured encryption and login, closed when its time is over."""
        ends_at_s = time.monotonic() + self.timings.total_s
        with ExitStack() as stack:
            bare = stack.enter_context(
                socket.create_connection((self.host, self.port), self.timings.connect_s)
            )
            stack.enter_context(_cut_at(ends_at_s, bare))
            bare.settimeout(self.timings.reply_s)
            relay = _Relay(self._encrypted(bare, stack), self.host, own_name)
            stack.callback(relay.close)
            if self.tls == "starttls":
                relay.starttls(context=self._context())
            if self.username is not None and self.password is not None:
                relay.login(self.username, self.password)
            yield relay
            _say_goodbye(relay, within_s=self.timings.goodbye_s)

    def _encrypted(self, bare: socket.socket, stack: ExitStack) -> socket.socket:
        """*bare*, wrapped in TLS if the relay expects that from the first byte."""
        if self.tls != "implicit":
            return bare
        return stack.enter_context(self._context().wrap_socket(bare, server_hostname=self.host))

    def _context(self) -> ssl.SSLContext:
        """A context that verifies chain and name, with the system's authorities or those of ``ca_file``."""
        return ssl.create_default_context(cafile=self.ca_file)


@dataclass(frozen=True, slots=True)
class FileTransport:
    """Writes each mail as a file, for development; the log names it."""

    folder: Path

    def send(self, message: EmailMessage) -> None:
        """Write the file atomically."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = message["Message-ID"].strip("<>").partition("@")[0]
        with tempfile.NamedTemporaryFile("wb", dir=self.folder, delete=False) as draft:
            draft.write(message.as_bytes())
        path = self.folder / f"{name}.eml"
        Path(draft.name).replace(path)
        log.info("mail.written", extra={"file": os.fspath(path)})


@contextmanager
def _cut_at(ends_at_s: float, sock: socket.socket) -> Iterator[None]:
    """Close the connection at *ends_at_s*, even while a thread waits for it."""
    # A second handle: TLS takes over the first one, and this one can be closed in any state.
    with sock.dup() as handle:
        timer = threading.Timer(max(0.0, ends_at_s - time.monotonic()), _shut, args=(handle,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # the relay has closed it already
        sock.shutdown(socket.SHUT_RDWR)


def _say_goodbye(relay: smtplib.SMTP, *, within_s: float) -> None:
    """Send QUIT; its failure does not matter, because the relay has accepted the mail."""
    with suppress(OSError):
        if relay.sock is not None:
            relay.sock.settimeout(within_s)
        relay.quit()


def _refusal(code: int) -> Exception:
    """The error that a reply with *code* means for a mail."""
    if code in _PERMANENT:
        return MailRefused(f"smtp {code}")
    return RelayUnavailable(f"smtp {code}") if code in {_CLOSING, -1} else MailDeferred(f"smtp {code}")


def _cause(error: Exception) -> str:
    """The kind of *error*, without text of the relay, which may contain an address."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "TLS"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "no STARTTLS or no AUTH offered"
    if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
        return "no answer in time"
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return "connection lost"
    return type(error).__name__
