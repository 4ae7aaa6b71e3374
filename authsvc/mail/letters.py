"""What a mail says: templates of Jinja, in text and HTML, rendered with samples before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path

from jinja2 import ChoiceLoader, FileSystemLoader, PackageLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from authsvc.domain.accounts.mails import Mail, Template
from authsvc.domain.accounts.tickets import Ticket, TicketSecrets

#: The page of the application that a link leads to.
PAGES = {
    Template.VERIFY: "verify",
    Template.REGISTER: "register",
    Template.RESET: "reset",
    Template.INVITE: "invite",
}
#: What every template is given; None where a mail has none.
SAMPLE: Mapping[str, object] = {
    "email": "ada@example.com",
    "code": "WDJB-MJHT",
    "link": "https://app.example.com/reset?t=AAAA",
    "minutes": 60,
    "client_ip": "192.0.2.1",
    "asked_at": "2026-11-29 12:00 UTC",
    "sender": "authsvc",
}
_ENDINGS = ("subject.txt", "txt", "html")
_MAX_SUBJECT = 200


class BadTemplate(Exception):
    """A template that cannot be read or rendered; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Whom mails come from, and where their links lead."""

    address: str
    name: str = "authsvc"
    reply_to: str | None = None
    #: ``https://app.example.com/account``; None: mails carry codes alone.
    link_url: str | None = None


class Letters:
    """
    Renders mails; *folder* may replace single templates.

    No template sees a text that a caller chose: address, code, link, time and IP address are all there is.
    """

    def __init__(self, sender: Sender, secrets: TicketSecrets, folder: Path | None = None) -> None:
        own = [FileSystemLoader(folder)] if folder is not None else []
        self._sender = sender
        self._secrets = secrets
        self._environment = SandboxedEnvironment(
            loader=ChoiceLoader([*own, PackageLoader("authsvc.mail")]),
            autoescape=lambda name: bool(name) and str(name).endswith(".html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def try_all(self) -> None:
        """Render every template with samples, with a link and without; raises BadTemplate."""
        for template in Template:
            for link in (SAMPLE["link"], None):
                self._rendered(template, {**SAMPLE, "link": link})

    def letter(self, mail: Mail, wording: Template, ticket: Ticket | None) -> EmailMessage:
        """*mail* as it is sent, worded by *wording*; the same one each time, with the same Message-ID."""
        subject, text, html = self._rendered(wording, self._values(mail, wording, ticket))
        message = EmailMessage()
        message["Message-ID"] = f"<{mail.id}@{self._sender.address.partition('@')[2]}>"
        message["Date"] = format_datetime(mail.asked_at.astimezone(UTC))
        message["From"] = Address(display_name=self._sender.name, addr_spec=self._sender.address)
        message["To"] = Address(addr_spec=str(mail.recipient))
        if self._sender.reply_to is not None:
            message["Reply-To"] = Address(addr_spec=self._sender.reply_to)
        message["Subject"] = subject
        message["Auto-Submitted"] = "auto-generated"
        message["X-Authsvc-Mail"] = mail.id
        message.set_content(text)
        message.add_alternative(html, subtype="html")
        return message

    def _values(self, mail: Mail, wording: Template, ticket: Ticket | None) -> dict[str, object]:
        page = PAGES.get(wording)
        has_link = ticket is not None and page is not None and self._sender.link_url is not None
        is_old = wording is Template.CHANGE_OLD
        return {
            "email": mail.recipient,
            "code": self._secrets.code(ticket, for_old_address=is_old) if ticket else None,
            "link": f"{self._sender.link_url}/{page}?t={self._secrets.token(ticket)}"
            if ticket is not None and has_link
            else None,
            "minutes": int((ticket.expires_at - ticket.created_at).total_seconds() // 60) if ticket else None,
            "client_ip": mail.client_ip,
            "asked_at": _readable(mail.asked_at),
            "sender": self._sender.name,
        }

    def _rendered(self, template: Template, values: Mapping[str, object]) -> tuple[str, str, str]:
        """Subject, text and HTML; raises BadTemplate."""
        parts = []
        for ending in _ENDINGS:
            name = f"{template.value}.{ending}"
            try:
                parts.append(self._environment.get_template(name).render(values))
            except (TemplateError, OSError, ValueError, TypeError) as error:
                raise BadTemplate(f"mail template {name}: {type(error).__name__}: {error}") from error
        subject = " ".join(parts[0].split())[:_MAX_SUBJECT]
        if not subject:
            raise BadTemplate(f"mail template {template.value}.subject.txt renders to nothing")
        return subject, parts[1], parts[2]


def _readable(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
