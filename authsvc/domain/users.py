"""Users: profile, roles, status, deletion."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, Protocol, TypeAlias

from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.errors import Invalid, NotFound
from authsvc.domain.revocations import Committed, Outcome, Revocations
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.domain.values.jsontext import Json
from authsvc.settings.kinds import ROLE_PATTERN

Role: TypeAlias = str
Status = Literal["active", "disabled"]

#: The roles that always exist, in order.
BUILT_IN: tuple[Role, ...] = ("user", "admin")
_ROLE = re.compile(ROLE_PATTERN)


def is_role_name(text: object) -> bool:
    """True if *text* is a valid name of a role, whether or not it exists here."""
    return isinstance(text, str) and _ROLE.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class RoleNames:
    """The existing roles: the built-in ones, and those of the setting ``ROLES``."""

    further: tuple[Role, ...] = ()

    def __contains__(self, role: object) -> bool:
        """True if there is *role*."""
        return role in BUILT_IN or role in self.further

    def shown(self, roles: tuple[Role, ...]) -> tuple[Role, ...]:
        """The existing roles among *roles*: a role that was removed from the setting grants nothing."""
        return roles if all(role in self for role in roles) else tuple(role for role in roles if role in self)

    def require(self, by_place: Mapping[str, Role]) -> None:
        """Raise Invalid for each index with an unknown role."""
        strangers = [place for place, role in by_place.items() if role not in self]
        if strangers:
            message = f"Must be one of: {', '.join((*BUILT_IN, *self.further))}."
            raise Invalid({place: [message] for place in strangers})


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One account; the password hash is not part of it.  ``epoch`` and ``version`` only ever rise."""

    id: UserId
    email: Email
    name: str | None = None
    phone: str | None = None
    device_id: str | None = None
    roles: tuple[Role, ...] = ("user",)
    status: Status = "active"
    preferences: dict[str, Json] = field(default_factory=dict)
    created_at: datetime
    updated_at: datetime
    last_login: datetime | None = None
    #: When the user proved that they receive mail at this address.
    email_verified: bool = False
    #: The cut-off counter: an access token that carries another value is refused.
    epoch: int = 0
    #: The version of the row; every change raises it.
    version: int = 1

    @property
    def is_active(self) -> bool:
        """May log in and have sessions."""
        return self.status == "active"

    @property
    def is_admin(self) -> bool:
        """Has the admin role."""
        return "admin" in self.roles


def with_roles(wanted: tuple[Role, ...]) -> tuple[Role, ...]:
    """*wanted* in order, with ``user``, which everybody has."""
    built_in = tuple(role for role in BUILT_IN if role == "user" or role in wanted)
    return built_in + tuple(sorted(set(wanted).difference(BUILT_IN)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The fields that users may change of their own account."""

    name: str | None = None
    phone: str | None = None
    device_id: str | None = None
    #: The names of the given fields; the others stay unchanged.
    given: frozenset[str] = frozenset()

    def applied_to(self, user: User) -> User:
        """*user* with the given fields replaced."""
        name = self.name if "name" in self.given else user.name
        phone = self.phone if "phone" in self.given else user.phone
        device_id = self.device_id if "device_id" in self.given else user.device_id
        return replace(user, name=name, phone=phone, device_id=device_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFilter:
    """One page of the admin list, in the order of ids; ``after`` is the last id of the page before."""

    #: Only the user with that address.
    email: Email | None = None
    role: Role | None = None
    status: Status | None = None
    limit: int = 50
    after: UserId | None = None

    def admits(self, user: User) -> bool:
        """True if *user* is on this page or a later one."""
        return (
            self.email in {None, user.email}
            and (self.role is None or self.role in user.roles)
            and self.status in {None, user.status}
            and (self.after is None or user.id > self.after)
        )


class UserStore(Protocol):
    """Stores users. Every change returns the log entries that it committed."""

    def add(self, user: User, password_hash: str) -> Committed[User]:
        """Insert; raises EmailTaken if the canonical address exists, also in a race."""

    def get(self, user_id: UserId) -> User:
        """Raises NotFound."""

    def find(self, email: Email) -> User | None:
        """The user with the canonical address *email*."""

    def get_many(self, user_ids: Sequence[UserId]) -> dict[UserId, User]:
        """The existing users among *user_ids*, by id; at most one query."""

    def change(self, user_id: UserId, rule: Callable[[User], User]) -> Committed[User]:
        """
        Apply *rule* to the user under the row lock, and store the result as the next version.

        A raised epoch revokes the user's tokens. A user who is no longer active, or has a new address, loses
        their sessions, too.  Raises NotFound, LastAdmin, EmailTaken, and the exceptions of *rule*.
        """

    def remove(self, user_id: UserId, *, within: SessionId | None = None) -> Committed[User]:
        """
        Delete the user with all their data.

        Raises NotFound, LastAdmin, and TokenInvalid where their session *within* has ended.
        """

    def page(self, wanted: UserFilter) -> list[User]:
        """At most ``limit + 1`` users; the extra one shows that there is a next page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDirectory:
    """
    Operations on users, by themselves and by admins.

    Rows keep a role that was removed from ``ROLES``; answers do not show it until the setting has it again.
    """

    store: UserStore
    revocations: Revocations
    audit: AuditLog
    roles: RoleNames = field(default_factory=RoleNames)

    def get(self, user_id: UserId, *, read: User | None = None) -> User:
        """The user; *read*, if it was read already. Raises NotFound."""
        return self._shown(read or self.store.get(user_id))

    def look_up(self, user_ids: Sequence[UserId]) -> tuple[list[User], list[UserId]]:
        """The users of *user_ids* in their order, each once, and the ids that no user has."""
        found = self.store.get_many(user_ids)
        wanted = dict.fromkeys(user_ids)
        there = [self._shown(found[one]) for one in wanted if one in found]
        return there, [one for one in wanted if one not in found]

    def page(self, wanted: UserFilter) -> tuple[list[User], UserId | None]:
        """The users of one page, and the cursor of the next; raises Invalid for an unknown role."""
        if wanted.role is not None:
            self.roles.require({"role": wanted.role})
        found = self.store.page(wanted) if wanted.email is None else self._one(wanted.email, wanted)
        page = [self._shown(user) for user in found[: wanted.limit]]
        return page, page[-1].id if len(found) > wanted.limit else None

    def change_profile(self, user_id: UserId, profile: Profile) -> Outcome[User]:
        """Store the given fields of *profile*."""
        return self._told(self.store.change(user_id, profile.applied_to))

    def change_roles_or_status(
        self, user_id: UserId, *, roles: tuple[Role, ...] | None, status: Status | None, actor: UserId | None
    ) -> Outcome[User]:
        """
        Set roles, status or both; an actual change revokes all earlier access tokens of the user.

        Raises NotFound, LastAdmin, and Invalid for an unknown role.
        """
        self.roles.require({f"roles.{index}": role for index, role in enumerate(roles or ())})

        def rule(user: User) -> User:
            wanted = replace(
                user,
                roles=with_roles(roles) if roles is not None else user.roles,
                status=status or user.status,
            )
            return wanted if wanted == user else replace(wanted, epoch=user.epoch + 1)

        outcome = self._told(self.store.change(user_id, rule))
        detail = f"roles={'+'.join(outcome.value.roles)} status={outcome.value.status}"
        self.audit.record(Event(Action.USER_STANDING_SET, user_id=user_id, actor_id=actor, detail=detail))
        return outcome

    def set_roles(self, email: Email, roles: tuple[Role, ...]) -> Outcome[User]:
        """The same by address, for operators; raises NotFound, LastAdmin, Invalid."""
        return self.change_roles_or_status(self.called(email).id, roles=roles, status=None, actor=None)

    def called(self, email: Email) -> User:
        """The user with the canonical address *email*; raises NotFound."""
        user = self.store.find(email)
        if user is None:
            raise NotFound
        return self._shown(user)

    def set_email(self, email: Email, new: Email) -> Outcome[User]:
        """
        Replace the address of a user, for operators; all sessions end, known devices stay known.

        The new address is not verified.

        Raises NotFound, EmailTaken.
        """
        user = self.called(email)

        def rule(found: User) -> User:
            return found if found.email == new else replace(found, email=new, email_verified=False)

        outcome = self._told(self.store.change(user.id, rule))
        self.audit.record(Event(Action.EMAIL_CHANGED, user_id=user.id))
        return outcome

    def vouch_for(self, user_id: UserId) -> Outcome[User]:
        """Mark a user's address as verified, by decision of an operator; raises NotFound."""
        outcome = self._told(self.store.change(user_id, lambda found: replace(found, email_verified=True)))
        self.audit.record(Event(Action.EMAIL_VERIFIED, user_id=user_id))
        return outcome

    def remove(
        self, user_id: UserId, *, actor: UserId | None, within: SessionId | None = None
    ) -> Outcome[User]:
        """
        Delete the user; their tokens are revoked.

        Raises NotFound, LastAdmin, and TokenInvalid where their session *within* has ended.
        """
        outcome = self.revocations.publish(self.store.remove(user_id, within=within))
        self.audit.record(Event(Action.USER_DELETED, user_id=user_id, actor_id=actor))
        return outcome

    def _one(self, email: Email, wanted: UserFilter) -> list[User]:
        user = self.store.find(email)
        return [user] if user is not None and wanted.admits(user) else []

    def _told(self, committed: Committed[User]) -> Outcome[User]:
        """Write *committed* to Redis; returns it as shown to the caller."""
        outcome = self.revocations.publish(committed)
        return Outcome(self._shown(outcome.value), outcome.is_complete)

    def _shown(self, user: User) -> User:
        roles = self.roles.shown(user.roles)
        return user if roles == user.roles else replace(user, roles=roles)
