"""The outbox, its sender, and the services that send mails."""

from __future__ import annotations

import time
from dataclasses import dataclass

from authsvc.domain.accounts.addresses import Addresses
from authsvc.domain.accounts.recovery import Recovery
from authsvc.domain.accounts.requests import MailRequests, TicketProof
from authsvc.domain.accounts.tickets import Tickets, TicketSecrets
from authsvc.domain.tokens.derived import KeyPurpose, derived_key
from authsvc.mail.letters import Letters, Sender
from authsvc.mail.sender import MailRun, MailThread
from authsvc.mail.transports import FileTransport, SmtpTransport, Transport
from authsvc.services import RecoveryServices
from authsvc.settings import EmailVerification, MailSettings, MailTransport, Settings, revealed
from authsvc.settings.development import DEVELOPMENT_DIR
from authsvc.store.accounts.mails import SqlOutbox
from authsvc.store.accounts.recovery import SqlRecoveryStore
from authsvc.store.accounts.tickets import SqlTicketStore
from authsvc.store.copies.users import CachedRecoveryStore
from authsvc.wiring.parts import Parts
from authsvc.wiring.timings import Timings

MAIL_DIR = DEVELOPMENT_DIR / "mail"


@dataclass(frozen=True, slots=True)
class Mailing:
    """The services that views call, and the sender with its own thread."""

    services: RecoveryServices
    run: MailRun
    thread: MailThread


def _recovery_store(parts: Parts) -> SqlRecoveryStore:
    stores = parts.stores
    if not parts.settings.cache.is_enabled:
        return SqlRecoveryStore(stores.database, stores.log, parts.clock)
    return CachedRecoveryStore(stores.database, stores.log, parts.clock, caches=stores.redis.user_caches)


def open_mail(parts: Parts) -> Mailing:
    """All parts that deal with mails; does not start the thread."""
    settings, database, clock = parts.settings, parts.stores.database, parts.clock
    secrets, outbox = _ticket_secrets(settings), SqlOutbox(parts.stores.database)
    run = MailRun(
        outbox=outbox,
        letters=letters(settings),
        transport=transport(settings.mail, parts.timings),
        audit=parts.audit,
        clock=clock,
        monotonic=time.monotonic,
        most_per_minute=settings.mail.max_per_minute,
        on_result=parts.metrics.mail,
        timings=parts.timings.mail,
    )
    thread = MailThread(run, lambda: parts.metrics.mails_waiting(*outbox.waiting(now=clock())))
    store = _recovery_store(parts)
    proof = TicketProof(
        tickets=Tickets(SqlTicketStore(database), secrets),
        limits=parts.limits,
        clock=clock,
        on_result=parts.metrics.ticket,
    )
    requests = MailRequests(store=store, limits=parts.limits, wake=thread.wake, clock=clock)
    recovery = Recovery(
        requests=requests,
        proof=proof,
        store=store,
        roles=parts.stores.profile.roles,
        has_links=settings.mail.link_url is not None,
        credentials=parts.credentials,
        passwords=parts.proof,
        policy=parts.policy,
        revocations=parts.revocations,
        devices=parts.devices,
        audit=parts.audit,
        clock=clock,
    )
    addresses = Addresses(
        requests=requests,
        proof=proof,
        store=store,
        credentials=parts.credentials,
        passwords=parts.proof,
        policy=parts.policy,
        revocations=parts.revocations,
        audit=parts.audit,
        clock=clock,
        is_required=settings.registration.email_verification is EmailVerification.REQUIRED,
    )
    return Mailing(RecoveryServices(recovery, addresses), run, thread)


def letters(settings: Settings) -> Letters:
    """The templates and the sender's address of mails."""
    mail = settings.mail
    sender = Sender(
        address=mail.from_address or "",
        name=mail.from_name,
        reply_to=mail.reply_to,
        link_url=mail.link_url,
    )
    return Letters(sender, _ticket_secrets(settings), mail.templates_dir)


def transport(mail: MailSettings, timings: Timings | None = None) -> Transport:
    """The transport that MAIL_TRANSPORT names."""
    if mail.transport is MailTransport.FILE:
        return FileTransport(MAIL_DIR)
    return SmtpTransport(
        host=mail.smtp_host or "",
        port=mail.smtp_port,
        tls=mail.smtp_tls.value,
        username=mail.smtp_username,
        password=mail.smtp_password.reveal() if mail.smtp_password else None,
        ca_file=str(mail.smtp_ca_file) if mail.smtp_ca_file else None,
        timings=(timings or Timings()).smtp,
    )


def _ticket_secrets(settings: Settings) -> TicketSecrets:
    return TicketSecrets(derived_key(revealed(settings.tokens.secret), KeyPurpose.TICKETS))
