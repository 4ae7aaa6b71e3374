"""The content of mails: Jinja templates in text and HTML, tested with samples before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from pathlib import Path

from jinja2 import ChoiceLoader, FileSystemLoader, PackageLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from authsvc.domain.accounts.mails import Mail, Template
from authsvc.domain.accounts.tickets import Ticket, TicketSecrets
from authsvc.settings import Problem

#: The page of the application that links lead to, by template.
PAGES = {
    Template.VERIFY: "verify",
    Template.REGISTER: "register",
    Template.RESET: "reset",
    Template.INVITE: "invite",
}
#: Templates of mails with a code; the others do not get ``code``, ``link`` and ``minutes``.
WITH_CODE = frozenset({*PAGES, Template.CHANGE, Template.CHANGE_OLD})
#: Sample values for templates.
SAMPLE: Mapping[str, object] = {
    "email": "ada@example.com",
    "client_ip": "192.0.2.1",
    "asked_at": "2026-11-29 12:00 UTC",
    "sender": "authsvc",
}
SAMPLE_CODE: Mapping[str, object] = {
    "code": "WDJB-MJHT",
    "link": "https://app.example.com/reset?t=AAAA",
    "minutes": 60,
}
#: Longest line of a mail (RFC 5322 §2.1.1).
MAX_LINE = 998
#: ASCII on the wire, which every relay accepts.
_POLICY = SMTP.clone(cte_type="7bit")
_ENDINGS = ("subject.txt", "txt", "html")
_MAX_SUBJECT = 200


class BadTemplate(Exception):
    """A template that cannot be read or rendered; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """The sender's address of mails, and the base of their links."""

    address: str
    name: str = "authsvc"
    reply_to: str | None = None
    #: ``https://app.example.com/account``; None: mails have only codes.
    link_url: str | None = None


class Letters:
    """
    Renders mails; *folder* may replace single templates. Templates get only address, code, link, time and IP
    address: no text that a caller chose.
    """

    def __init__(self, sender: Sender, secrets: TicketSecrets, folder: Path | None = None) -> None:
        own = [FileSystemLoader(folder)] if folder is not None else []
        self._folder = folder
        self._sender = sender
        self._secrets = secrets
        self._environment = SandboxedEnvironment(
            loader=ChoiceLoader([*own, PackageLoader("authsvc.mail")]),
            autoescape=lambda name: bool(name) and str(name).endswith(".html"),
            undefined=StrictUndefined,
            # The template may have changed since it was tested at the start.
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def problems(self) -> Iterator[Problem]:
        """Problems of the templates; tests each of them."""
        if self._folder is not None and not self._folder.is_dir():
            yield Problem(name="MAIL_TEMPLATES_DIR", message=f"is {str(self._folder)!r}; no such directory")
        try:
            self.try_all()
        except BadTemplate as error:
            yield Problem(name="MAIL_TEMPLATES_DIR", message=f"has a template that cannot be used: {error}")

    def try_all(self) -> None:
        """Render every template with samples, with and without optional values; raises BadTemplate."""
        for template in Template:
            code = SAMPLE_CODE if template in WITH_CODE else {}
            self._rendered(template, {**SAMPLE, **code})
            bare = {**code, "link": None} if code else {}
            self._rendered(template, {**SAMPLE, **bare, "client_ip": None})

    def letter(self, mail: Mail, wording: Template, ticket: Ticket | None) -> EmailMessage:
        """
        The message for *mail* by the template *wording*; the same on each call, with the same Message-ID.
        """
        code = self._code_values(wording, ticket) if ticket is not None and wording in WITH_CODE else {}
        subject, text, html = self._rendered(wording, {**self._values(mail), **code})
        message = self._envelope(mail, subject)
        message.set_content(text, cte=_encoding(text))
        message.add_alternative(html, subtype="html", cte=_encoding(html))
        return message

    def trial(self, mail: Mail) -> EmailMessage:
        """A test mail."""
        message = self._envelope(mail, "Test mail")
        message.set_content(f"This is a test mail of {self._sender.name}. Mails of this service arrive.\n")
        return message

    def _envelope(self, mail: Mail, subject: str) -> EmailMessage:
        message = EmailMessage(policy=_POLICY)
        message["Message-ID"] = f"<{mail.id}@{self._sender.address.partition('@')[2]}>"
        message["Date"] = format_datetime(mail.asked_at.astimezone(UTC))
        message["From"] = Address(display_name=self._sender.name, addr_spec=self._sender.address)
        message["To"] = Address(addr_spec=str(mail.recipient))
        if self._sender.reply_to is not None:
            message["Reply-To"] = Address(addr_spec=self._sender.reply_to)
        message["Subject"] = subject
        message["Auto-Submitted"] = "auto-generated"
        return message

    def _values(self, mail: Mail) -> dict[str, object]:
        return {
            "email": mail.recipient,
            "client_ip": mail.client_ip,
            "asked_at": _readable(mail.asked_at),
            "sender": self._sender.name,
        }

    def _code_values(self, wording: Template, ticket: Ticket) -> dict[str, object]:
        page, base = PAGES.get(wording), self._sender.link_url
        has_link = page is not None and base is not None
        return {
            "code": self._secrets.code(ticket, for_old_address=wording is Template.CHANGE_OLD),
            "link": f"{base}/{page}?t={self._secrets.token(ticket)}" if has_link else None,
            "minutes": int((ticket.expires_at - ticket.created_at).total_seconds() // 60),
        }

    def _rendered(self, template: Template, values: Mapping[str, object]) -> tuple[str, str, str]:
        """Subject, text and HTML; raises BadTemplate."""
        parts = []
        for ending in _ENDINGS:
            name = f"{template.value}.{ending}"
            try:
                parts.append(self._environment.get_template(name).render(values))
            except Exception as error:  # a template is code and may raise anything
                raise BadTemplate(f"mail template {name}: {type(error).__name__}: {error}") from error
        subject = " ".join(parts[0].split())[:_MAX_SUBJECT]
        if not subject:
            raise BadTemplate(f"mail template {template.value}.subject.txt renders to nothing")
        return subject, parts[1], parts[2]


def _encoding(text: str) -> str:
    """The transfer encoding of *text*: none if possible, so that links are readable in the raw mail."""
    is_plain = text.isascii() and all(len(line) <= MAX_LINE for line in text.splitlines())
    return "7bit" if is_plain else "quoted-printable"


def _readable(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
