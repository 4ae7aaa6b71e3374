"""
Two or more at the same moment, in different workers: exactly what the rules say is left, in every round.

A few rounds here; ``RACE_ROUNDS=1000`` runs each race as often.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import bcrypt
import psycopg
import pytest

from tests import times
from tests.e2e.racing import (
    LINES,
    Track,
    Watched,
    call,
    change_password,
    log_in,
    open_tracks,
    refresh,
    register,
    report,
)
from tests.rig import PASSWORD, development, migrate
from tests.servers import drop_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.lines import Line, Reply
    from tests.e2e.racing import Pair

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROUNDS = times("RACE_ROUNDS", 20)
OTHER_PASSWORDS = ("a staple that no horse has seen", "a battery that no horse has eaten")
REFUSED = [401, 401]
ACCEPTED = [200, 200]


@pytest.fixture(scope="module")
def tracks(postgres_server, served_redis, tmp_path_factory) -> Iterator[tuple[Track, Track]]:
    """Two replicas of two workers; development alone hashes so cheaply that requests really meet."""
    folder = tmp_path_factory.mktemp("races")
    url = postgres_server.create_database()
    keys = {"CACHE_KEY_PREFIX": "races", "WEB_CONCURRENCY": "2", "LOG_LEVEL": "warning"}
    # The grace is for those who come at once, however long a busy machine takes over them.
    keys["REFRESH_GRACE_SECONDS"] = "60"
    env = development(url, served_redis, folder, **keys)
    migrate(env)
    with open_tracks(env, folder) as opened:
        yield opened
    drop_database(postgres_server.url, url)


@pytest.fixture(scope="module")
def track(tracks: tuple[Track, Track]) -> Track:
    """The replica with a grace for refresh tokens."""
    return tracks[0]


def end_of(track: Track, pair: Pair) -> None:
    """Nothing of the session is accepted any more, by any worker."""
    assert track.statuses(pair["access_token"]) == REFUSED
    assert str(refresh(pair)(track.lines[0])) == "401 session_ended"


def test_a_refresh_beside_a_logout_leaves_nothing_alive(track):
    """Whichever came first: the tokens that the refresh brought are as dead as the old ones."""
    email, tally = track.newcomer(), Counter[str]()
    for _ in range(ROUNDS):
        pair = track.log_in(email)

        refreshed, logged_out = track.race(refresh(pair), call("POST", "/v1/auth/logout", pair))

        tally[str(refreshed)] += 1
        assert logged_out.status == 204
        assert track.statuses(pair["access_token"]) == REFUSED
        end_of(track, refreshed.json if refreshed.status == 200 else pair)
    report("refresh || logout", tally)
    assert tally.keys() <= {"200", "401 session_ended"}


def test_a_refresh_beside_a_password_change_is_the_callers_own_or_dead(track):
    """The session that changes the password goes on, also if it refreshes just then; any other ends."""
    email, tally = track.newcomer(), Counter[str]()
    old, new = PASSWORD, OTHER_PASSWORDS[0]
    own = track.log_in(email)
    for _ in range(ROUNDS):
        other = track.log_in(email, old)

        changed, own_refreshed, other_refreshed = track.race(
            change_password(own, old, new), refresh(own), refresh(other)
        )

        old, new = new, old
        tally[str(other_refreshed)] += 1
        assert (changed.status, own_refreshed.status) == (204, 200)
        assert track.statuses(own["access_token"]) == ACCEPTED
        own = own_refreshed.json
        assert track.statuses(own["access_token"]) == ACCEPTED
        assert track.statuses(other["access_token"]) == REFUSED
        end_of(track, other_refreshed.json if other_refreshed.status == 200 else other)
    report("refresh || password change", tally)
    assert tally.keys() <= {"200", "401 session_ended"}


def test_a_login_beside_the_end_of_all_sessions_is_whole_or_over(track):
    """Access and refresh token agree, and so do the workers; of what was before, nothing is left."""
    email, tally = track.newcomer(), Counter[bool]()
    for _ in range(ROUNDS):
        before = track.log_in(email)

        logged_in, ended = track.race(log_in(email), call("DELETE", "/v1/me/sessions", before))

        pair = logged_in.json
        statuses = track.statuses(pair["access_token"])
        is_alive = statuses == ACCEPTED
        tally[is_alive] += 1
        assert (logged_in.status, ended.status) == (200, 204)
        assert statuses in (ACCEPTED, REFUSED)
        assert (refresh(pair)(track.lines[1]).status == 200) is is_alive
        end_of(track, before)
    report("login || end all: alive", tally)


def test_nobody_gets_in_while_they_are_being_disabled(track):
    """A login and a refresh beside it leave nothing that is accepted afterwards."""
    email, tally = track.newcomer(), Counter[str]()
    admin = {"access_token": track.admin()}
    path = f"/v1/users/{track.user_id(track.log_in(email)['access_token'])}"
    for _ in range(ROUNDS):
        before = track.log_in(email)

        disabled, logged_in, refreshed = track.race(
            call("PATCH", path, admin, {"status": "disabled"}), log_in(email), refresh(before)
        )

        tally[f"login {logged_in}, refresh {refreshed}"] += 1
        assert disabled.status == 200
        for pair in (before, *(reply.json for reply in (logged_in, refreshed) if reply.status == 200)):
            assert track.statuses(pair["access_token"]) == REFUSED
            assert refresh(pair)(track.lines[1]).status == 401
        assert call("PATCH", path, admin, {"status": "active"})(track.lines[0]).status == 200
    report("disable || login || refresh", tally)


def test_of_two_new_passwords_one_is_set(track):
    """Both knew the old one; the second to come no longer does."""
    email, tally = track.newcomer(), Counter[str]()
    current = PASSWORD
    for number in range(ROUNDS):
        pair = track.log_in(email, current)
        wanted = [f"{word} {number}" for word in OTHER_PASSWORDS]

        replies = track.race(*(change_password(pair, current, word) for word in wanted))

        tally[" and ".join(sorted(map(str, replies)))] += 1
        winner = [reply.status for reply in replies].index(204)
        logins = [track.lines[0].log_in(email, word).status for word in (*wanted, current)]
        assert logins == [200 if place == winner else 401 for place in range(3)]
        current = wanted[winner]
    report("password change || password change", tally)
    assert tally == {"204 and 403 wrong_password": ROUNDS}


def test_a_rehash_never_brings_an_old_password_back(track):
    """The login has verified the old password and has a better hash of it to store."""
    email, tally = track.newcomer(), Counter[str]()
    old, new = PASSWORD, OTHER_PASSWORDS[0]
    own = track.log_in(email)
    with psycopg.connect(track.service.env["DATABASE_URL"], autocommit=True) as connection:
        for _ in range(ROUNDS):
            imported = bcrypt.hashpw(old.encode(), bcrypt.gensalt(4)).decode()
            connection.execute("UPDATE users SET password_hash = %s WHERE email = %s", (imported, email))

            changed, logged_in = track.race(change_password(own, old, new), log_in(email, old))

            tally[str(logged_in)] += 1
            assert changed.status == 204
            if logged_in.status == 200:
                end_of(track, logged_in.json)
            assert [track.lines[1].log_in(email, word).status for word in (old, new)] == [401, 200]
            old, new = new, old
    report("rehash || password change", tally)
    assert tally.keys() <= {"200", "401 invalid_credentials"}


def test_one_address_is_registered_once(track):
    """However many try, and however they spell it."""
    tally = Counter[str]()
    for number in range(ROUNDS):
        name = f"race{number}.{track.rounds}@EXAMPLE.com"
        spellings = [name, name.upper(), f" {name} ", name.lower()] * 2

        replies = track.race(*map(register, spellings))

        tally.update(map(str, replies))
        assert Counter(reply.status for reply in replies) == {201: 1, 409: LINES - 1}
    report("registration || registration", tally)
    assert tally == {"201": ROUNDS, "409 email_taken": ROUNDS * (LINES - 1)}


def test_no_check_that_begins_after_a_change_of_roles_takes_the_old_token(track):
    """Three watchers check without a pause while an admin appoints and dismisses."""
    email, before, after = track.newcomer(), Counter[int](), Counter[int]()
    admin = {"access_token": track.admin()}
    pair = track.log_in(email)
    path = f"/v1/users/{track.user_id(pair['access_token'])}"
    for number in range(ROUNDS):
        roles = ["admin"] if number % 2 == 0 else ["user"]
        watched = Watched(pair["access_token"])
        change = watched.change(call("PATCH", path, admin, {"roles": roles}))

        changed, *_ = track.race(change, *[watched.look] * 3)

        before, after = before + watched.before, after + watched.after
        assert changed.status == 200
        assert watched.after == {401: 3}
        pair = refresh(pair)(track.lines[0]).json
        assert track.lines[1].verify(pair["access_token"]).headers["x-auth-roles"].endswith(roles[0])
    report("role change || checks: before", before)
    report("role change || checks: after", after)
    assert after == {401: 3 * ROUNDS}


def increment(line: Line, *, pair: Pair, times_: int) -> Reply:
    """Count up in the preferences *times_* times, each time until nobody else was faster."""
    done = 0
    while done < times_:
        found = call("GET", "/v1/me/preferences", pair)(line)
        wanted = {"count": found.json.get("count", 0) + 1}
        tag = {"If-Match": found.headers["etag"]}
        reply = line.ask("PUT", "/v1/me/preferences", token=pair["access_token"], body=wanted, headers=tag)
        assert reply.status in {200, 412}
        done += reply.status == 200
    return reply


def test_preferences_that_are_written_under_a_condition_lose_no_update(track):
    """Eight writers count up in one number, which ends at the exact sum."""
    pair = track.log_in(track.newcomer())
    each = max(2, ROUNDS // LINES)

    track.race(*[partial(increment, pair=pair, times_=each)] * LINES)

    for line in track.lines[:2]:
        assert call("GET", "/v1/me/preferences", pair)(line).json == {"count": each * LINES}
    report("If-Match writers: updates", Counter({"200": each * LINES}))


def test_patches_of_different_members_are_all_kept(track):
    """Without any condition; the row is locked from reading to writing."""
    pair = track.log_in(track.newcomer())
    for number in range(ROUNDS):
        patches = [{f"writer{place}": number} for place in range(LINES)]

        replies = track.race(*(call("PATCH", "/v1/me/preferences", pair, patch) for patch in patches))

        assert [reply.status for reply in replies] == [200] * LINES
        wanted = {f"writer{place}": number for place in range(LINES)}
        assert [call("GET", "/v1/me/preferences", pair)(line).json for line in track.lines[:2]] == [
            wanted
        ] * 2
    report("patches kept", Counter({"200": ROUNDS * LINES}))


def test_one_refresh_token_has_one_successor(track):
    """Parallel tabs: all get the same one, it is good, and the chain goes on behind it."""
    email, successors = track.newcomer(), Counter[int]()
    for _ in range(ROUNDS):
        pair = track.log_in(email)

        replies = track.race(*[refresh(pair)] * LINES)

        found = {reply.json["refresh_token"] for reply in replies if reply.status == 200}
        successors[len(found)] += 1
        assert [reply.status for reply in replies] == [200] * LINES
        assert {status for reply in replies for status in track.statuses(reply.json["access_token"])} == {200}
        assert refresh({"refresh_token": found.pop()})(track.lines[1]).status == 200
        assert str(refresh(pair)(track.lines[0])) == "401 refresh_reused"  # a grandparent by now
    report("8 refreshes of one token: successors", successors)
    assert successors == {1: ROUNDS}


def test_without_grace_one_refresh_wins_and_the_reuse_ends_the_session(tracks):
    """At most one successor, and it is dead: somebody had the token twice."""
    track, tally = tracks[1], Counter[str]()
    email = track.newcomer()
    for _ in range(ROUNDS):
        pair = track.log_in(email)

        replies = track.race(*[refresh(pair)] * LINES)

        tally.update(map(str, replies))
        (winner,) = (reply.json for reply in replies if reply.status == 200)
        end_of(track, winner)
        assert track.statuses(pair["access_token"]) == REFUSED
    report("8 refreshes of one token without grace", tally)
    assert tally["200"] == ROUNDS
    assert tally.keys() <= {"200", "401 refresh_reused", "401 session_ended"}
