"""Commands for the outbox: try the relay, list mails, try one again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta

from authsvc.cli.admin import open_services
from authsvc.domain.accounts.mails import Mail, MailId
from authsvc.domain.values.clocks import rfc3339
from authsvc.domain.values.emails import InvalidEmail
from authsvc.domain.values.identifiers import canonical_id
from authsvc.mail.transports import MailDeferred, MailRefused, RelayUnavailable
from authsvc.services import RecoveryServices
from authsvc.wiring import now

#: Mails that are listed, and for how long one that is tried again is tried.
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
    """Send one mail; a refusal says what the relay thinks of it."""
    with _mail(env) as services:
        try:
            services.try_out(options.address)
        except InvalidEmail as error:
            raise ValueError(f"ADDRESS {error}") from error
        except MailRefused as error:
            raise ValueError(f"the relay refused the mail: {error}") from error
        except (MailDeferred, RelayUnavailable) as error:
            raise ValueError(f"the relay did not take the mail: {error}") from error
    print(json.dumps({"result": "sent"}))
    return 0


def run_list(_options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """List mails, the newest first; without addresses."""
    with _mail(env) as services:
        for mail in services.outbox.page(most=MOST):
            print(json.dumps(_described(mail)))
    return 0


def run_retry(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Make a mail due at once."""
    ident = canonical_id(options.id)
    with _mail(env) as services:
        is_there = ident is not None and services.outbox.retry(
            MailId(ident), now=now(), ends_at=now() + RETRIED_FOR
        )
    if not is_there:
        raise ValueError(
            "ID names no mail that waits or failed, or it is being sent now: `authsvc mail list` shows them"
        )
    print(json.dumps({"id": ident, "state": "queued"}))
    return 0


@contextmanager
def _mail(env: Mapping[str, str]) -> Iterator[RecoveryServices]:
    """The services around mails; raises ValueError where none are sent."""
    with closing(open_services(env)) as services:
        if services.recovery is None:
            raise ValueError("no mail is sent: MAIL_TRANSPORT is off")
        yield services.recovery


def _described(mail: Mail) -> dict[str, object]:
    return {
        "id": mail.id,
        "template": mail.template.value,
        "state": mail.state.value,
        "attempts": mail.attempts,
        "next_try": rfc3339(mail.next_try_at),
    }
