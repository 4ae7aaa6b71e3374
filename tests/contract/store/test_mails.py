"""The outbox: each mail leaves once, in order, and ends sent, failed or void, whoever dies meanwhile."""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from authsvc.domain.accounts.mails import MailState, MailTimings, Template, new_mail
from authsvc.domain.accounts.tickets import Purpose, TicketSecrets, new_ticket
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.values.emails import Email
from authsvc.mail.letters import Letters, Sender
from authsvc.mail.sender import MailRun
from authsvc.mail.transports import MailDeferred, MailRefused, RelayUnavailable
from authsvc.store.accounts.mails import SqlOutbox, add_mail
from authsvc.store.accounts.tickets import add_ticket
from authsvc.store.tables import mails, tickets
from tests.contract.cache.clients import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import EmailMessage

    from authsvc.domain.accounts.mails import Mail
    from authsvc.domain.accounts.tickets import Ticket
    from authsvc.domain.audit import Event
    from authsvc.domain.users import User
    from tests.contract.store.stores import Stores

LEASE_S = MailTimings().lease_s

SECRETS = TicketSecrets(b"k" * 32)
SENDERS, MAILS = 4, 60


@dataclass
class Recorder:
    """Keeps what is sent and recorded; *answer* is called for each mail, and may raise."""

    answer: Callable[[EmailMessage], object] = field(default=lambda _message: None)
    sent: list[EmailMessage] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    results: Counter[tuple[str, str]] = field(default_factory=Counter)

    def send(self, message: EmailMessage) -> None:
        """As a relay."""
        self.answer(message)
        self.sent.append(message)

    def record(self, event: Event) -> None:
        """As the audit trail."""
        self.events.append(event)

    def on_result(self, template: str, result: str) -> None:
        """As the metrics."""
        self.results[template, result] += 1


@pytest.fixture
def outbox(stores: Stores) -> SqlOutbox:
    """Return the outbox of each kind of database in turn."""
    return SqlOutbox(stores.database)


@pytest.fixture
def recorder() -> Recorder:
    """Return what stands at the other ends."""
    return Recorder()


def run_of(stores: Stores, recorder: Recorder, *, most_per_minute: int = 10_000) -> MailRun:
    """A sender of its own, whose clocks are those of *stores*."""
    return MailRun(
        outbox=SqlOutbox(stores.database),
        letters=Letters(Sender(address="authsvc@example.com"), SECRETS),
        transport=recorder,
        audit=recorder,
        clock=stores.clock,
        monotonic=lambda: stores.clock().timestamp(),
        most_per_minute=most_per_minute,
        on_result=recorder.on_result,
    )


def ask(stores: Stores, template: Template, recipient: str, ticket: Ticket | None = None) -> Mail:
    """Put a mail into the outbox, with its ticket."""
    mail = new_mail(template, Email(recipient), now=stores.clock(), ticket=ticket)
    with stores.database.transaction() as connection:
        if ticket is not None:
            add_ticket(connection, ticket)
        add_mail(connection, mail)
    return mail


def ask_reset(stores: Stores, recipient: str) -> Mail:
    """As somebody who forgot their password: a ticket of nobody yet."""
    ticket = new_ticket(Purpose.RESET, Email(recipient), stores.clock())
    return ask(stores, Template.RESET, recipient, ticket)


def state_of(stores: Stores, mail: Mail) -> tuple[str, int]:
    """The mail's state and how often it was tried."""
    with stores.database.read() as connection:
        row = connection.execute(select(mails.c.state, mails.c.attempts).where(mails.c.id == mail.id)).one()
    return row.state, row.attempts


def recipients(recorder: Recorder) -> list[str]:
    """To whom mails were sent, in order."""
    return [str(message["To"]) for message in recorder.sent]


def test_many_senders_send_every_mail_once(stores, recorder):
    """Threads with senders of their own over one outbox; the count is exact."""
    for number in range(MAILS):
        ask(stores, Template.PASSWORD_CHANGED, f"u{number}@example.com")
    runs = [run_of(stores, recorder) for _ in range(SENDERS)]

    def drain(run: MailRun) -> None:
        while run.round():
            pass

    in_threads(*(partial(drain, run) for run in runs))

    assert Counter(recipients(recorder)) == {f"u{number}@example.com": 1 for number in range(MAILS)}
    assert recorder.results == {("password_changed", "sent"): MAILS}


def test_a_claim_takes_no_more_than_it_asks_for_and_urgent_mails_first(stores, outbox):
    """Resets and notices before what can wait; among equals, who came first."""
    asked = [ask(stores, Template.TAKEN, f"t{number}@example.com") for number in range(3)]
    stores.clock.tick(1)
    urgent = [ask(stores, Template.PASSWORD_CHANGED, f"n{number}@example.com") for number in range(3)]

    first = [
        delivery.mail.id for delivery in outbox.claim(most=4, now=stores.clock(), owner="a", lease_s=LEASE_S)
    ]
    second = [
        delivery.mail.id for delivery in outbox.claim(most=4, now=stores.clock(), owner="b", lease_s=LEASE_S)
    ]

    assert first == [*sorted(mail.id for mail in urgent), min(mail.id for mail in asked)]
    assert second == sorted(mail.id for mail in asked)[1:]


def test_the_mails_of_a_sender_that_died_wait_for_its_lease(stores, outbox, recorder):
    """Nobody sends them before, somebody does afterwards."""
    mail = ask(stores, Template.PASSWORD_CHANGED, "ada@example.com")
    outbox.claim(most=10, now=stores.clock(), owner="dead", lease_s=LEASE_S)
    run = run_of(stores, recorder)

    stores.clock.tick(LEASE_S - 1)
    assert run.round() == 0
    stores.clock.tick(1)
    assert run.round() == 1

    assert state_of(stores, mail) == ("sent", 2)
    assert len(recorder.sent) == 1


def test_a_sender_that_comes_back_too_late_changes_nothing(stores, outbox):
    """Another has the mail by then, and decides what became of it; nor is it given back under them."""
    mail = ask(stores, Template.PASSWORD_CHANGED, "ada@example.com")
    (taken,) = outbox.claim(most=10, now=stores.clock(), owner="late", lease_s=LEASE_S)
    stores.clock.tick(LEASE_S)
    outbox.claim(most=10, now=stores.clock(), owner="other", lease_s=LEASE_S)

    is_written = outbox.settle(taken.mail, MailState.FAILED, owner="late", now=stores.clock())
    outbox.release(taken.mail, owner="late")

    assert not is_written
    assert state_of(stores, mail) == ("queued", 2)
    assert outbox.settle(taken.mail, MailState.SENT, owner="other", now=stores.clock())


def test_senders_that_were_forked_from_one_process_have_leases_of_their_own(stores, outbox, recorder):
    """What sends mails is made before the fork: with one name, both could settle the same mail."""
    made = run_of(stores, recorder)
    late, other = copy(made), copy(made)
    for forked in (late, other):
        forked.start()
    mail = ask(stores, Template.PASSWORD_CHANGED, "ada@example.com")

    def outlive(_message: EmailMessage) -> None:
        stores.clock.tick(LEASE_S)
        outbox.claim(most=1, now=stores.clock(), owner=other.owner, lease_s=LEASE_S)
        raise MailRefused("too late")

    recorder.answer = outlive
    late.round()

    assert recorder.results == {}
    assert state_of(stores, mail) == ("queued", 2)


def test_a_mail_is_tried_after_5_and_30_seconds_2_10_and_30_minutes_then_hourly(stores, recorder):
    """Until its ticket ends: then it has failed, and an event says so, without an address."""
    user = stores.register("ada")
    recorder.answer = raising(RelayUnavailable("no answer in time"))
    ticket = bound(new_ticket(Purpose.VERIFY, user.email, stores.clock()), user)
    mail = ask(stores, Template.VERIFY, user.email, ticket)
    run, tried_after = run_of(stores, recorder), []

    for wait_s in (0, 5, 30, 120, 600, 1_800, *[3_600] * 24):
        if wait_s:
            stores.clock.tick(wait_s - 1)
            assert run.round() == 0
            stores.clock.tick(1)
        tried_after.append(run.round())
        if state_of(stores, mail)[0] == "failed":
            break

    assert set(tried_after) == {1}
    assert stores.clock() < ticket.expires_at < stores.clock() + timedelta(seconds=3_600)
    assert [(event.action, event.user_id, event.detail) for event in recorder.events] == [
        ("mail.failed", user.id, f"verify {mail.id}: no answer in time")
    ]
    assert recorder.results["verify", "failed"] == 1


def test_a_mail_that_is_tried_again_is_the_same_mail(stores, recorder):
    """One Message-ID, one code: who gets it twice sees one mail."""
    stores.register("ada")
    ask_reset(stores, "ada@example.com")
    seen: list[bytes] = []

    def hang_at_first(message: EmailMessage) -> None:
        seen.append(message.as_bytes().replace(boundary_of(message), b""))
        if len(seen) == 1:
            raise RelayUnavailable("no answer in time")

    recorder.answer = hang_at_first
    run = run_of(stores, recorder)
    run.round()
    stores.clock.tick(5)
    run.round()

    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_a_refused_mail_has_failed_at_once_and_can_be_tried_by_hand(stores, outbox, recorder):
    """5xx; `mail retry` makes it due again."""
    recorder.answer = raising(MailRefused("smtp 550"))
    mail = ask(stores, Template.PASSWORD_CHANGED, "ada@example.com")
    run = run_of(stores, recorder)
    run.round()
    assert state_of(stores, mail) == ("failed", 1)
    assert [event.detail for event in recorder.events] == [f"password_changed {mail.id}: smtp 550"]

    recorder.answer = lambda _message: None
    assert outbox.retry(mail.id, now=stores.clock(), ends_at=stores.clock())
    run.round()

    assert state_of(stores, mail) == ("sent", 1)
    assert not outbox.retry(mail.id, now=stores.clock(), ends_at=stores.clock())


def test_a_mail_that_is_being_sent_is_not_tried_by_hand(stores, outbox):
    """Or it would be sent twice."""
    mail = ask(stores, Template.PASSWORD_CHANGED, "ada@example.com")
    outbox.claim(most=1, now=stores.clock(), owner="somebody", lease_s=LEASE_S)

    assert not outbox.retry(mail.id, now=stores.clock(), ends_at=stores.clock())


def test_five_failures_pause_and_the_first_success_brings_the_others_forward(stores, recorder):
    """What waits for the relay goes out at once when it is back; what it put off waits for its time."""
    put_off = ask(stores, Template.PASSWORD_CHANGED, "late@example.com")
    recorder.answer = raising(MailDeferred("smtp 450"))
    run = run_of(stores, recorder)
    run.round()
    recorder.answer = raising(RelayUnavailable("no answer in time"))
    asked = [ask(stores, Template.TAKEN, f"u{number}@example.com") for number in range(6)]

    assert run.round() == 6
    assert sorted(state_of(stores, mail)[1] for mail in asked) == [0, 0, 1, 1, 1, 1]
    stores.clock.tick(29)
    assert run.round() == 0
    recorder.answer = raising_for("late@example.com", MailDeferred("smtp 450"))
    stores.clock.tick(1)
    while run.round():
        pass

    assert [state_of(stores, mail)[0] for mail in asked] == ["sent"] * 6
    assert state_of(stores, put_off) == ("queued", 2)


def test_a_process_that_starts_after_the_outage_brings_mails_forward_too(stores, recorder):
    """It has seen no failure itself; the mails have."""
    recorder.answer = raising(RelayUnavailable("no answer in time"))
    waits = ask(stores, Template.TAKEN, "waits@example.com")
    old = run_of(stores, recorder)
    for wait_s in (0, 5, 30, 120):
        stores.clock.tick(wait_s)
        old.round()
    recorder.answer = lambda _message: None
    ask(stores, Template.TAKEN, "new@example.com")

    fresh = run_of(stores, recorder)
    while fresh.round():
        pass

    assert state_of(stores, waits) == ("sent", 5)


def test_a_mail_that_cannot_be_written_stops_no_other(stores, recorder):
    """Whatever its fault is; nor does it count as a failure of the relay."""
    ill = [ask(stores, Template.PASSWORD_CHANGED, f"ill{number}@example.com") for number in range(6)]
    well = ask(stores, Template.TAKEN, "ada@example.com")
    with stores.database.transaction() as connection:
        connection.execute(
            update(mails).where(mails.c.id.in_([m.id for m in ill])).values(recipient="no address")
        )

    run_of(stores, recorder).round()

    assert state_of(stores, well) == ("sent", 1)
    assert {state_of(stores, mail) for mail in ill} == {("queued", 1)}


def test_who_is_told_to_stop_finishes_one_mail_and_gives_the_others_back(stores, recorder):
    """They are due at once for whoever goes on, and were not tried."""
    asked = [ask(stores, Template.TAKEN, f"u{number}@example.com") for number in range(3)]

    run_of(stores, recorder).round(lambda: bool(recorder.sent))
    assert sorted(state_of(stores, mail) for mail in asked) == [("queued", 0), ("queued", 0), ("sent", 1)]
    run_of(stores, recorder).round()

    assert {state_of(stores, mail) for mail in asked} == {("sent", 1)}


def test_a_result_that_sql_does_not_take_is_written_later_and_the_mail_not_sent_again(
    stores, recorder, monkeypatch
):
    """The relay has said 250: only the death of the process may lose that."""
    asked = [ask(stores, Template.TAKEN, f"u{number}@example.com") for number in range(3)]
    run = run_of(stores, recorder)
    settle, is_down = SqlOutbox.settle, True

    def fail_while_down(*arguments, **named):
        if is_down:
            raise StoreUnavailable("sql: down")
        return settle(*arguments, **named)

    monkeypatch.setattr(SqlOutbox, "settle", fail_while_down)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            run.round()
    is_down = False
    stores.clock.tick(LEASE_S)
    while run.round():
        pass

    assert Counter(recipients(recorder)) == {mail.recipient: 1 for mail in asked}
    assert {state_of(stores, mail) for mail in asked} == {("sent", 1)}


def test_a_process_sends_no_more_in_a_minute_than_it_may(stores, recorder):
    """MAIL_MAX_PER_MINUTE; the rest goes in the next one."""
    for number in range(5):
        ask(stores, Template.TAKEN, f"u{number}@example.com")
    run = run_of(stores, recorder, most_per_minute=3)

    while run.round():
        pass
    assert len(recorder.sent) == 3
    stores.clock.tick(60)
    while run.round():
        pass

    assert len(recorder.sent) == 5


def test_mails_that_nobody_is_to_get_are_void(stores, recorder):
    """No account, a disabled one, a proven address, a dead ticket, and a new address that is taken."""
    stores.register("proven", email_verified=True)
    alice, gone = stores.register("alice"), stores.register("gone", status="disabled")
    now = stores.clock()
    dead = bound(new_ticket(Purpose.RESET, alice.email, now), alice)
    change = bound(new_ticket(Purpose.CHANGE, Email("proven@example.com"), now), alice)
    void = [
        ask_reset(stores, "nobody@example.com"),
        ask_reset(stores, gone.email),
        ask(
            stores,
            Template.VERIFY,
            "proven@example.com",
            new_ticket(Purpose.VERIFY, Email("proven@example.com"), now),
        ),
        ask(stores, Template.RESET, alice.email, replace(dead, used_at=now)),
        ask(stores, Template.CHANGE, "proven@example.com", change),
    ]

    run_of(stores, recorder).round()

    assert {state_of(stores, mail)[0] for mail in void} == {"void"}
    assert recorder.sent == []
    assert {result for _, result in recorder.results} == {"void"}


def test_a_reset_is_bound_to_the_account_that_has_the_address(stores, recorder):
    """The request knew none; the sender does, and the mail carries the ticket's code."""
    user = stores.register("ada")
    mail = ask_reset(stores, user.email)

    run_of(stores, recorder).round()

    with stores.database.read() as connection:
        row = connection.execute(select(tickets).where(tickets.c.id == mail.ticket_id)).one()
    assert (row.user_id, row.bound_email, row.password_version) == (user.id, user.email, 1)
    (message,) = recorder.sent
    ticket = replace(new_ticket(Purpose.RESET, user.email, stores.clock()), id=row.id, salt=row.salt)
    assert SECRETS.code(ticket) in message.as_string()


def test_who_registers_an_address_that_has_an_account_is_told_by_mail_alone(stores, recorder):
    """That mail carries no code."""
    user = stores.register("ada")
    ticket = new_ticket(Purpose.REGISTER, user.email, stores.clock())
    ask(stores, Template.REGISTER, user.email, ticket)

    run_of(stores, recorder).round()

    (message,) = recorder.sent
    assert message["Subject"] == "You already have an account"
    assert SECRETS.code(ticket) not in message.as_string()


def raising(error: Exception) -> Callable[[EmailMessage], None]:
    """A relay that always answers so."""

    def answer(_message: EmailMessage) -> None:
        raise error

    return answer


def raising_for(recipient: str, error: Exception) -> Callable[[EmailMessage], None]:
    """A relay that answers so to the mails of *recipient*."""

    def answer(message: EmailMessage) -> None:
        if message["To"] == recipient:
            raise error

    return answer


def bound(ticket: Ticket, user: User) -> Ticket:
    """*ticket* for *user*, who has their first password."""
    return replace(ticket, user_id=user.id, bound_email=user.email, password_version=1)


def boundary_of(message: EmailMessage) -> bytes:
    """What separates the parts, made anew for each rendering."""
    return str(message.get_boundary()).encode()
