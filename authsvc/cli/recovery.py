"""Commands that let a user log in again, or for the first time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from typing import Any

from authsvc.cli.admin import canonical, open_services, somebody
from authsvc.domain.accounts.recovery import Recovery
from authsvc.domain.users import Profile, UserFilter
from authsvc.services import Services

#: Users per query of ``verify --created-before``.
PAGE = 200


def add_actions(users: Any) -> None:
    """Add this module's actions to those of ``users``."""
    reset = users.add_parser("send-reset", help="send a user a mail to choose a new password with")
    reset.add_argument("email", metavar="EMAIL")
    reset.set_defaults(run=run_send_reset)
    invite = users.add_parser(
        "invite", help="make a user who chooses a password by mail; again for one who has not yet"
    )
    invite.add_argument("email", metavar="EMAIL")
    invite.set_defaults(run=run_invite)
    factors = users.add_parser(
        "reset-factors", help="remove a user's second factors; every session ends, devices are forgotten"
    )
    factors.add_argument("email", metavar="EMAIL")
    factors.set_defaults(run=run_reset_factors)
    verify = users.add_parser("verify", help="take addresses for proven without a mail")
    whom = verify.add_mutually_exclusive_group(required=True)
    whom.add_argument("email", metavar="EMAIL", nargs="?")
    whom.add_argument("--created-before", metavar="TIME", help="of all accounts made before: RFC 3339")
    verify.set_defaults(run=run_verify)


def run_send_reset(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Queue a reset mail."""
    email = canonical(options.email, "EMAIL")
    with closing(open_services(options, env)) as services, somebody(email):
        recovery = _recovery(services)
        user = services.users.called(email)
        recovery.send_reset(user.id, actor=None)
    print(json.dumps({"id": user.id, "email": email}))
    return 0


def run_invite(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """
    Create a user without a password and queue a mail; for an existing user without password, only the mail.
    """
    email = canonical(options.email, "EMAIL")
    with closing(open_services(options, env)) as services:
        recovery = _recovery(services)
        if not recovery.has_links:
            raise ValueError("an invitation needs a link: set LINK_URL")
        found = services.users.store.find(email)
        if found is None:
            found = recovery.invite(email, Profile(), ("user",), actor=None).value
        elif not recovery.invite_again(email):
            raise ValueError("EMAIL has an account with a password: `users send-reset` lets its owner in")
    print(json.dumps({"id": found.id, "email": email}))
    return 0


def run_reset_factors(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Remove all second factors of a user."""
    email = canonical(options.email, "EMAIL")
    with closing(open_services(options, env)) as services, somebody(email):
        if services.second_factors is None:
            raise ValueError("there are no second factors: SECOND_FACTORS is off")
        user = services.users.called(email)
        services.second_factors.factors.reset(user.id, actor=None)
    print(json.dumps({"id": user.id, "email": email}))
    return 0


def run_verify(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Mark one address as verified, or those of all accounts made before a time."""
    with closing(open_services(options, env)) as services:
        if options.created_before is not None:
            count = _vouch_for_all(services, _moment(options.created_before))
        else:
            email = canonical(options.email, "EMAIL")
            with somebody(email):
                services.users.vouch_for(services.users.called(email).id)
            count = 1
    print(json.dumps({"verified": count}))
    return 0


def _vouch_for_all(services: Services, before: datetime) -> int:
    count, wanted = 0, UserFilter(limit=PAGE)
    while True:
        items, cursor = services.users.page(wanted)
        for user in items:
            if not user.email_verified and user.created_at < before:
                services.users.vouch_for(user.id)
                count += 1
        if cursor is None:
            return count
        wanted = UserFilter(limit=PAGE, after=cursor)


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("TIME is no time; expected such as 2026-11-20T00:00:00Z") from error
    if found.tzinfo is None:
        raise ValueError("TIME has no zone; expected such as 2026-11-20T00:00:00Z")
    return found


def _recovery(services: Services) -> Recovery:
    """The services that send mails; raises ValueError if mails are off."""
    if services.recovery is None:
        raise ValueError("no mail is sent: MAIL_TRANSPORT is off")
    return services.recovery.recovery
