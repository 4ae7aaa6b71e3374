"""What a mail says, and that nothing in it becomes a header of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.accounts.mails import Template, new_mail
from authsvc.domain.accounts.tickets import Purpose, TicketSecrets, new_ticket
from authsvc.domain.values.emails import Email, typed_email
from authsvc.mail.letters import SAMPLE, SAMPLE_CODE, WITH_CODE, BadTemplate, Letters, Sender
from authsvc.wiring.preflight import local_problems
from tests import ROOT
from tests.unit.settings.env import read

if TYPE_CHECKING:
    from pathlib import Path

    from authsvc.domain.accounts.tickets import Ticket

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
ADA = Email("ada@example.com")
SECRETS = TicketSecrets(b"k" * 32)
SENDER = Sender(
    address="authsvc@example.com", name="Example & Sons", link_url="https://app.example.com/account"
)
HEADERS = {
    *("Message-ID", "Date", "From", "To", "Subject", "Auto-Submitted", "MIME-Version", "Content-Type"),
}
NASTY = "\r\nBcc: mallory@example.com\r\n\r\nHello"


def ticket_of(purpose: Purpose = Purpose.RESET) -> Ticket:
    """A ticket of Ada's."""
    return new_ticket(purpose, ADA, NOW)


def sent(template: Template, *, recipient: Email = ADA, folder: Path | None = None) -> EmailMessage:
    """The mail as its reader's program parses it."""
    ticket = ticket_of() if template in WITH_CODE else None
    mail = new_mail(template, recipient, now=NOW, ticket=ticket, client_ip="192.0.2.1")
    return parsed(Letters(SENDER, SECRETS, folder).letter(mail, template, ticket))


def parsed(message: EmailMessage) -> EmailMessage:
    """What is left of *message* after a journey."""
    found = message_from_bytes(message.as_bytes(), policy=default)
    assert isinstance(found, EmailMessage)
    return found


def body(message: EmailMessage, kind: str = "plain") -> str:
    """One of its two parts."""
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content())


@pytest.mark.parametrize("template", Template)
def test_every_mail_has_two_parts_and_says_that_a_machine_sent_it(template):
    """Text and HTML; no header but these, and no text that a caller chose."""
    message = sent(template)

    assert set(message.keys()) == HEADERS
    assert message["Auto-Submitted"] == "auto-generated"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert message["To"].addresses[0].addr_spec == ADA
    assert "192.0.2.1" in body(message)
    assert "Example & Sons" in body(message)
    assert "Example &amp; Sons" in body(message, "html")


@pytest.mark.parametrize("template", sorted(WITH_CODE))
def test_a_mail_with_a_code_can_be_read_raw(template):
    """Code and link stand in the file as they are: nothing is encoded that need not be."""
    ticket = ticket_of()
    mail = new_mail(template, ADA, now=NOW, ticket=ticket)

    raw = Letters(SENDER, SECRETS).letter(mail, template, ticket).as_bytes().decode()

    assert SECRETS.code(ticket, for_old_address=template is Template.CHANGE_OLD) in raw
    has_link = template in {Template.VERIFY, Template.REGISTER, Template.RESET, Template.INVITE}
    assert (f"https://app.example.com/account/{template}?t={SECRETS.token(ticket)}" in raw) is has_link


def test_without_link_url_mails_carry_codes_alone():
    """LINK_URL has no default: no header of a request takes its place."""
    ticket = ticket_of()
    mail = new_mail(Template.RESET, ADA, now=NOW, ticket=ticket)

    message = Letters(replace(SENDER, link_url=None), SECRETS).letter(mail, Template.RESET, ticket)

    assert "http" not in body(message)
    assert SECRETS.token(ticket) not in message.as_string()


@given(
    st.one_of(
        st.emails(),
        st.text(),
        st.builds("{}{}@example.com".format, st.from_regex(r"[a-z!#$%&'*+/=?^_`{|}~.-]{1,20}"), st.text()),
        st.builds("ada@example.com{}".format, st.sampled_from([NASTY, "\r\n", "\0", ", b@c.de", "\u2028"])),
    )
)
def test_no_typed_address_becomes_a_header_or_a_second_recipient(typed):
    """Whatever was typed is refused, or is the one address of the mail, unchanged."""
    email = typed_email(typed)
    if email is None:
        return

    message = sent(Template.RESET, recipient=email)

    assert set(message.keys()) == HEADERS
    assert [address.addr_spec for address in message["To"].addresses] == [email]


def write(folder: Path, name: str, text: str) -> Path:
    """Replace one template."""
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_template_of_the_operator_s_takes_the_place_of_ours(tmp_path):
    """The others stay; letters beyond ASCII arrive on every relay."""
    write(tmp_path, "reset.subject.txt", "Passwort zurücksetzen")
    write(tmp_path, "reset.txt", "Grüße, {{ sender }}: {{ code }}\n")
    letters = Letters(SENDER, SECRETS, tmp_path)
    letters.try_all()
    ticket = ticket_of()

    message = letters.letter(new_mail(Template.RESET, ADA, now=NOW, ticket=ticket), Template.RESET, ticket)

    assert message.as_bytes().isascii()
    assert parsed(message)["Subject"] == "Passwort zurücksetzen"
    assert body(parsed(message)).strip() == f"Grüße, Example & Sons: {SECRETS.code(ticket)}"
    assert sent(Template.TAKEN, folder=tmp_path)["Subject"] == "You already have an account"


def test_a_subject_is_one_line(tmp_path):
    """What a template says is no second header."""
    message = sent(Template.TAKEN, folder=write(tmp_path, "taken.subject.txt", f"Hello{NASTY}"))

    assert set(message.keys()) == HEADERS
    assert message["Subject"] == "Hello Bcc: mallory@example.com Hello"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("reset.txt", "{{ name }}"),
        ("reset.txt", "{% if %}"),
        ("reset.html", "{{ 1 // 0 }}"),
        ("reset.html", "{% extends 'missing.html' %}"),
        ("reset.txt", "{{ ''.__class__.__mro__ }}"),
        ("reset.txt", "{{ link.upper() }}"),
        ("reset.subject.txt", "  \n"),
        ("password_changed.txt", "{{ code }}"),
        ("taken.html", "{{ link }}"),
        ("verify.txt", "{{ client_ip.upper() }}"),
    ],
    ids=[
        *("unknown-name", "syntax", "fails", "missing-layout", "leaves-the-sandbox", "needs-a-link"),
        *("empty-subject", "code-in-a-notice", "link-in-a-mail-without", "needs-an-address"),
    ],
)
def test_a_bad_template_is_found_before_anything_is_sent(tmp_path, name, text):
    """Each is rendered with all that it may be given, and with the least."""
    letters = Letters(SENDER, SECRETS, write(tmp_path, name, text))

    with pytest.raises(BadTemplate, match=name):
        letters.try_all()


def test_a_start_with_bad_templates_is_refused(tmp_path):
    """`config check` and `serve` name the file; a folder that is not there is no empty one."""
    mail = {"MAIL_TRANSPORT": "smtp", "MAIL_FROM": "authsvc@example.com", "SMTP_HOST": "relay.internal"}

    def refusals(folder: Path) -> list[str]:
        found = local_problems(read(tmp_path, MAIL_TEMPLATES_DIR=str(folder), **mail))
        return [str(problem) for problem in found if problem.name == "MAIL_TEMPLATES_DIR"]

    write(tmp_path, "reset.txt", "{{ name }}")
    (bad,) = refusals(tmp_path)
    (missing,) = refusals(tmp_path / "missing")

    assert "mail template reset.txt: UndefinedError: 'name' is undefined" in bad
    assert "no such directory" in missing


def test_the_page_names_every_template_and_what_it_is_given():
    """Whoever writes their own finds them there."""
    page = (ROOT / "docs" / "mail.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", page))

    assert set(Template) | set(SAMPLE) | set(SAMPLE_CODE) <= named


def test_the_templates_of_the_package_are_good():
    """All of them."""
    Letters(SENDER, SECRETS).try_all()
