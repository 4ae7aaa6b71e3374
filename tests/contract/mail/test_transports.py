"""How a mail leaves, against a real relay with TLS and against one that plays tricks."""

from __future__ import annotations

import socket
import threading
from email.message import EmailMessage

import pytest

from authsvc.mail import SmtpTimings
from authsvc.mail.transports import (
    FileTransport,
    MailDeferred,
    MailRefused,
    RelayUnavailable,
    SmtpTransport,
)
from tests.processes import free_port
from tests.servers.certificates import Certificate, self_signed
from tests.servers.relay import CREDENTIALS, NAME, Relay, Trickster, playing

OFFERS_TLS = b"250-relay\r\n250 STARTTLS\r\n"
SECRET = "WDJB-MJHT"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Return the relay's."""
    return self_signed(tmp_path_factory.mktemp("relay"), NAME)


#: Wait for replies for a fraction of a second.
BRIEF = SmtpTimings(reply_s=0.3)


def letter() -> EmailMessage:
    """A mail with something in it that must not be seen in clear."""
    message = EmailMessage()
    message["From"], message["To"] = "authsvc@example.com", "ada@example.com"
    message["Message-ID"], message["Subject"] = "<1@example.com>", "Hello"
    message.set_content(SECRET)
    return message


def transport(port: int, tls: str = "none", **options: object) -> SmtpTransport:
    """To a relay on *port*."""
    return SmtpTransport(host=NAME, port=port, tls=tls, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_mail_and_a_password_travel_under_tls(certificate, tls) -> None:
    """By STARTTLS and with TLS from the first byte; the relay's certificate is verified."""
    user, password = CREDENTIALS.login.decode(), CREDENTIALS.password.decode()
    ca_file = str(certificate.public)

    with Relay(certificate, tls=tls, wants_login=True) as relay:
        way = transport(relay.port, tls, ca_file=ca_file, username=user, password=password)
        way.send(letter())

    (taken,) = relay.taken
    assert taken.has_tls
    assert taken.is_logged_in
    assert (taken.sender, taken.recipient) == ("authsvc@example.com", "ada@example.com")
    assert taken.text.strip() == SECRET


def test_a_wrong_password_at_the_relay_loses_no_mail(certificate) -> None:
    """The relay says 535, which is about us and not about the mail: it is tried again."""
    with Relay(certificate, wants_login=True) as relay:
        way = transport(
            relay.port, "starttls", ca_file=str(certificate.public), username="authsvc", password="old"
        )
        with pytest.raises(RelayUnavailable, match="535"):
            way.send(letter())

    assert relay.taken == []


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_certificate_of_another_name_gets_nothing(tmp_path, tls) -> None:
    """Its chain is trusted, its name is not the relay's."""
    other = self_signed(tmp_path, "other.example.com")

    with Relay(other, tls=tls) as relay, pytest.raises(RelayUnavailable, match="TLS"):
        transport(relay.port, tls, ca_file=str(other.public)).send(letter())

    assert relay.taken == []


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_certificate_of_an_unknown_authority_gets_nothing(certificate, tls) -> None:
    """Without SMTP_CA_FILE the system's authorities are asked, and none of them made it."""
    with Relay(certificate, tls=tls) as relay, pytest.raises(RelayUnavailable, match="TLS"):
        transport(relay.port, tls).send(letter())

    assert relay.taken == []


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"EHLO": b"250 relay\r\n"}, "no STARTTLS"),
        ({"EHLO": OFFERS_TLS, "STARTTLS": b"454 not now\r\n"}, "smtp 454"),
        ({"EHLO": OFFERS_TLS, "STARTTLS": b"554 never\r\n"}, "smtp 554"),
        ({"EHLO": OFFERS_TLS, "STARTTLS": b"220 go\r\n250-relay\r\n250 AUTH PLAIN\r\n"}, "connection lost"),
        ({"EHLO": OFFERS_TLS, "STARTTLS": b"220 go\r\n250 "}, "connection lost"),
    ],
    ids=["stripped", "not-now", "never", "bytes-behind-the-220", "part-of-a-line-behind-it"],
)
def test_a_relay_without_starttls_gets_nothing(certificate, answers, why) -> None:
    """Neither the mail nor a name nor a password leaves in clear, and the mail is tried again."""
    with playing(Trickster(answers=answers)) as trickster:
        way = transport(
            trickster.port, "starttls", ca_file=str(certificate.public), username="authsvc", password="p"
        )
        with pytest.raises(RelayUnavailable, match=why):
            way.send(letter())

    said = {line.split()[0].upper() for line in trickster.heard}
    assert said <= {b"EHLO", b"STARTTLS"}


@pytest.mark.parametrize(
    ("command", "reply", "outcome"),
    [
        ("RCPT", "550 no such user", MailRefused),
        ("RCPT", "450 greylisted", MailDeferred),
        ("RCPT", "421 closing", RelayUnavailable),
        ("DATA", "554 spam", MailRefused),
        ("DATA", "451 later", MailDeferred),
    ],
)
def test_a_reply_says_whether_the_mail_is_tried_again(certificate, command, reply, outcome) -> None:
    """5xx to the mail is final; 4xx is not, and 421 is about the connection."""
    with Relay(certificate) as relay:
        relay.answers[command] = reply
        with pytest.raises(outcome, match=reply[:3]):
            transport(relay.port, "starttls", ca_file=str(certificate.public)).send(letter())

    assert relay.taken == []


def test_a_relay_that_is_down_or_does_not_speak_is_unavailable() -> None:
    """Port closed, no banner, a refusal instead of a banner, and silence after a command."""
    with pytest.raises(RelayUnavailable, match="ConnectionRefusedError"):
        transport(free_port()).send(letter())
    for trickster, why in (
        (Trickster(banner=None), "no answer in time"),
        (Trickster(banner=b"554 go away\r\n"), "smtp 554"),
        (Trickster(answers={"MAIL": None}), "no answer in time"),
        (Trickster(answers={"DATA": None}), "no answer in time"),
    ):
        with playing(trickster), pytest.raises(RelayUnavailable, match=why):
            transport(trickster.port, timings=BRIEF).send(letter())


def test_a_relay_that_hangs_after_data_is_unavailable(certificate) -> None:
    """It may have the mail or not: the mail is tried again, and whoever reads it sees the same one."""
    with Relay(certificate) as relay:
        relay.answering.clear()
        with pytest.raises(RelayUnavailable, match="no answer in time"):
            transport(relay.port, "starttls", ca_file=str(certificate.public), timings=BRIEF).send(letter())


def test_a_relay_that_dribbles_is_cut_off() -> None:
    """Each byte comes in time, the reply never: the whole mail has a limit of its own."""
    server = socket.create_server(("127.0.0.1", 0))
    is_over = threading.Event()

    def dribble() -> None:
        connection, _ = server.accept()
        with connection:
            while not is_over.wait(0.02):
                try:
                    connection.sendall(b"2")
                except OSError:
                    return

    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        with pytest.raises(RelayUnavailable):
            transport(server.getsockname()[1], timings=SmtpTimings(total_s=0.5)).send(letter())
    finally:
        is_over.set()
        thread.join()
        server.close()


def test_a_relay_that_does_not_answer_quit_has_the_mail() -> None:
    """What follows the 250 is a courtesy."""
    answers: dict[str, bytes | None] = dict.fromkeys(_lines_of(letter()), b"")
    answers |= {"DATA": b"354 go\r\n", ".": b"250 taken\r\n", "QUIT": b"500 what\r\n"}
    with playing(Trickster(answers=answers)) as trickster:
        transport(trickster.port).send(letter())

    assert trickster.heard[-1].strip().upper() == b"QUIT"


def test_a_file_appears_whole_and_the_log_names_it(tmp_path, caplog) -> None:
    """For development: named by the mail's id, readable by its owner alone."""
    caplog.set_level("INFO")

    FileTransport(tmp_path / "mail").send(letter())

    (path,) = (tmp_path / "mail").iterdir()
    assert path.name == "1.eml"
    assert SECRET in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert [getattr(record, "file", None) for record in caplog.records] == [str(path)]


def _lines_of(message: EmailMessage) -> set[str]:
    """The first words of the mail's lines, which a server reads as if they were commands."""
    return {line.split()[0].upper() for line in message.as_string().splitlines() if line.split()} | {""}
