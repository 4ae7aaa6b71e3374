"""Users from Redis where it is proven, from the store behind it otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from authsvc.cache.aside import Aside, Shape
from authsvc.cache.client import Command
from authsvc.cache.entry import Entry, Missing
from authsvc.cache.entry import Json as CacheJson
from authsvc.cache.errors import CacheError
from authsvc.cache.keys import Space
from authsvc.domain.errors import NotFound
from authsvc.domain.revocations import Committed
from authsvc.domain.users import Role, Status, User, UserFilter, UserStore
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import UserId
from authsvc.domain.values.jsontext import Json

#: Raise it with every change of the fields below.
USER_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class CachedUserStore:
    """
    The users of *behind*, read through *aside*.

    Copies are dropped by the log entries that every change commits, not here: also a process that cannot
    reach Redis gets them dropped.
    """

    behind: UserStore
    aside: Aside[User]
    emails: Space

    def get(self, user_id: UserId) -> User:
        """Raises NotFound."""
        found = self.aside.get_or_load(user_id, lambda _: self._load(user_id))
        if isinstance(found, Missing):
            raise NotFound
        return found

    def find(self, email: Email) -> User | None:
        """By the cached id of the address, if its user still has it; else from the store behind."""
        try:
            (user_id,) = self.aside.client.mget((self.emails.key(email),)).values
            user = self.get(UserId(user_id.decode())) if user_id else None
        except (CacheError, NotFound):
            user = None
        return user if user is not None and user.email == email else self.behind.find(email)

    def add(self, user: User, password_hash: str) -> Committed[User]:
        """In the store behind."""
        return self.behind.add(user, password_hash)

    def change(self, user_id: UserId, rule: Callable[[User], User]) -> Committed[User]:
        """In the store behind, on the row and never on a copy."""
        return self.behind.change(user_id, rule)

    def remove(self, user_id: UserId) -> Committed[User]:
        """In the store behind."""
        return self.behind.remove(user_id)

    def _load(self, user_id: UserId) -> User:
        """From the store behind; the address is noted, and checked by whoever reads the note."""
        user = self.behind.get(user_id)
        note = ("SET", self.emails.key(user.email), user.id, "EX", self.emails.ttl_s)
        with suppress(CacheError):  # counted by the client's hooks; the note only saves a query
            self.aside.client.call(*note)
        return user

    def page(self, wanted: UserFilter) -> list[User]:
        """From the store behind."""
        return self.behind.page(wanted)


def drop_copies(aside: Aside[User], emails: Space) -> Callable[[str, Email], Sequence[Command]]:
    """The commands that drop everything cached of a user."""

    def commands(user_id: str, email: Email) -> Sequence[Command]:
        return [*aside.drop_commands([user_id]), ("DEL", emails.key(email))]

    return commands


def dump_user(user: User) -> Entry:
    """*user* as it is cached: everything but the password hash, which is not part of him."""
    fields: dict[str, CacheJson] = {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "phone": user.phone,
        "device_id": user.device_id,
        "roles": list(user.roles),
        "status": user.status,
        "preferences": user.preferences,
        "created_at": user.created_at.isoformat(),
        "updated_at": user.updated_at.isoformat(),
        "last_login": user.last_login.isoformat() if user.last_login else None,
        "epoch": user.epoch,
    }
    return Entry(fields, row_version=user.version)


def load_user(entry: Entry) -> User:
    """The user in *entry*; raises KeyError, TypeError or ValueError where it holds none."""
    fields = entry.fields
    last_login = fields["last_login"]
    return User(
        id=UserId(_text(fields["id"])),
        email=Email(_text(fields["email"])),
        name=_text_or_none(fields["name"]),
        phone=_text_or_none(fields["phone"]),
        device_id=_text_or_none(fields["device_id"]),
        roles=cast("tuple[Role, ...]", tuple(cast("list[str]", fields["roles"]))),
        status=cast("Status", _text(fields["status"])),
        preferences=cast("dict[str, Json]", fields["preferences"]),
        created_at=datetime.fromisoformat(_text(fields["created_at"])),
        updated_at=datetime.fromisoformat(_text(fields["updated_at"])),
        last_login=datetime.fromisoformat(_text(last_login)) if last_login is not None else None,
        epoch=int(cast("int", fields["epoch"])),
        version=entry.row_version,
    )


USER_SHAPE: Shape[User] = Shape(schema=USER_SCHEMA, dump=dump_user, load=load_user)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)
