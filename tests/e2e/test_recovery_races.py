"""
Codes and links at the same moment in different workers: one use of each, and nothing older lives after it.

A few rounds here; ``RACE_ROUNDS=1000`` runs each race as often.
"""

from __future__ import annotations

from collections import Counter
from email import message_from_bytes
from email.policy import default
from typing import TYPE_CHECKING

import pytest

from tests import times
from tests.api.mailing import MAIL, text_of, token_in
from tests.e2e.estate import running
from tests.e2e.racing import LINES, Track, log_in, open_track, refresh, report
from tests.processes import wait_until
from tests.rig import development, migrate
from tests.servers import drop_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.lines import Line, Reply

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROUNDS = times("RACE_ROUNDS", 5)
REFUSED = [401, 401]
WIDE = dict.fromkeys(("RATE_LIMIT_MAIL_IP", "RATE_LIMIT_MAIL_ADDRESS", "RATE_LIMIT_CODE_IP"), "off")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return the folder that the service runs in, with its mails."""
    made: Path = tmp_path_factory.mktemp("recovery")
    return made


@pytest.fixture(scope="module")
def track(postgres_server, served_redis, folder) -> Iterator[Track]:
    """Two workers, each with a sender; development alone hashes so cheaply that requests really meet."""
    url = postgres_server.create_database()
    keys = {"CACHE_KEY_PREFIX": "recovery", "WEB_CONCURRENCY": "2", "LOG_LEVEL": "warning"}
    env = development(url, served_redis, folder, **keys, **MAIL, **WIDE)
    migrate(env)
    with running(env, folder) as service, open_track(service) as opened:
        yield opened
    drop_database(postgres_server.url, url)


def tokens_to(folder: Path, email: str) -> list[str]:
    """The tokens of all reset mails to *email*."""
    found = [
        text_of(message_from_bytes(file.read_bytes(), policy=default))
        for file in sorted((folder / ".authsvc" / "mail").glob("*.eml"))
        if f"To: {email}" in file.read_text()
    ]
    return [token_in(text) for text in found if "/reset?t=" in text]


def forgotten(track: Track, folder: Path, email: str) -> str:
    """Ask for a reset mail; the token of its link, once one of the workers has sent it."""
    before = len(tokens_to(folder, email))
    reply = track.lines[0].ask("POST", "/v1/auth/password/forgot", body={"email": email})
    assert reply.status == 202, reply
    wait_until(lambda: len(tokens_to(folder, email)) > before, what="the mail")
    found = tokens_to(folder, email)
    assert len(found) == before + 1, "two senders, one mail"
    return found[-1]


def reset(token: str, password: str) -> Callable[[Line], Reply]:
    """Choose *password* with the link's *token*."""
    body = {"token": token, "new_password": password}
    return lambda line: line.ask("POST", "/v1/auth/password/reset", body=body)


def test_a_link_that_all_workers_are_shown_at_once_works_once(track, folder):
    """One 204; the password is that of the one who got it."""
    email = track.newcomer()
    for _ in range(ROUNDS):
        token = forgotten(track, folder, email)
        passwords = [f"a staple that no horse has seen {number}" for number in range(LINES)]

        answers = track.race(*(reset(token, password) for password in passwords))

        assert Counter(map(str, answers)) == {"204": 1, "401 code_invalid": LINES - 1}
        won = next(index for index, answer in enumerate(answers) if answer.status == 204)
        assert track.log_in(email, passwords[won])
        assert log_in(email, passwords[won - 1])(track.lines[1]).status == 401


def test_nothing_older_than_a_reset_is_accepted_by_any_worker(track, folder):
    """A login and a refresh at that moment: whatever they brought is dead once the reset is answered."""
    email, tally = track.newcomer(), Counter[str]()
    old, new = "correct horse battery staple", "a staple that no horse has seen"
    for _ in range(ROUNDS):
        pair, token = track.log_in(email, old), forgotten(track, folder, email)

        done, logged_in, refreshed = track.race(reset(token, new), log_in(email, old), refresh(pair))

        assert done.status == 204
        tally[f"login {logged_in}, refresh {refreshed}"] += 1
        assert track.statuses(pair["access_token"]) == REFUSED
        for reply in (logged_in, refreshed):
            if reply.status == 200:
                assert track.statuses(reply.json["access_token"]) == REFUSED
                assert refresh(reply.json)(track.lines[1]).status == 401
        old, new = new, old
    report("reset || login || refresh", tally)
