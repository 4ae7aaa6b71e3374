"""The sender of mails over an application's outbox, and the mails that it hands over."""

from __future__ import annotations

import re
import time
from contextlib import closing
from typing import TYPE_CHECKING

from authsvc.mail.sender import MailRun
from authsvc.settings import Settings
from authsvc.store.accounts.mails import SqlOutbox
from authsvc.wiring.mail import letters
from authsvc.wiring.stores import open_database
from tests.timings import UNHURRIED

if TYPE_CHECKING:
    from email.message import EmailMessage

    from tests.api.driver import Api

#: Settings of an application that sends mails; no thread of its own sends them in these tests.
MAIL = {"MAIL_TRANSPORT": "file", "LINK_URL": "https://app.example.com/account"}

_CODE = re.compile(r"\b[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}\b")
_TOKEN = re.compile(r"https://app\.example\.com/account/(?:verify|register|reset|invite)\?t=([\w-]+)")


class Postbox:
    """Takes what the sender of *api* sends; sends when it is asked to."""

    def __init__(self, api: Api) -> None:
        assert api.services.recovery is not None
        self.sent: list[EmailMessage] = []
        self.results: list[tuple[str, str]] = []
        self._api = api
        self._settings = Settings.from_env(api.env)

    def send(self, message: EmailMessage) -> None:
        """Take *message*, as a relay does."""
        self.sent.append(message)

    def deliver(self) -> None:
        """Send all that is due."""
        with closing(open_database(self._settings, UNHURRIED)) as database:
            run = MailRun(
                outbox=SqlOutbox(database),
                letters=letters(self._settings),
                transport=self,
                audit=self._api.services.events,
                clock=self._api.clock,
                monotonic=time.monotonic,
                most_per_minute=100_000,
                on_result=lambda template, result: self.results.append((template, result)),
            )
            while run.round():
                pass

    def mails_to(self, address: str) -> list[str]:
        """The texts of all mails to *address*, as they were asked for; sends what is due before."""
        self.deliver()
        found = [message for message in self.sent if message["To"] == address]
        return [text_of(message) for message in sorted(found, key=lambda one: str(one["Message-ID"]))]

    def newest(self, address: str) -> str:
        """The text of the newest mail to *address*."""
        return self.mails_to(address)[-1]


def text_of(message: EmailMessage) -> str:
    """The subject and the text part of *message*."""
    part = message.get_body(("plain",))
    assert part is not None
    return f"{message['Subject']}\n{part.get_content()}"


def code_in(text: str) -> str:
    """The one code in a mail."""
    (code,) = _CODE.findall(text)
    return str(code)


def token_in(text: str) -> str:
    """The token of the one link in a mail."""
    (token,) = _TOKEN.findall(text)
    return str(token)
