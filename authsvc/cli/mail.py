"""Commands for the outbox: try the relay, list mails, try one again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta

from authsvc.cli.admin import open_settings
from authsvc.domain.accounts.mails import Mail, MailId, Template, new_mail
from authsvc.domain.values.clocks import rfc3339
from authsvc.domain.values.emails import InvalidEmail, canonical_email
from authsvc.domain.values.identifiers import canonical_id
from authsvc.mail.transports import MailDeferred, MailRefused, RelayUnavailable
from authsvc.settings import Settings
from authsvc.store.accounts.mails import SqlOutbox
from authsvc.wiring import now
from authsvc.wiring.mail import letters, transport
from authsvc.wiring.stores import open_database

#: Number of mails to list, and how long sending a retried mail is tried.
MOST = 200
RETRIED_FOR = timedelta(days=1)


def add_mail(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``mail``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    trial = actions.add_parser("test", help="send one mail now, past the outbox, and say how it went")
    trial.add_argument("address", metavar="ADDRESS")
    trial.set_defaults(run=run_test)
    listing = actions.add_parser("list", help=f"list the newest {MOST} mails, a JSON line each")
    listing.set_defaults(run=run_list)
    retry = actions.add_parser("retry", help="send a mail that waits or failed again, now")
    retry.add_argument("id", metavar="ID", help="as `mail list` shows it")
    retry.set_defaults(run=run_retry)


def run_test(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Send one mail; an error shows the answer of the relay."""
    settings = _settings(options, env)
    try:
        mail = new_mail(Template.VERIFY, canonical_email(options.address), now=now())
        transport(settings.mail, options.timings).send(letters(settings).trial(mail))
    except InvalidEmail as error:
        raise ValueError(f"ADDRESS {error}") from error
    except MailRefused as error:
        raise ValueError(f"the relay refused the mail: {error}") from error
    except (MailDeferred, RelayUnavailable) as error:
        raise ValueError(f"the relay did not take the mail: {error}") from error
    print(json.dumps({"result": "sent"}))
    return 0


def run_list(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """List mails, the newest first; without addresses."""
    with _outbox(options, env) as outbox:
        for mail in outbox.page(most=MOST):
            print(json.dumps(_described(mail)))
    return 0


def run_retry(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Make a mail due at once."""
    ident = canonical_id(options.id)
    with _outbox(options, env) as outbox:
        is_there = ident is not None and outbox.retry(MailId(ident), now=now(), ends_at=now() + RETRIED_FOR)
    if not is_there:
        raise ValueError(
            "ID names no mail that waits or failed, or it is being sent now: `authsvc mail list` shows them"
        )
    print(json.dumps({"id": ident, "state": "queued"}))
    return 0


def _settings(options: argparse.Namespace, env: Mapping[str, str]) -> Settings:
    """The settings; raises ValueError if mails are off."""
    settings = open_settings(options, env)
    if not settings.mail.is_on:
        raise ValueError("no mail is sent: MAIL_TRANSPORT is off")
    return settings


@contextmanager
def _outbox(options: argparse.Namespace, env: Mapping[str, str]) -> Iterator[SqlOutbox]:
    """The outbox in SQL; raises ValueError if mails are off."""
    with closing(open_database(_settings(options, env), options.timings)) as database:
        yield SqlOutbox(database)


def _described(mail: Mail) -> dict[str, object]:
    return {
        "id": mail.id,
        "template": mail.template.value,
        "state": mail.state.value,
        "attempts": mail.attempts,
        "next_try": rfc3339(mail.next_try_at),
    }
