"""A service that sends mails, relays for it that are broken, and people who ask for mails."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, cycle
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from authsvc.domain.accounts.mails import Template, new_mail
from authsvc.domain.values.emails import Email
from authsvc.settings import Settings
from authsvc.store.accounts.mails import add_mail
from authsvc.store.tables import mails
from authsvc.wiring import now
from authsvc.wiring.stores import open_database
from tests.processes import free_port, wait_until
from tests.rig import Service, environment, migrate
from tests.servers import drop_database
from tests.servers.certificates import Certificate, self_signed
from tests.servers.relay import NAME, Relay, Trickster, playing
from tests.timings import HASTY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

    from authsvc.store.sql import Database
    from tests.servers import PostgresServer, Remote

OFFERS_TLS = b"250-relay\r\n250 STARTTLS\r\n"
NUMBERS = count(1)


@dataclass(frozen=True, slots=True)
class Post:
    """A service, and the port where its relay is to be."""

    service: Service
    port: int
    certificate: Certificate
    redis_url: str
    folder: Path

    def relay(self, **options: float) -> Relay:
        """A good relay there."""
        return Relay(self.certificate, port=self.port, takes_s=options.get("takes_s", 0.0))

    def ask(self, email: str) -> list[int]:
        """Register, and forget the password: a mail each; the statuses."""
        forgotten = self.service.call("POST", "/v1/auth/password/forgot", json={"email": email})
        assert set(forgotten.json()) == {"ticket", "expires_in"}
        return [forgotten.status_code, self.service.call("GET", "/v1/health/ready").status_code]

    def log_of(self, event: str) -> list[dict[str, object]]:
        """The log's lines of *event*."""
        lines = self.service.log.read_text().splitlines()
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in parsed if line.get("event") == event]

    def states(self) -> Counter[str]:
        """How many mails are in each state."""
        with outbox_of(self) as database, database.read() as connection:
            rows = connection.execute(
                select(mails.c.state, func.count().label("count")).group_by(mails.c.state)
            )
            return Counter({row.state: row.count for row in rows})


def outbox_of(post: Post) -> AbstractContextManager[Database]:
    """Open the service's database."""
    return closing(open_database(Settings.from_env(post.service.env)))


@contextmanager
def post_of(
    postgres: PostgresServer | Remote, redis_url: str, folder: Path, *, entry: tuple[str, ...] = HASTY
) -> Iterator[Post]:
    """A service with two workers whose relay is not there yet."""
    port, certificate = free_port(), self_signed(folder, NAME)
    env = environment(
        postgres.create_database(),
        redis_url,
        folder,
        CACHE_KEY_PREFIX=f"mail-{port}",
        MAIL_TRANSPORT="smtp",
        MAIL_FROM="authsvc@example.com",
        MAIL_MAX_PER_MINUTE="100000",
        SMTP_HOST=NAME,
        SMTP_PORT=str(port),
        SMTP_CA_FILE=str(certificate.public),
        LINK_URL="https://app.example.com",
        RATE_LIMIT_MAIL_IP="off",
        RATE_LIMIT_MAIL_ADDRESS="off",
    )
    migrate(env)
    with Service(env, folder, entry=entry) as service:
        yield Post(service, port, certificate, redis_url, folder)
    drop_database(postgres.url, env["DATABASE_URL"])


@contextmanager
def nobody(_post: Post) -> Iterator[None]:
    """The port is closed."""
    yield


def trick(**said: bytes | dict[str, bytes | None] | None) -> Callable[[Post], AbstractContextManager[object]]:
    """A relay that plays a trick."""
    return lambda post: playing(Trickster(port=post.port, **said))  # type: ignore[arg-type]


def answering(command: str, reply: str) -> Callable[[Post], AbstractContextManager[object]]:
    """A relay that answers *command* so."""

    def made(post: Post) -> Relay:
        relay = post.relay()
        relay.answers[command] = reply
        return relay

    return made


def hanging(post: Post) -> Relay:
    """A relay that reads a mail to its end and says nothing."""
    relay = post.relay()
    relay.answering.clear()
    return relay


def of_another_name(post: Post) -> Relay:
    """A relay with a certificate that is trusted, and not its own."""
    other = self_signed(post.folder, "other.example.com")
    # Trusted, too: only the name is wrong.
    trusted = post.certificate.public.read_bytes()
    if other.public.read_bytes() not in trusted:
        post.certificate.public.write_bytes(trusted + other.public.read_bytes())
    return Relay(other, port=post.port)


FAULTS: dict[str, tuple[Callable[[Post], AbstractContextManager[object]], str]] = {
    "relay-down": (nobody, "ConnectionRefusedError"),
    "relay-silent": (trick(banner=None), "no answer in time"),
    "relay-busy": (answering("RCPT", "451 later"), "smtp 451"),
    "relay-hangs-after-data": (hanging, "no answer in time"),
    "relay-tls-stripped": (trick(answers={"EHLO": b"250 relay\r\n"}), "no STARTTLS or no AUTH offered"),
    "relay-bytes-behind-220": (
        trick(answers={"EHLO": OFFERS_TLS, "STARTTLS": b"220 go\r\n250 AUTH PLAIN\r\n"}),
        "connection lost",
    ),
    "relay-wrong-name": (of_another_name, "TLS: Hostname mismatch"),
}


class Load:
    """Asks for resets for *people*, one after the other, and keeps statuses and times."""

    def __init__(self, post: Post, *, people: int) -> None:
        self._post = post
        self._emails = [f"l{next(NUMBERS)}@example.com" for _ in range(people)]
        for email in self._emails:
            assert post.service.register(email).status_code == 201
        self.statuses: Counter[int] = Counter()
        self._times_s: list[float] = []
        self._marked_at_s = 0.0
        self._is_over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask meanwhile."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    def wait_for(self, number: int) -> None:
        """Wait for *number* further answers."""
        enough = self.statuses.total() + number
        wait_until(lambda: self.statuses.total() >= enough, what="answers")

    def mark(self) -> str:
        """How many answers there were since the last mark, and their median time."""
        times_s, self._times_s = self._times_s, []
        self._marked_at_s = time.monotonic()
        return f"{len(times_s)} answers, median {1000 * statistics.median(times_s):.0f} ms"

    def is_older(self, seconds: float) -> bool:
        """The last mark is *seconds* ago."""
        return time.monotonic() - self._marked_at_s > seconds

    def _run(self) -> None:
        for email in cycle(self._emails):
            if self._is_over.wait(0.1):
                return
            began = time.monotonic()
            answer = self._post.service.call("POST", "/v1/auth/password/forgot", json={"email": email})
            self._times_s.append(time.monotonic() - began)
            self.statuses[answer.status_code] += 1


def waiting_since_before(post: Post, moment: datetime) -> int:
    """How many mails wait that were asked for before *moment*."""
    with outbox_of(post) as database, database.read() as connection:
        older = select(func.count()).where(mails.c.state == "queued", mails.c.asked_at < moment)
        number: int = connection.execute(older).scalar_one()
        return number


def put(post: Post, recipients: list[str]) -> None:
    """Commit a mail to each of *recipients*."""
    with outbox_of(post) as database, database.transaction() as connection:
        for recipient in recipients:
            add_mail(connection, new_mail(Template.PASSWORD_CHANGED, Email(recipient), now=now()))
