"""The outbox, its sender, and the services that mails make possible."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass

from authsvc.domain.accounts.addresses import Addresses
from authsvc.domain.accounts.mails import Template, new_mail
from authsvc.domain.accounts.recovery import Recovery
from authsvc.domain.accounts.requests import MailRequests, TicketProof
from authsvc.domain.accounts.tickets import Tickets, TicketSecrets
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.passwords.policy import PasswordPolicy
from authsvc.domain.tokens.devices import DeviceTokens
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import canonical_email
from authsvc.mail.letters import Letters, Sender
from authsvc.mail.sender import MailRun, MailThread
from authsvc.mail.transports import FileTransport, SmtpTransport, Transport
from authsvc.services import RecoveryServices
from authsvc.settings import EmailVerification, MailSettings, MailTransport, Settings
from authsvc.settings.development import DEVELOPMENT_DIR
from authsvc.store.copies.users import CachedRecoveryStore
from authsvc.store.mails import SqlOutbox
from authsvc.store.recovery import SqlRecoveryStore
from authsvc.store.tickets import SqlTicketStore
from authsvc.wiring.parts import Parts

MAIL_DIR = DEVELOPMENT_DIR / "mail"


#: The oldest mail has waited for longer (seconds): mail is said to be delayed.
DELAYED_S = 10.0


@dataclass(frozen=True, slots=True)
class MailRoom:
    """What views call, and the thread that sends."""

    recovery: RecoveryServices
    thread: MailThread
    clock: Clock


def mail_state(room: MailRoom | None) -> str | None:
    """``up``, ``delayed`` or ``off``; None where SQL does not tell."""
    if room is None:
        return "off"
    try:
        _, oldest_s = room.recovery.outbox.waiting(now=room.clock())
    except StoreUnavailable:
        return None
    return "delayed" if oldest_s > DELAYED_S else "up"


def _recovery_store(parts: Parts) -> SqlRecoveryStore:
    stores = parts.stores
    if not parts.settings.cache.is_enabled:
        return SqlRecoveryStore(stores.database, stores.log, parts.clock)
    return CachedRecoveryStore(stores.database, stores.log, parts.clock, caches=stores.user_caches)


def open_mail(parts: Parts, policy: PasswordPolicy, devices: DeviceTokens) -> MailRoom:
    """Everything that has to do with mails; the thread is not started."""
    settings, database, clock = parts.settings, parts.stores.database, parts.clock
    secrets, outbox = ticket_secrets(settings), SqlOutbox(parts.stores.database)
    run = MailRun(
        outbox=outbox,
        letters=letters(settings),
        transport=transport(settings.mail),
        audit=parts.audit,
        clock=clock,
        monotonic=time.monotonic,
        most_per_minute=settings.mail.max_per_minute,
        on_result=parts.metrics.mail,
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
        policy=policy,
        revocations=parts.revocations,
        devices=devices,
        audit=parts.audit,
        clock=clock,
    )
    addresses = Addresses(
        requests=requests,
        proof=proof,
        store=store,
        credentials=parts.credentials,
        passwords=parts.proof,
        policy=policy,
        revocations=parts.revocations,
        audit=parts.audit,
        clock=clock,
        is_required=settings.registration.email_verification is EmailVerification.REQUIRED,
    )

    def try_out(address: str) -> None:
        mail = new_mail(Template.VERIFY, canonical_email(address), now=clock())
        run.transport.send(run.letters.trial(mail))

    return MailRoom(RecoveryServices(recovery, addresses, outbox, try_out), thread, clock)


def letters(settings: Settings) -> Letters:
    """The templates, and whom mails come from."""
    mail = settings.mail
    sender = Sender(
        address=mail.from_address or "",
        name=mail.from_name,
        reply_to=mail.reply_to,
        link_url=mail.link_url,
    )
    return Letters(sender, ticket_secrets(settings), mail.templates_dir)


def transport(mail: MailSettings) -> Transport:
    """The way out."""
    if mail.transport is MailTransport.FILE:
        return FileTransport(MAIL_DIR)
    return SmtpTransport(
        host=mail.smtp_host or "",
        port=mail.smtp_port,
        tls=mail.smtp_tls.value,
        username=mail.smtp_username,
        password=mail.smtp_password.reveal() if mail.smtp_password else None,
        ca_file=str(mail.smtp_ca_file) if mail.smtp_ca_file else None,
    )


def ticket_secrets(settings: Settings) -> TicketSecrets:
    """The key of codes and links: of no use for anything else, and the same in every process."""
    secret = settings.tokens.secret
    if secret is None:
        raise ValueError("a secret is missing: development makes its own with ensure_development_files()")
    return TicketSecrets(hmac.digest(secret.reveal().encode(), b"authsvc ticket key 1", "sha256"))
