"""How a mail leaves: by SMTP to a relay, or as a file for development."""

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

#: SMTP replies of these classes are final (RFC 5321 §4.2.1).
_PERMANENT = range(500, 600)
_READY = 220
#: The relay closes the connection, whatever it was asked.
_CLOSING = 421

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpTimings:
    """How long a relay is waited for (seconds)."""

    connect_s: float = 5.0
    #: For each reply, and for a whole mail.
    reply_s: float = 10.0
    total_s: float = 30.0
    #: For the reply to QUIT: the mail is taken by then.
    goodbye_s: float = 1.0


class MailRefused(Exception):
    """The relay refused this mail for good (5xx); trying again would not help."""


class MailDeferred(Exception):
    """The relay does not take this mail now (4xx), and may take others."""


class RelayUnavailable(Exception):
    """The relay is away, slow, busy, not to be trusted (TLS) or does not let us in; no mail was refused."""


class Transport(Protocol):
    """A way out."""

    def send(self, message: EmailMessage) -> None:
        """Return when the other side took *message*; raises MailRefused, MailDeferred, RelayUnavailable."""


class _Relay(smtplib.SMTP):
    """smtplib's client over a connected socket; bytes behind the 220 of STARTTLS end the connection."""

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
            # Bytes that an attacker sent in clear would be read as if they had come through TLS
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

    A relay that offers no STARTTLS gets nothing.  Credentials never travel in clear.  Nothing takes longer
    than ``total_s`` of *timings*: then the connection is closed.
    """

    host: str
    port: int
    tls: Literal["starttls", "implicit", "none"]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    timings: SmtpTimings = field(default_factory=SmtpTimings)

    def send(self, message: EmailMessage) -> None:
        """One mail over a connection of its own."""
        try:
            with self._session(message["From"].addresses[0].domain) as relay:
                relay.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            raise _refusal(max(code for code, _ in error.recipients.values())) from error
        except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as error:
            raise _refusal(error.smtp_code) from error
        except smtplib.SMTPResponseException as error:
            # Before any mail was named, also a 5xx is about the relay: a wrong password loses no mail.
            raise RelayUnavailable(f"smtp {error.smtp_code}") from error
        except (OSError, UnicodeError) as error:
            raise RelayUnavailable(_cause(error)) from error

    @contextmanager
    def _session(self, own_name: str) -> Iterator[smtplib.SMTP]:
        """A connection that is encrypted as asked for, logged in, and cut when its time is over."""
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
        """*bare* under TLS where the relay expects that from the first byte."""
        if self.tls != "implicit":
            return bare
        return stack.enter_context(self._context().wrap_socket(bare, server_hostname=self.host))

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
        name = message["Message-ID"].strip("<>").partition("@")[0]
        with tempfile.NamedTemporaryFile("wb", dir=self.folder, delete=False) as draft:
            draft.write(message.as_bytes())
        path = self.folder / f"{name}.eml"
        Path(draft.name).replace(path)
        log.info("mail.written", extra={"file": os.fspath(path)})


@contextmanager
def _cut_at(ends_at_s: float, sock: socket.socket) -> Iterator[None]:
    """Close the connection at *ends_at_s*, also while a thread waits for it."""
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
    with suppress(OSError):  # the relay was faster
        sock.shutdown(socket.SHUT_RDWR)


def _say_goodbye(relay: smtplib.SMTP, *, within_s: float) -> None:
    """The relay has taken the mail; a failure of QUIT does not matter."""
    with suppress(OSError):
        if relay.sock is not None:
            relay.sock.settimeout(within_s)
        relay.quit()


def _refusal(code: int) -> Exception:
    """What a reply with *code* means for the mail that it answers."""
    if code in _PERMANENT:
        return MailRefused(f"smtp {code}")
    return RelayUnavailable(f"smtp {code}") if code in {_CLOSING, -1} else MailDeferred(f"smtp {code}")


def _cause(error: Exception) -> str:
    """The kind of *error*, without any text of the relay's, which may hold an address."""
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
