"""Users, and the rules by which they change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from authsvc.domain.audit import Action, Event
from authsvc.domain.errors import NotFound
from authsvc.domain.revocations import Committed, Proof, Revocations
from authsvc.domain.users import Profile, User, UserDirectory, UserFilter, UserStore, with_roles
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.domain.values.shards import Sharded
from tests.unit.domain.samples import ALICE_ID, NOW, user

if TYPE_CHECKING:
    from collections.abc import Callable

ADMIN_ID = UserId("00000000-0000-4000-8000-0000000000ad")


@pytest.mark.parametrize(
    ("wanted", "complete"),
    [
        ((), ("user",)),
        (("user",), ("user",)),
        (("admin",), ("user", "admin")),
        (("user", "admin"), ("user", "admin")),
        (("admin", "user"), ("user", "admin")),
        (("admin", "admin"), ("user", "admin")),
    ],
)
def test_everybody_is_a_user_and_roles_have_one_order(wanted, complete):
    """Equal sets of roles are equal tuples: tokens are compared by them."""
    assert with_roles(wanted) == complete


@pytest.mark.parametrize("given", [set(), {"name"}, {"phone"}, {"device_id"}, {"name", "phone", "device_id"}])
def test_a_profile_changes_the_given_fields_alone(given):
    """A field that is given as null is emptied; one that is not given stays."""
    before = user(name="old", phone="old", device_id="old")

    after = Profile(name=None, phone="new", device_id="new", given=frozenset(given)).applied_to(before)

    assert after == user(
        name=None if "name" in given else "old",
        phone="new" if "phone" in given else "old",
        device_id="new" if "device_id" in given else "old",
    )


def test_status_and_roles_say_what_a_user_may():
    """Disabled is not active, and an admin holds the role."""
    assert user().is_active
    assert not user(status="disabled").is_active
    assert user(roles=("user", "admin")).is_admin
    assert not user().is_admin


@dataclass
class Users:
    """A store of one user and any number of pages."""

    stored: User
    others: list[User] = field(default_factory=list)
    removed: bool = False

    def find(self, email: Email) -> User | None:
        """The user, by their address."""
        return self.stored if email == self.stored.email else None

    def change(self, _user_id: UserId, rule: Callable[[User], User]) -> Committed[User]:
        """Apply the rule."""
        self.stored = rule(self.stored)
        return Committed(self.stored)

    def remove(self, _user_id: UserId, *, within: SessionId | None = None) -> Committed[User]:
        """Note it."""
        self.removed = True
        return Committed(self.stored)

    def page(self, wanted: UserFilter) -> list[User]:
        """One more than was asked for, if there are as many."""
        return self.others[: wanted.limit + 1]


@dataclass
class Audit:
    """What was recorded."""

    events: list[Event] = field(default_factory=list)

    def record(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)


class NoIndex:
    """Never reached: nothing was committed to the log."""

    def write(self, entries: object) -> None:
        """Fail."""
        raise AssertionError(entries)


def directory(store: Users) -> tuple[UserDirectory, Audit]:
    """The use cases over *store*, and what they record."""
    audit = Audit()
    revocations = Revocations(NoIndex(), Sharded((Proof(300),)))
    return UserDirectory(store=cast("UserStore", store), revocations=revocations, audit=audit), audit


@pytest.mark.parametrize(
    ("roles", "status", "expected"),
    [
        pytest.param(("admin",), None, {"roles": ("user", "admin"), "epoch": 4}, id="a new role"),
        pytest.param(None, "disabled", {"status": "disabled", "epoch": 4}, id="disabled"),
        pytest.param(
            ("admin",), "disabled", {"roles": ("user", "admin"), "status": "disabled", "epoch": 4}, id="both"
        ),
        pytest.param(("user",), "active", {}, id="as they are"),
        pytest.param((), None, {}, id="as they are, with no role named"),
        pytest.param(None, None, {}, id="nothing"),
    ],
)
def test_a_real_change_of_standing_raises_the_epoch_once(roles, status, expected):
    """Every earlier token dies with it; where nothing changes none does."""
    store = Users(user())
    users, audit = directory(store)

    users.change_roles_or_status(ALICE_ID, roles=roles, status=status, actor=ADMIN_ID)

    assert store.stored == user(**expected)
    assert [(event.action, event.actor_id) for event in audit.events] == [
        (Action.USER_STANDING_SET, ADMIN_ID)
    ]


def test_roles_are_set_by_address_for_operators():
    """An unknown address is not found, and nothing is recorded."""
    store = Users(user())
    users, audit = directory(store)

    users.set_roles(Email("alice@example.com"), ("admin",))
    with pytest.raises(NotFound):
        users.set_roles(Email("bob@example.com"), ("admin",))

    assert store.stored.is_admin
    assert len(audit.events) == 1


def test_a_profile_change_leaves_tokens_alone():
    """The epoch stays."""
    store = Users(user())

    directory(store)[0].change_profile(ALICE_ID, Profile(name="Alice", given=frozenset({"name"})))

    assert store.stored == user(name="Alice")


def test_a_removal_is_recorded_with_who_did_it():
    """By the user themselves or by an admin."""
    store = Users(user())
    users, audit = directory(store)

    users.remove(ALICE_ID, actor=ADMIN_ID)

    assert store.removed
    assert audit.events == [Event(Action.USER_DELETED, user_id=ALICE_ID, actor_id=ADMIN_ID)]


@pytest.mark.parametrize(
    ("stored", "shown", "cursor"), [(0, 0, None), (2, 2, None), (3, 3, None), (4, 3, "2"), (9, 3, "2")]
)
def test_a_cursor_leads_on_only_where_there_is_more(stored, shown, cursor):
    """The last id of the page; none for the last page."""
    others = [user(id=UserId(str(number)), created_at=NOW) for number in range(stored)]
    users, _ = directory(Users(user(), others))

    page, after = users.page(UserFilter(limit=3))

    assert len(page) == shown
    assert after == cursor
