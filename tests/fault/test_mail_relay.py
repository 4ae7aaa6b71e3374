"""The relay breaks in every way, and senders are killed: no answer changes, and every mail arrives."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
import requests
from psycopg import sql
from redis import Redis
from sqlalchemy import select

from authsvc.store.tables import mails
from authsvc.wiring import now
from tests import ROOT
from tests.fault.mailing import (
    FAULTS,
    NUMBERS,
    Load,
    answering,
    outbox_of,
    post_of,
    put,
    waiting_since_before,
)
from tests.processes import kill_tree, wait_until
from tests.rig import Service, run_command
from tests.servers.relay import Relay
from tests.timings import MORTAL, PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fault.mailing import Post
    from tests.servers.relay import Taken

pytestmark = [pytest.mark.fault, pytest.mark.slow]

CODE = re.compile(r"\b[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}\b")
LINK = re.compile(r"\?t=([A-Za-z0-9_-]{64})")


@pytest.fixture(scope="module")
def post(postgres_server, redis_server, tmp_path_factory) -> Iterator[Post]:
    """Share one service among these tests."""
    with post_of(postgres_server, redis_server.url, tmp_path_factory.mktemp("post")) as made:
        yield made


@pytest.mark.parametrize("fault", FAULTS)
def test_no_answer_changes_while_the_relay_is_broken_and_the_mail_arrives_afterwards(post, fault):
    """Ready stays 200, the log names the cause, and everything that was asked for is sent once it works."""
    breaking, cause = FAULTS[fault]
    email = f"u{next(NUMBERS)}@example.com"
    before = len(post.log_of("mail.retried"))

    with breaking(post):
        assert post.service.register(email).status_code == 201
        assert post.ask(email) == [202, 200]
        wait_until(lambda: cause in causes(post, before), what=f"{cause} in the log")
        wait_until(lambda: is_delayed(post), what="an old mail in the metrics")
    with post.relay() as relay:
        taken = to(relay.wait_for(2), email)
        wait_until(lambda: post.states()["queued"] == 0, what="an empty outbox")

    assert sorted(str(mail.message["Subject"]) for mail in taken) == [
        "Confirm your e-mail address",
        "Reset your password",
    ]


def test_a_refused_mail_has_failed_and_an_operator_sends_it_again(post):
    """5xx: `mail list` shows it, `mail retry` sends it; the trail has the event, nobody's answer changes."""
    email = f"u{next(NUMBERS)}@example.com"
    with answering("RCPT", "550 no such user")(post):
        assert post.service.register(email).status_code == 201
        wait_until(lambda: post.states()["failed"] == 1, what="a failed mail")
    listed = [json.loads(line) for line in command(post, "mail", "list").splitlines()]
    (failed,) = [line for line in listed if line["state"] == "failed"]
    assert set(failed) == {"id", "template", "state", "attempts", "next_try"}

    with post.relay() as relay:
        command(post, "mail", "retry", failed["id"])
        (taken,) = to(relay.wait_for(1), email)

    assert taken.message_id.startswith(f"<{failed['id']}@")
    assert post.log_of("mail.failed")


def test_the_command_line_tries_the_relay(post):
    """One mail at once, past the outbox; a relay that is away is said to be."""
    with post.relay() as relay:
        assert json.loads(command(post, "mail", "test", "root@example.com")) == {"result": "sent"}
        (taken,) = relay.taken
    done = run_command("mail", "test", "root@example.com", env=post.service.env, folder=post.folder)

    assert taken.recipient == "root@example.com"
    assert "This is a test mail" in taken.message.get_content()
    assert done.returncode == 1
    assert "the relay did not take the mail: ConnectionRefusedError" in done.stderr


def test_codes_and_links_are_in_mails_alone(post):
    """Not in SQL, Redis, the log or the metrics; addresses are not in the last two either."""
    email = f"u{next(NUMBERS)}@example.com"
    with post.relay() as relay:
        post.service.register(email)
        post.ask(email)
        # On a slow machine a mail of another test may be tried once more.
        wait_until(lambda: len(to(relay.taken, email)) == 2, what="both mails")
        taken = to(relay.taken, email)
    secrets = {found for mail in taken for found in (*CODE.findall(mail.text), *LINK.findall(mail.text))}
    assert len(secrets) == 4
    secrets |= {secret.replace("-", "") for secret in secrets if len(secret) == 9}

    log = post.service.log.read_text()
    metrics = post.service.call("GET", "/v1/health/live").text + scraped(post)
    places = {"sql": dump(post), "redis": contents(post.redis_url), "log": log, "metrics": metrics}

    assert email in places["sql"]
    assert [(place, s) for place, text in places.items() for s in secrets if s in text] == []
    assert email not in log + metrics


def test_killed_senders_lose_no_mail(postgres_server, redis_server, tmp_path):
    """Workers of two replicas are killed with -9: each mail arrives, a second time as the same one."""
    with post_of(postgres_server, redis_server.url, tmp_path, entry=MORTAL) as post:
        lost, twice = survive(post, tmp_path, replicas=2, number=60, kills=4)

    assert lost == set()
    assert len(twice) <= 4


@pytest.mark.long
def test_many_killed_senders_lose_no_mail(postgres_server, redis_server, tmp_path, record_property):
    """The same at length: 500 mails, 3 replicas, 50 times -9."""
    with post_of(postgres_server, redis_server.url, tmp_path, entry=MORTAL) as post:
        lost, twice = survive(post, tmp_path, replicas=3, number=500, kills=50)

    record_property("sent_twice", len(twice))
    assert lost == set()
    assert len(twice) <= 50


def test_a_service_that_stops_finishes_the_mail_in_hand(postgres_server, redis_server, tmp_path):
    """SIGTERM: what was begun is sent and written down; the rest is free at once, and was not tried."""
    with (
        post_of(postgres_server, redis_server.url, tmp_path, entry=PATIENT) as post,
        post.relay(takes_s=0.3) as relay,
    ):
        put(post, [f"s{number}@example.com" for number in range(40)])
        relay.wait_for(3)
        assert post.service.stop() == 0
        sent = len(relay.taken)
        with outbox_of(post) as database, database.read() as connection:
            left = connection.execute(select(mails).where(mails.c.state == "queued")).all()

        assert post.states() == {"sent": sent, "queued": 40 - sent}
        assert {(row.lease_owner, row.attempts) for row in left} == {(None, 0)}


def test_a_relay_that_is_down_under_load_changes_no_answer(post):
    """Mails are asked for before, during and after: every answer is the same, and all are sent in the end."""
    load = Load(post, people=3)

    with load.running():
        with post.relay() as relay:
            relay.wait_for(3)
        load.wait_for(10)
    with post.relay() as relay:
        wait_until(lambda: post.states()["queued"] == 0, what="an empty outbox")

    assert set(load.statuses) == {202}


@pytest.mark.long
def test_a_relay_that_is_down_for_two_minutes_changes_no_answer(
    postgres_server, redis_server, tmp_path, record_property
):
    """With the times of production: whatever was asked for before it came back is sent within a minute."""
    with post_of(postgres_server, redis_server.url, tmp_path, entry=PATIENT) as post:
        load = Load(post, people=10)
        with load.running():
            with post.relay() as relay:
                relay.wait_for(40)
            record_property("asked_while_up", load.mark())
            wait_until(partial(load.is_older, 120.0), timeout_s=300)
            record_property("asked_while_down", load.mark())
            back_at, began = now(), time.monotonic()
            with post.relay():
                wait_until(lambda: waiting_since_before(post, back_at) == 0, what="all mails out")
                record_property("all_out_after_s", round(time.monotonic() - began, 1))

    assert set(load.statuses) == {202}


def test_the_page_names_every_fault_of_the_relay():
    """An operator finds each by its name, and no name that is not tried."""
    page = (ROOT / "docs" / "failure-modes.md").read_text()

    assert set(re.findall(r"`(relay-[a-z0-9-]+)`", page)) == set(FAULTS)


def survive(post: Post, folder: Path, *, replicas: int, number: int, kills: int) -> tuple[set[str], set[str]]:
    """Put *number* mails into the outbox while senders are killed; which were lost, and which sent twice."""
    wanted = {f"k{next(NUMBERS)}@example.com" for _ in range(number)}
    with ExitStack() as stack:
        relay = stack.enter_context(post.relay(takes_s=0.05))
        env = post.service.env
        more = [Service(env, folder, entry=MORTAL) for _ in range(replicas - 1)]
        services = [post.service, *(stack.enter_context(service) for service in more)]
        waiting = sorted(wanted)
        for turn in range(kills):
            put(post, waiting[turn::kills])
            victim = services[turn % replicas]
            seen = len(relay.taken)
            wait_until(partial(is_at_work, post, relay, seen))
            kill_one(victim)
        wait_until(lambda: post.states()["queued"] == 0, what="an empty outbox")
        taken = [mail for mail in relay.taken if mail.recipient in wanted]
    ids: dict[str, set[str]] = {}
    for mail in taken:
        ids.setdefault(mail.recipient, set()).add(mail.message_id)
    assert {len(found) for found in ids.values()} == {1}
    assert post.states()["failed"] == 0
    counts = Counter(mail.recipient for mail in taken)
    return wanted - set(counts), {recipient for recipient, times in counts.items() if times > 1}


def is_at_work(post: Post, relay: Relay, seen: int) -> bool:
    """The relay has taken more than *seen* mails, or none is left."""
    return len(relay.taken) > seen or post.states()["queued"] == 0


def kill_one(service: Service) -> None:
    """SIGKILL to a worker, and wait for the next one."""
    (pid, *_), before = service.workers(), set(service.workers())
    kill_tree(psutil.Process(pid))
    wait_until(lambda: len(service.workers()) == len(before) and pid not in service.workers())


def to(taken: list[Taken], email: str) -> list[Taken]:
    """The mails to *email*, each once."""
    return list({mail.message_id: mail for mail in taken if mail.recipient == email}.values())


def causes(post: Post, start: int) -> str:
    """The causes that the log names since *start*."""
    return " ".join(str(line["cause"]) for line in post.log_of("mail.retried")[start:])


def scraped(post: Post) -> str:
    """The metrics."""
    return requests.get(post.service.metrics_url, timeout=60).text


def is_delayed(post: Post) -> bool:
    """A mail has waited for more than a second."""
    return any(
        float(line.split()[-1]) > 1
        for line in scraped(post).splitlines()
        if line.startswith("authsvc_mail_oldest_seconds")
    )


def command(post: Post, *arguments: str) -> str:
    """What a command prints."""
    done = run_command(*arguments, env=post.service.env, folder=post.folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dump(post: Post) -> str:
    """Every row of every table, as text."""
    url = post.service.env["DATABASE_URL"]
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        ).fetchall()
        rows = [
            connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(name)))
            for (name,) in tables
        ]
        return "\n".join(row for cursor in rows for (row,) in cursor.fetchall())


def contents(url: str) -> str:
    """Every key of Redis with its value."""
    with Redis.from_url(url) as client:
        return " ".join(f"{key!r} {client.dump(key)!r}" for key in client.scan_iter())
