"""Users from Redis while it is proven, otherwise from the store behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar, cast

from authsvc.cache.aside import Aside, Shape, Tags
from authsvc.cache.entry import MISSING, Entry, Missing
from authsvc.cache.entry import Json as CacheJson
from authsvc.cache.errors import CacheError
from authsvc.cache.filling.sweep import pattern_drop
from authsvc.cache.keys import Space
from authsvc.cache.redis.client import Command
from authsvc.domain.accounts.mails import Mail
from authsvc.domain.accounts.tickets import Ticket
from authsvc.domain.credentials import Credentials, Rehash, UsedUp
from authsvc.domain.errors import NotFound
from authsvc.domain.revocations import Committed
from authsvc.domain.sessions import Session
from authsvc.domain.users import Role, Status, User, UserFilter, UserStore, is_role_name
from authsvc.domain.values.clocks import Clock, Monotonic
from authsvc.domain.values.emails import Email
from authsvc.domain.values.identifiers import SessionId, UserId, is_id
from authsvc.domain.values.jsontext import Json
from authsvc.domain.values.shards import PAGES, shard_of
from authsvc.store.accounts.credentials import SqlCredentialStore
from authsvc.store.accounts.mails import NO_NOTICES, Notices
from authsvc.store.accounts.recovery import SqlRecoveryStore
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.sql import Database

#: The result of a registration or a login.
Kept = TypeVar("Kept", Committed[User], Committed[User] | None)

#: Increase this with every change of the fields below.
USER_SCHEMA = 3

#: The tag that every page of the list depends on.
ALL_USERS = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTimings:
    """Time limits of the user cache (seconds)."""

    #: Longer than SQL may take to load a record to cache.
    lease_s: float = 5.0
    #: A request that has waited longer than this for Redis does not write an address to it.
    note_within_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the admin list; ``id`` is the text of its filter."""

    id: str
    users: tuple[User, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCaches:
    """The cached data of users: the users, the ids of their addresses, the pages of the list."""

    users: Aside[User]
    emails: Space
    pages: Aside[Page]
    page_tags: Tags
    #: Number of shards of the copies.
    shards: int = 1

    def drop_commands(
        self, user_id: str, email: Email, row_version: int | None = None
    ) -> list[tuple[int, Command]]:
        """
        The commands that drop the cached data of one user, and all pages, each with the shard of its key.

        With *row_version*, copies that are at least as new stay, and so does the cached id of the address,
        which readers verify.
        """
        shard = shard_of(user_id, self.shards)
        if row_version is None:
            note: Command = ("DEL", self.emails.key(email))
            return [*self._drop_commands_by_id(user_id, shard), (shard_of(email, self.shards), note)]
        return [(shard, self.users.outdate_command(user_id, row_version)), *self._drop_pages()]

    def keep(self, user_id: UserId, commit: Callable[[], Kept]) -> Kept:
        """
        Cache the user that *commit* returns, if any, so that the first read is a hit.

        Not while Redis fails: a registration or login must not wait for it again.
        """
        if not self.users.client.is_steady:
            return commit()
        committed, is_kept = self.users.write_ahead(user_id, commit, _user_of)
        if committed is not None and is_kept:
            self.note_addresses((committed.value,))
        return committed

    def note_addresses(self, users: Iterable[User]) -> None:
        """Cache the ids for the addresses of *users*, unless Redis fails: this only saves a query later."""
        notes: list[Command] = [
            ("SET", self.emails.key(user.email), user.id, "EX", self.emails.ttl_s) for user in users
        ]
        with suppress(CacheError):  # counted by the client's hooks
            self.users.client.pipeline(notes)

    def drop(self, user_id: str, email: Email | None) -> int:
        """Drop the cached data of one user, and all pages; returns the number of their records."""
        shard = shard_of(user_id, self.shards)
        placed = self.drop_commands(user_id, email) if email else self._drop_commands_by_id(user_id, shard)
        commands = [command for _, command in placed]
        replies = self.users.client.pipeline(commands).values
        return sum(_records(command, reply) for command, reply in zip(commands, replies, strict=True))

    def read(self, user_id: str, raw: bytes | None) -> User | None:
        """The user in *raw*, the value of :meth:`key` read with a proven marker; None if it is not usable."""
        found = self.users.read(user_id, raw)
        return None if isinstance(found, Missing) else found

    def key(self, user_id: str) -> str:
        """The key of the copy of a user."""
        return self.users.space.key(user_id)

    def clear(self) -> int:
        """Drop everything, in bounded steps; returns the number of records."""
        spaces = (self.users.space, self.emails, self.pages.space)
        return sum(pattern_drop(self.users.client, space) for space in spaces)

    def held(self, keys: Sequence[str]) -> int:
        """How many of *keys* exist; one round trip, raises CacheError."""
        replies = self.users.client.pipeline([("EXISTS", key) for key in keys]).values
        return sum(cast("list[int]", replies))

    def _drop_commands_by_id(self, user_id: str, shard: int) -> list[tuple[int, Command]]:
        of_user = [(shard, command) for command in self.users.drop_commands([user_id])]
        return [*of_user, *self._drop_pages()]

    def _drop_pages(self) -> list[tuple[int, Command]]:
        return [(PAGES, command) for command in self.page_tags.drop_commands([ALL_USERS])]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedUserStore:
    """
    The users of *behind*, read through *caches*.

    Copies are dropped by way of the log entries of each change, not here: this also works for changes by a
    process that cannot reach Redis.
    """

    behind: UserStore
    caches: UserCaches
    #: Called with the name of the operation and its duration in seconds.
    on_operation: Callable[[str, float], None]
    monotonic: Monotonic
    timings: CopyTimings = field(default_factory=CopyTimings)

    def get(self, user_id: UserId) -> User:
        """Raises NotFound."""
        with self._timed("get") as began_s:
            found = self.caches.users.get_or_load(user_id, lambda _: self._load(user_id, began_s))
        if isinstance(found, Missing):
            raise NotFound
        return found

    def get_many(self, user_ids: Sequence[UserId]) -> dict[UserId, User]:
        """One MGET, and one query for what is not cached."""
        with self._timed("get_many") as began_s:
            found = self.caches.users.get_or_load_many(user_ids, lambda ids: self._load_many(ids, began_s))
        return {UserId(ident): user for ident, user in found.items()}

    def find(self, email: Email) -> User | None:
        """The user by the cached id of the address, if they still have it; else from the store behind."""
        user = self._noted(email)
        return user if user is not None and user.email == email else self.behind.find(email)

    def add(self, user: User, password_hash: str) -> Committed[User]:
        """In the store behind; the user is cached, too."""
        return self.caches.keep(user.id, lambda: self.behind.add(user, password_hash))

    def change(self, user_id: UserId, rule: Callable[[User], User]) -> Committed[User]:
        """In the store behind, on the row and never on a copy."""
        return self.behind.change(user_id, rule)

    def remove(self, user_id: UserId, *, within: SessionId | None = None) -> Committed[User]:
        """In the store behind."""
        return self.behind.remove(user_id, within=within)

    def page(self, wanted: UserFilter) -> list[User]:
        """The page, cached by the text of its filter; a change of any user makes all pages out of date."""
        ident = page_words(wanted)
        with self._timed("page"):
            found = self.caches.pages.get_or_load(
                ident, lambda _: Page(ident, tuple(self.behind.page(wanted)))
            )
        return [] if isinstance(found, Missing) else list(found.users)

    def _noted(self, email: Email) -> User | None:
        """The user whose id is cached for *email*; the id may be outdated."""
        try:
            (raw,) = self.caches.users.client.mget((self.caches.emails.key(email),)).values
            noted = (raw or b"").decode(errors="replace")
            return self.get(UserId(noted)) if is_id(noted) else None
        except (CacheError, NotFound):
            return None

    def _load(self, user_id: UserId, asked_at_s: float) -> User:
        """The user from the store behind; caches the id for the address, which readers verify."""
        is_quick = self._is_quick_since(asked_at_s)
        user = self.behind.get(user_id)
        if is_quick:
            self.caches.note_addresses((user,))
        return user

    def _load_many(self, idents: Sequence[str], asked_at_s: float) -> dict[str, User]:
        is_quick = self._is_quick_since(asked_at_s)
        found = self.behind.get_many([UserId(ident) for ident in idents])
        if is_quick and found:
            self.caches.note_addresses(found.values())
        return {str(user_id): user for user_id, user in found.items()}

    def _is_quick_since(self, asked_at_s: float) -> bool:
        """False if Redis hangs: a reader that has waited for it should not wait again to cache an address."""
        return self.monotonic() - asked_at_s < self.timings.note_within_s

    @contextmanager
    def _timed(self, operation: str) -> Iterator[float]:
        began_s = self.monotonic()
        try:
            yield began_s
        finally:
            self.on_operation(operation, self.monotonic() - began_s)


class CachedCredentialStore(SqlCredentialStore):
    """Password hashes in SQL; users who log in are put into *caches*."""

    def __init__(
        self,
        database: Database,
        log: SqlRevocationLog,
        clock: Clock,
        notices: Notices = NO_NOTICES,
        *,
        caches: UserCaches,
    ) -> None:
        super().__init__(database, log, clock, notices)
        self._caches = caches

    def open_session(
        self,
        verified: Credentials,
        session: Session,
        *,
        rehash: Rehash | None,
        max_sessions: int,
        used_up: UsedUp | None = None,
    ) -> Committed[User] | None:
        """In SQL; the user is cached, too."""
        open_session = super().open_session
        return self._caches.keep(
            verified.user.id,
            lambda: open_session(
                verified, session, rehash=rehash, max_sessions=max_sessions, used_up=used_up
            ),
        )


class CachedRecoveryStore(SqlRecoveryStore):
    """Tickets in SQL; users who register by one are put into *caches*."""

    def __init__(
        self, database: Database, log: SqlRevocationLog, clock: Clock, *, caches: UserCaches
    ) -> None:
        super().__init__(database, log, clock)
        self._caches = caches

    def confirm_registration(self, ticket: Ticket, user: User) -> Committed[User]:
        """In SQL; the user is cached, too."""
        confirm = super().confirm_registration
        return self._caches.keep(user.id, lambda: confirm(ticket, user))

    def add_user(self, user: User, password_hash: str, ticket: Ticket, mail: Mail | None) -> Committed[User]:
        """In SQL; the user is cached, too."""
        add_user = super().add_user
        return self._caches.keep(user.id, lambda: add_user(user, password_hash, ticket, mail))


def dump_user(user: User) -> Entry:
    """*user* as a cache entry; a User does not contain the password hash."""
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
        "email_verified": user.email_verified,
        "epoch": user.epoch,
    }
    return Entry(fields, row_version=user.version)


def load_user(entry: Entry) -> User:
    """The user in *entry*; raises KeyError, TypeError or ValueError if it is not one."""
    fields = entry.fields
    last_login = fields["last_login"]
    return User(
        id=UserId(_text(fields["id"])),
        email=Email(_text(fields["email"])),
        name=_text_or_none(fields["name"]),
        phone=_text_or_none(fields["phone"]),
        device_id=_text_or_none(fields["device_id"]),
        roles=_roles(fields["roles"]),
        status=_status(fields["status"]),
        preferences=_preferences(fields["preferences"]),
        created_at=datetime.fromisoformat(_text(fields["created_at"])),
        updated_at=datetime.fromisoformat(_text(fields["updated_at"])),
        last_login=datetime.fromisoformat(_text(last_login)) if last_login is not None else None,
        email_verified=fields["email_verified"] is True,
        epoch=int(cast("int", fields["epoch"])),
        version=entry.row_version,
    )


def dump_page(page: Page) -> Entry:
    """*page* as a cache entry; it has no version, because a tag shows when it is out of date."""
    users: list[CacheJson] = [{**dump_user(user).fields, "version": user.version} for user in page.users]
    return Entry({"id": page.id, "users": users}, row_version=0)


def load_page(entry: Entry) -> Page:
    """The page in *entry*; raises KeyError, TypeError or ValueError if it is not one."""
    users = cast("list[dict[str, CacheJson]]", entry.fields["users"])
    entries = [Entry(fields, row_version=int(cast("int", fields["version"]))) for fields in users]
    return Page(_text(entry.fields["id"]), tuple(load_user(one) for one in entries))


USER_SHAPE: Shape[User] = Shape(schema=USER_SCHEMA, dump=dump_user, load=load_user)
PAGE_SHAPE: Shape[Page] = Shape(schema=USER_SCHEMA, dump=dump_page, load=load_page)


def page_words(wanted: UserFilter) -> str:
    """*wanted* as text; equal filters have equal texts."""
    return f"role={wanted.role}&status={wanted.status}&limit={wanted.limit}&after={wanted.after}"


def _user_of(committed: Committed[User] | None) -> User | Missing:
    return MISSING if committed is None else committed.value


def _records(command: Command, reply: object) -> int:
    """The number of records that a command dropped, without leases and versions of tags."""
    is_deletion = command[0] == "DEL" and ":lease:" not in str(command[1])
    return reply if is_deletion and isinstance(reply, int) else 0


def _roles(value: object) -> tuple[Role, ...]:
    if not isinstance(value, list) or not value or not all(map(is_role_name, value)):
        raise ValueError("not roles")
    return tuple(value)


def _status(value: object) -> Status:
    if value not in {"active", "disabled"}:
        raise ValueError("not a status")
    return value


def _preferences(value: object) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)
