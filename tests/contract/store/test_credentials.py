"""What a credential store promises, on PostgreSQL and on SQLite: logins, password changes and their races."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from authsvc.domain.credentials import Rehash
from authsvc.domain.errors import NotFound, TokenInvalid
from authsvc.domain.sessions import Ending, Session
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, UserId, new_id
from tests.contract.cache.clients import in_threads
from tests.contract.store.stores import HASH, Stores

RACERS = 16
ROUNDS = 10
NOBODY = SessionId(new_id())
REHASH = Rehash(HASH, "rehashed")


def open_session(stores: Stores, verified, session: Session, *, rehash=None, max_sessions=10):
    """Open *session* for *verified*."""
    return stores.credentials.open_session(verified, session, rehash=rehash, max_sessions=max_sessions)


def test_credentials_are_found_by_address_and_by_user(stores):
    """Hash and version, with the user as they are."""
    alice = stores.register()

    found = stores.credentials.by_email(alice.email)

    assert found is not None
    assert found == stores.credentials.by_user(alice.id)
    assert (found.user, found.password_hash, found.password_version) == (alice, HASH, 1)
    assert stores.credentials.by_email(Email("nobody@example.com")) is None
    with pytest.raises(NotFound):
        stores.credentials.by_user(UserId(new_id()))


def test_a_login_is_a_session_and_a_note(stores):
    """The session is stored, the time is noted, the cached copies are dropped."""
    alice = stores.register()
    now = stores.clock.tick(60)
    session = stores.session_of(alice)

    opened = open_session(stores, stores.credentials_of(alice), session)

    assert opened is not None
    assert opened.value == stores.users.get(alice.id) == replace(alice, last_login=now, version=2)
    assert stores.alive(alice) == {session.id}
    assert [(entry.reason, entry.email, entry.epoch) for entry in opened.entries] == [
        ("logged_in", alice.email, None)
    ]


@pytest.mark.parametrize("meanwhile", ["disabled", "removed", "address changed", "password changed"])
def test_a_login_that_was_overtaken_is_refused(stores, meanwhile):
    """The password was right when it was verified; nothing of the login is left."""
    alice = stores.register()
    verified = stores.credentials_of(alice)
    if meanwhile == "disabled":
        stores.users.change(alice.id, lambda user: replace(user, status="disabled"))
    elif meanwhile == "removed":
        stores.users.remove(alice.id)
    elif meanwhile == "address changed":
        stores.users.change(alice.id, lambda user: replace(user, email="new@example.com"))
    else:
        stores.credentials.replace_password(verified, "new", keep=stores.log_in(alice).id)
    head, session = stores.log.head(), stores.session_of(alice)

    assert open_session(stores, verified, session) is None
    assert stores.sessions.standing(session.id) is None
    assert stores.log.head() == head


def test_a_login_after_a_change_carries_the_new_cut_off(stores):
    """The user comes back as they are at the commit, so that their token has the epoch that holds."""
    alice = stores.register()
    verified = stores.credentials_of(alice)
    stores.sessions.end_all(alice.id, reason="ended", keep=None)

    opened = open_session(stores, verified, stores.session_of(alice))

    assert opened is not None
    assert opened.value.epoch == 1


def test_a_rehash_replaces_the_hash_it_was_made_from(stores):
    """And is no change of the password: its version stays."""
    alice = stores.register()
    verified = stores.credentials_of(alice)

    open_session(stores, verified, stores.session_of(alice), rehash=Rehash(HASH, "better"))

    assert stores.credentials_of(alice).password_hash == "better"
    assert stores.credentials_of(alice).password_version == 1


def test_a_rehash_of_an_outdated_hash_changes_nothing(stores):
    """Two logins rehash at once: the second finds another hash, and its login goes through all the same."""
    alice = stores.register()
    verified = stores.credentials_of(alice)
    open_session(stores, verified, stores.session_of(alice), rehash=Rehash(HASH, "first"))

    opened = open_session(stores, verified, stores.session_of(alice), rehash=Rehash(HASH, "second"))

    assert opened is not None
    assert stores.credentials_of(alice).password_hash == "first"


def test_a_password_change_ends_every_other_session(stores):
    """The calling one lives, with its tokens: the epoch stays."""
    alice = stores.register()
    kept, gone = stores.log_in(alice), stores.log_in(alice)
    now = stores.clock.tick(60)

    changed = stores.credentials.replace_password(stores.credentials_of(alice), "new", keep=kept.id)

    assert changed is not None
    assert (changed.value.epoch, changed.value.updated_at) == (0, now)
    assert [(entry.session_id, entry.email, entry.epoch) for entry in changed.entries] == [
        (gone.id, None, None),
        (None, alice.email, None),
    ]
    assert stores.alive(alice) == {kept.id}
    after = stores.credentials_of(alice)
    assert (after.password_hash, after.password_version) == ("new", 2)


@pytest.mark.parametrize("keep", ["ended", "unknown", "of somebody else"])
def test_only_in_a_living_session_a_password_is_changed(stores, keep):
    """A request that was checked before its session ended comes too late; nothing is changed or ended."""
    alice = stores.register()
    session, other = stores.log_in(alice), stores.log_in(alice)
    kept = {"ended": session.id, "unknown": NOBODY, "of somebody else": None}[keep]
    stores.sessions.end(Ending(session_id=session.id, reason="logout"))

    with pytest.raises(TokenInvalid):
        stores.credentials.replace_password(
            stores.credentials_of(alice), "new", keep=kept or stores.log_in(stores.register("bob")).id
        )

    assert stores.credentials_of(alice).password_hash == HASH
    assert stores.alive(alice) == {other.id}


def test_of_many_password_changes_at_once_one_wins(stores):
    """Each was proven by the old password, which only one of them can replace."""
    alice = stores.register()
    kept, verified = stores.log_in(alice).id, stores.credentials_of(alice)

    changes = in_threads(
        *(
            lambda number=number: stores.credentials.replace_password(verified, f"new{number}", keep=kept)
            for number in range(RACERS)
        )
    )

    (winner,) = [number for number, change in enumerate(changes) if change is not None]
    after = stores.credentials_of(alice)
    assert (after.password_hash, after.password_version) == (f"new{winner}", 2)


def test_the_session_unused_for_longest_gives_way(stores):
    """Not the one that was opened first, if it was used since; expired ones do not count."""
    alice = stores.register()
    start = stores.clock()
    first, second, third = (
        stores.log_in(alice, max_sessions=3, last_used_at=start + timedelta(seconds=used_s))
        for used_s in (30, 10, 20)
    )
    stores.log_in(alice, max_sessions=9, idle_expires_at=start + timedelta(seconds=40))
    stores.clock.tick(60)
    head = stores.log.head()

    fourth = stores.log_in(alice, max_sessions=3)

    assert stores.alive(alice) == {first.id, third.id, fourth.id}
    assert stores.entries(after=head) == [("too_many_sessions", second.id, None), ("logged_in", None, None)]


@pytest.mark.parametrize("most", [1, 3])
def test_a_new_session_never_gives_way_to_older_ones(stores, most):
    """Its node's clock may be behind: a login that is answered with tokens must have living ones."""
    alice = stores.register()
    for _ in range(3):
        stores.log_in(alice, max_sessions=most)

    late = stores.log_in(alice, max_sessions=most, last_used_at=stores.clock() - timedelta(seconds=5))

    assert late.id in stores.alive(alice)
    assert len(stores.alive(alice)) == most


def test_parallel_logins_never_exceed_the_cap(stores):
    """Sixteen at once with room for ten: all are let in, exactly ten are left, six are ended in the log."""
    alice = stores.register()
    verified = stores.credentials_of(alice)
    sessions = [stores.session_of(alice) for _ in range(RACERS)]

    opened = in_threads(*(lambda s=session: open_session(stores, verified, s) for session in sessions))

    assert all(outcome.value.id == alice.id for outcome in opened)
    ended = {session for reason, session, _ in stores.entries() if reason == "too_many_sessions"}
    assert len(stores.alive(alice)) == 10
    assert stores.alive(alice) == {session.id for session in sessions} - ended


def standings(stores: Stores, sessions: list[Session]):
    """The sessions that are alive, each with its user as they are."""
    found = [stores.sessions.standing(session.id) for session in sessions]
    return [one for one in found if one is not None and one.is_good(stores.clock())]


def race_logins(stores: Stores, alice, rival, *, logins: int = 6):
    """Log in from several sides while *rival* happens; the sessions with what each login got."""
    verified = stores.credentials_of(alice)
    sessions = [stores.session_of(alice) for _ in range(logins)]
    works = [lambda s=session: open_session(stores, verified, s) for session in sessions]
    outcomes = in_threads(*works[: logins // 2], rival, *works[logins // 2 :])
    rival_outcome = outcomes.pop(logins // 2)
    assert not isinstance(rival_outcome, Exception), rival_outcome
    return list(zip(sessions, outcomes, strict=True))


def test_a_disable_leaves_no_session_whoever_logs_in_meanwhile(stores):
    """Before it and ended, or after it and refused: nothing in between."""
    for _ in range(ROUNDS):
        alice = stores.register(f"u{new_id()}")

        logins = race_logins(
            stores,
            alice,
            lambda who=alice: stores.users.change(
                who.id, lambda user: replace(user, status="disabled", epoch=user.epoch + 1)
            ),
        )

        ended = {session for reason, session, _ in stores.entries() if reason == "user_disabled"}
        assert stores.alive(alice) == set()
        for session, opened in logins:
            assert (session.id in ended) is (opened is not None)


def test_a_password_change_leaves_no_session_of_the_old_one(stores):
    """A login with the old password is before it and ended, or after it and refused."""
    for _ in range(ROUNDS):
        alice = stores.register(f"u{new_id()}")
        verified, kept = stores.credentials_of(alice), stores.log_in(alice)

        race_logins(
            stores,
            alice,
            lambda v=verified, k=kept: stores.credentials.replace_password(v, "new", keep=k.id),
        )

        assert stores.alive(alice) == {kept.id}


def test_an_end_of_all_leaves_no_session_with_an_outdated_epoch(stores):
    """A login is before it and ended, or after it and has the epoch that holds: no check would err."""
    for _ in range(ROUNDS):
        alice = stores.register(f"u{new_id()}")

        logins = race_logins(
            stores, alice, lambda who=alice: stores.sessions.end_all(who.id, reason="ended", keep=None)
        )

        assert stores.users.get(alice.id).epoch == 1
        alive = stores.alive(alice)
        for session, opened in logins:
            assert opened is not None
            assert (session.id in alive) is (opened.value.epoch == 1)


def test_a_rehash_never_undoes_a_password_change(stores):
    """Whichever comes first, the new password is what is left."""
    for _ in range(ROUNDS):
        alice = stores.register(f"u{new_id()}")
        verified = stores.credentials_of(alice)
        sessions = [stores.session_of(alice) for _ in range(4)]
        logins = [partial(open_session, stores, verified, s, rehash=REHASH) for s in sessions]
        kept = stores.log_in(alice).id
        change = partial(stores.credentials.replace_password, verified, "new", keep=kept)

        in_threads(*logins[:2], change, *logins[2:])

        after = stores.credentials_of(alice)
        assert (after.password_hash, after.password_version) == ("new", 2)
        assert standings(stores, sessions) == []


def test_credentials_show_no_hash(stores):
    """Neither does what a rehash is made of."""
    found = stores.credentials_of(stores.register())

    assert HASH not in repr(found)
    assert HASH not in repr(Rehash(HASH, "new"))
