"""
Mail relays for the tests: a real one (aiosmtpd), with TLS and faults, and one that plays any trick.

Both listen on a port of 127.0.0.1 that stays theirs while they are down.
"""

from __future__ import annotations

import asyncio
import socketserver
import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import TYPE_CHECKING, Literal, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.processes import HOST, free_port, wait_until
from tests.servers.loops import abort_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.certificates import Certificate

#: The relay's name, in its certificate.
NAME = "localhost"
CREDENTIALS = LoginPassword(b"authsvc", b"relay password")


@dataclass(frozen=True, slots=True)
class Taken:
    """A mail whose DATA the relay has read to the end."""

    sender: str
    recipient: str
    message: EmailMessage
    raw: bytes = field(repr=False)
    has_tls: bool
    is_logged_in: bool

    @property
    def message_id(self) -> str:
        """As the mail says."""
        return str(self.message["Message-ID"])

    @property
    def text(self) -> str:
        """What a reader sees."""
        part = self.message.get_body(("plain",))
        assert part is not None
        return str(part.get_content())


class _Controller(Controller):
    """Closes the connections that are open when it stops."""

    def stop(self, *arguments: bool) -> None:
        """Stop listening."""
        asyncio.run_coroutine_threadsafe(self._abort(), self.loop).result()
        super().stop(*arguments)

    async def _abort(self) -> None:
        assert self.server is not None
        self.server.close()
        await abort_all(self.loop)


class Relay:
    """
    A real relay.  A context manager; ``stop()`` and ``start()`` may follow each other.

    *answers* maps ``RCPT`` and ``DATA`` to replies that are given instead of 250.  While ``answering`` is
    clear a mail is taken, and its 250 kept back; else that comes after *takes_s* seconds.
    """

    def __init__(
        self,
        certificate: Certificate | None = None,
        *,
        tls: Literal["starttls", "implicit", "none"] = "starttls",
        wants_login: bool = False,
        port: int | None = None,
        takes_s: float = 0.0,
    ) -> None:
        self.port = port or free_port()
        self._takes_s = takes_s
        self.taken: list[Taken] = []
        self.answers: dict[str, str] = {}
        self.answering = threading.Event()
        self.answering.set()
        self._certificate = certificate
        self._tls = tls if certificate is not None else "none"
        self._wants_login = wants_login
        self._controller: _Controller | None = None

    def start(self) -> Self:
        """Listen."""
        context = self._context()
        self._controller = _Controller(
            self,
            hostname=HOST,
            port=self.port,
            ssl_context=context if self._tls == "implicit" else None,
            tls_context=context if self._tls == "starttls" else None,
            require_starttls=self._tls == "starttls",
            authenticator=self._authenticate,
            auth_required=self._wants_login and self._tls == "starttls",
            auth_require_tls=self._tls == "starttls",
        )
        self._controller.start()
        return self

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()  # first: what was kept back is not answered any more
        self.answering.set()

    def wait_for(self, count: int, *, timeout_s: float = 60) -> list[Taken]:
        """The mails, once there are *count* of them."""
        wait_until(lambda: len(self.taken) >= count, timeout_s=timeout_s, what=f"{count} mails")
        return list(self.taken)

    def _context(self) -> ssl.SSLContext | None:
        if self._certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate.public, self._certificate.private)
        return context

    @staticmethod
    def _authenticate(
        _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: object
    ) -> AuthResult:
        return AuthResult(success=data == CREDENTIALS, handled=False)

    async def handle_RCPT(  # noqa: N802 - the name that aiosmtpd looks for
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Take the recipient, or not."""
        if answer := self.answers.get("RCPT"):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - the name that aiosmtpd looks for
        self, _server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Take the mail, or not; hang where that is asked for."""
        if answer := self.answers.get("DATA"):
            return answer
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        self.taken.append(
            Taken(
                sender=str(envelope.mail_from),
                recipient=envelope.rcpt_tos[0],
                message=message,
                raw=envelope.content,
                has_tls=session.ssl is not None or self._tls == "implicit",
                is_logged_in=bool(session.authenticated),
            )
        )
        await asyncio.sleep(self._takes_s)
        await asyncio.to_thread(self.answering.wait)
        return "250 OK"


@dataclass
class Trickster:
    """
    A server that says what it is told, in clear: *banner*, and *answers* to commands by their first word.

    *port* 0 takes any.  An answer of None keeps the client waiting.  ``heard`` is every line that came.
    """

    banner: bytes | None = b"220 relay\r\n"
    answers: dict[str, bytes | None] = field(default_factory=dict)
    heard: list[bytes] = field(default_factory=list)
    port: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def serve(self, stream: socketserver.StreamRequestHandler) -> None:
        """One connection."""
        if not self._say(stream, self.banner):
            return
        while line := stream.rfile.readline():
            self.heard.append(line)
            verb = line.split()[0].decode("ascii", "replace").upper() if line.split() else ""
            if not self._say(stream, self.answers.get(verb, b"250 OK\r\n")):
                return

    def _say(self, stream: socketserver.StreamRequestHandler, answer: bytes | None) -> bool:
        if answer is None:
            self.is_over.wait()
            return False
        stream.wfile.write(answer)
        return True


@contextmanager
def playing(trickster: Trickster) -> Iterator[Trickster]:
    """Let *trickster* listen."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            trickster.serve(self)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """The client may go at any moment."""

    with Server((HOST, trickster.port), Handler) as server:
        trickster.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield trickster
        finally:
            trickster.is_over.set()
            server.shutdown()
            thread.join()
