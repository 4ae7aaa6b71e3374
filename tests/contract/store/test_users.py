"""What a user store promises, on PostgreSQL and on SQLite."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from authsvc.domain.errors import EmailTaken, LastAdmin, NotFound, StoreUnavailable, TokenInvalid
from authsvc.domain.sessions import Ending
from authsvc.domain.users import User, UserFilter
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import UserId, new_id
from authsvc.store.accounts.users import roles_in_use
from tests.contract.cache.clients import in_threads
from tests.contract.store.stores import HASH, Stores

RACERS = 8
ADMIN = ("user", "admin")


def test_a_user_is_read_back_as_they_were_added(stores):
    """Every field, times to the microsecond, and preferences of any shape."""
    moment = stores.clock.now.replace(microsecond=123_456)
    preferences = {"b": [1, 1.5, True, None, {"é": "\u2028"}], "a": {}, "one": 1.0}

    added = stores.register(
        name="Ålice", phone="+1", device_id="d", roles=ADMIN, preferences=preferences, created_at=moment,
        last_login=moment,
    )  # fmt: skip

    assert stores.users.get(added.id) == added
    assert stores.users.find(added.email) == added
    assert repr(stores.users.get(added.id).preferences) == repr(preferences)


def test_somebody_unknown_is_not_found(stores):
    """By id an error, by address nobody."""
    with pytest.raises(NotFound):
        stores.users.get(UserId(new_id()))
    assert stores.users.find(Email("nobody@example.com")) is None


def test_an_address_is_compared_by_its_characters(stores):
    """No collation of the database has a say: what differs is another address."""
    alice = stores.register("alice")

    assert stores.users.find(Email("Alice@example.com")) is None
    assert stores.users.find(Email("alic_@example.com")) is None
    assert stores.users.find(alice.email) == alice


def test_of_many_registrations_of_one_address_one_wins(stores):
    """The unique index decides, not a look-up before it; the losers leave nothing in the log."""
    outcomes = in_threads(*[lambda: stores.register("same")] * RACERS)

    assert Counter(type(outcome) for outcome in outcomes) == {User: 1, EmailTaken: RACERS - 1}
    assert [reason for reason, _, _ in stores.entries()] == ["registered"]


def test_only_the_address_can_be_taken(stores):
    """Whatever else the database refuses says nothing about an address: SQL could not do it."""
    alice = stores.register()

    with pytest.raises(StoreUnavailable):
        stores.register("bob", id=alice.id)

    assert stores.users.find(Email("bob@example.com")) is None
    with pytest.raises(EmailTaken):
        stores.register()


def test_numbers_that_went_back_take_nobody_s_address(postgres_stores):
    """A free address is not said to be taken; as soon as the numbers are set right it can be had."""
    stores = postgres_stores
    stores.register("alice")
    stores.register("bob")
    with stores.database.transaction() as connection:
        connection.exec_driver_sql("ALTER SEQUENCE revocations_seq_seq RESTART")

    with pytest.raises(StoreUnavailable):
        stores.register("carol")
    stores.log.catch_up()

    assert stores.register("carol").email == "carol@example.com"
    with pytest.raises(EmailTaken):
        stores.register("alice")


def test_a_change_is_stored_as_the_next_version(stores):
    """With the time of the change, and an entry that has the user's cached copies dropped."""
    alice = stores.register()
    before = stores.log.head()
    now = stores.clock.tick(60)

    committed = stores.users.change(alice.id, lambda user: replace(user, name="Alice"))

    assert committed.value == replace(alice, name="Alice", version=2, updated_at=now)
    assert stores.users.get(alice.id) == committed.value
    (entry,) = committed.entries
    assert (entry.seq, entry.email, entry.epoch, entry.session_id) == (before + 1, alice.email, None, None)


def test_no_change_stores_nothing_and_is_written_to_redis_again(stores):
    """A repeated disable, whose first answer was 202, must not say 200 before Redis has heard of it."""
    alice = stores.register()
    disabled = stores.users.change(alice.id, lambda user: replace(user, status="disabled", epoch=1)).value
    head = stores.log.head()

    again = stores.users.change(alice.id, lambda user: replace(user, status="disabled"))

    assert again.value == disabled == stores.users.get(alice.id)
    assert stores.log.head() == head
    assert [(entry.seq, entry.epoch, entry.email) for entry in again.entries] == [(0, 1, alice.email)]


@pytest.mark.parametrize(("old", "new"), [(1, True), (1, 1.0), (0, False), ([1], [True])])
def test_values_that_only_python_takes_for_equal_are_stored(stores, old, new):
    """``1``, ``1.0`` and ``true`` are three values in JSON."""
    alice = stores.register(preferences={"a": old})

    stores.users.change(alice.id, lambda user: replace(user, preferences={"a": new}))

    assert repr(stores.users.get(alice.id).preferences) == repr({"a": new})


def test_a_rule_that_refuses_changes_nothing(stores):
    """Its error comes out as it is, and nothing is left of the transaction."""

    class Refused(Exception):
        """The rule's own."""

    def refuse(_user: User) -> User:
        raise Refused

    alice = stores.register()
    head = stores.log.head()

    with pytest.raises(Refused):
        stores.users.change(alice.id, refuse)

    assert stores.users.get(alice.id) == alice
    assert stores.log.head() == head


def test_no_change_of_many_at_once_is_lost(stores):
    """Each sees the one before: the rule runs under the user's row lock."""
    alice = stores.register(preferences={"n": 0})

    def count() -> None:
        for _ in range(5):
            stores.users.change(
                alice.id, lambda user: replace(user, preferences={"n": user.preferences["n"] + 1})
            )

    assert in_threads(*[count] * RACERS) == [None] * RACERS
    after = stores.users.get(alice.id)
    assert after.preferences == {"n": 5 * RACERS}
    assert after.version == 1 + 5 * RACERS


def test_a_disabled_user_loses_sessions_and_tokens(stores):
    """One transaction: the cut-off, and a tombstone for each session."""
    alice = stores.register()
    sessions = {stores.log_in(alice).id for _ in range(3)}
    before = stores.log.head()

    stores.users.change(alice.id, lambda user: replace(user, status="disabled", epoch=user.epoch + 1))

    entries = stores.entries(after=before)
    assert stores.alive(alice) == set()
    assert {session for _, session, _ in entries if session} == sessions
    assert [epoch for _, _, epoch in entries if epoch is not None] == [1]


def test_an_activated_user_has_no_old_session_back(stores):
    """What was ended stays ended."""
    alice = stores.register()
    stores.log_in(alice)
    stores.users.change(alice.id, lambda user: replace(user, status="disabled"))

    stores.users.change(alice.id, lambda user: replace(user, status="active"))

    assert stores.alive(alice) == set()


def test_a_removed_user_is_gone_with_everything_of_theirs(stores):
    """The user's tombstones and cut-off stay in the log, longer than any token of theirs."""
    alice = stores.register()
    session = stores.log_in(alice)
    before = stores.log.head()

    removed = stores.users.remove(alice.id)

    assert removed.value.id == alice.id
    with pytest.raises(NotFound):
        stores.users.get(alice.id)
    assert stores.sessions.standing(session.id) is None
    assert stores.entries(after=before) == [("user_deleted", session.id, None), ("user_deleted", None, 1)]
    with pytest.raises(NotFound):
        stores.users.remove(alice.id)


def test_only_in_a_living_session_people_delete_themselves(stores):
    """A request that was checked before its session ended comes too late."""
    alice = stores.register()
    ended, alive = stores.log_in(alice), stores.log_in(alice)
    stores.sessions.end(Ending(session_id=ended.id, reason="logout"))

    with pytest.raises(TokenInvalid):
        stores.users.remove(alice.id, within=ended.id)

    assert stores.users.remove(alice.id, within=alive.id).value.id == alice.id


def test_a_freed_address_belongs_to_somebody_new(stores):
    """Another id, and nothing inherited."""
    alice = stores.register(name="Alice", preferences={"a": 1})
    stores.users.remove(alice.id)

    successor = stores.register()

    assert successor.email == alice.email
    assert successor.id != alice.id
    assert (successor.name, successor.preferences, successor.epoch) == (None, {}, 0)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(lambda store, who: store.remove(who), id="removed"),
        pytest.param(
            lambda store, who: store.change(who, lambda u: replace(u, roles=("user",))), id="demoted"
        ),
        pytest.param(
            lambda store, who: store.change(who, lambda u: replace(u, status="disabled")), id="disabled"
        ),
    ],
)
class TestLastAdmin:
    """Somebody must be left to administer."""

    def test_the_last_active_admin_stays(self, stores, how):
        """A disabled one beside them does not count, nor does a plain user; nothing is changed."""
        root = stores.register("root", roles=ADMIN)
        stores.register("off", roles=ADMIN, status="disabled")
        stores.register("plain")
        head = stores.log.head()

        with pytest.raises(LastAdmin):
            how(stores.users, root.id)

        assert stores.users.get(root.id) == root
        assert stores.log.head() == head

    def test_one_of_two_admins_may_go(self, stores, how):
        """The other one is left."""
        root = stores.register("root", roles=ADMIN)
        second = stores.register("second", roles=ADMIN)

        how(stores.users, second.id)

        assert [user.id for user in stores.users.page(UserFilter(role="admin", status="active"))] == [root.id]

    def test_of_two_last_admins_who_go_at_once_one_stays(self, stores, how):
        """Neither may count on the other: exactly one is refused."""
        for _ in range(10):
            pair = [stores.register(login, roles=ADMIN) for login in ("one", "other")]

            outcomes = in_threads(*(lambda who=who: how(stores.users, who.id) for who in pair))

            assert sorted(isinstance(outcome, LastAdmin) for outcome in outcomes) == [False, True], outcomes
            remove_everybody(stores)


def remove_everybody(stores: Stores) -> None:
    """Delete all users behind the store's back, which would keep the last admin."""
    with stores.database.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM users")


def test_pages_follow_each_other_without_gap_or_repetition(stores):
    """By id; each page holds one user more than was asked for while there are more."""
    everybody = sorted(stores.register(f"user{number}").id for number in range(7))
    seen, after = [], None

    while True:
        page = stores.users.page(UserFilter(limit=3, after=after))
        seen += [user.id for user in page[:3]]
        if len(page) <= 3:
            break
        assert len(page) == 4
        after = page[2].id

    assert seen == everybody


def test_pages_are_filtered_by_role_and_status(stores):
    """Everybody is a ``user``, admins are admins; both filters narrow together."""
    plain = stores.register("plain")
    admin = stores.register("admin", roles=ADMIN)
    off = stores.register("off", roles=ADMIN, status="disabled")

    def found(**wanted: Any) -> set[str]:
        return {user.id for user in stores.users.page(UserFilter(**wanted))}

    assert found() == found(role="user") == {plain.id, admin.id, off.id}
    assert found(role="admin") == {admin.id, off.id}
    assert found(status="disabled") == {off.id}
    assert found(role="admin", status="active") == {admin.id}


def test_roles_of_the_operator_s_own_are_kept_found_and_counted(stores):
    """By their whole names: ``_`` is no wildcard, and a beginning is another role."""
    editor = stores.register("editor", roles=("user", "editor"))
    both = stores.register("both", roles=("user", "admin", "a_b", "editor"))
    near = stores.register("near", roles=("user", "axb", "editors"))

    def found(role: str) -> set[str]:
        return {user.id for user in stores.users.page(UserFilter(role=role))}

    assert stores.users.get(both.id).roles == ("user", "admin", "a_b", "editor")
    assert found("editor") == {editor.id, both.id}
    assert (found("a_b"), found("axb"), found("edit")) == ({both.id}, {near.id}, set())
    assert roles_in_use(stores.database) == {"editor": 2, "a_b": 1, "axb": 1, "editors": 1}


def test_no_user_shows_their_hash(stores):
    """It is not part of the user, wherever they come from."""
    alice = stores.register()

    everywhere = (
        alice,
        stores.users.get(alice.id),
        stores.users.find(alice.email),
        stores.users.page(UserFilter()),
    )

    assert HASH not in repr(everywhere)
