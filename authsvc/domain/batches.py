"""Operations on many users in one request; each item has its own result."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from authsvc.domain.audit import Action, AuditLog, Event
from authsvc.domain.authentication import Authentication, Registration
from authsvc.domain.credentials import CredentialStore
from authsvc.domain.errors import AuthError, StoreUnavailable
from authsvc.domain.revocations import Revocations
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.emails import InvalidEmail, canonical_email
from authsvc.domain.values.identifiers import UserId

#: Number of items in parallel: enough to keep the hashing lane busy, too few to fill its queue.
AT_ONCE = 4


#: An item with its place in the batch.
Placed: TypeAlias = "tuple[int, Registration | AuthError]"


@dataclass(frozen=True, slots=True)
class Created:
    """The result of one item: a user, or an error."""

    user: User | None = None
    refusal: AuthError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Operations on many users; for admins."""

    authentication: Authentication
    credentials: CredentialStore
    revocations: Revocations
    audit: AuditLog
    clock: Clock

    def create(self, items: Sequence[Registration | AuthError]) -> list[Created]:
        """
        Register each item, or keep its error, in order; of two with the same address the first wins.

        A failure affects only its own item. Raises StoreUnavailable if no item could be processed because of
        it.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = [pool.submit(copy_context().run, self._create_all, alike) for alike in _by_address(items)]
            by_position = dict(chain.from_iterable(job.result() for job in jobs))
        results = [by_position[position] for position in range(len(items))]
        outages = [result.refusal for result in results if isinstance(result.refusal, StoreUnavailable)]
        if len(outages) == len(items):
            raise outages[0]
        return results

    def note_logins(self, user_ids: Sequence[UserId]) -> tuple[list[UserId], list[UserId]]:
        """Set the last login of each to now; returns the ids that were set and those that no user has."""
        wanted = list(dict.fromkeys(user_ids))
        noted = set(self.revocations.publish(self.credentials.note_logins(wanted, self.clock())).value)
        self.audit.record(Event(Action.LOGINS_NOTED, detail=f"users={len(noted)}"))
        return [one for one in wanted if one in noted], [one for one in wanted if one not in noted]

    def _create_all(self, alike: Sequence[Placed]) -> list[tuple[int, Created]]:
        return [(position, self._create(item)) for position, item in alike]

    def _create(self, item: Registration | AuthError) -> Created:
        if isinstance(item, AuthError):
            return Created(refusal=item)
        try:
            return Created(user=self.authentication.register(item, by_operator=True))
        except AuthError as refusal:
            return Created(refusal=refusal)


def _by_address(items: Sequence[Registration | AuthError]) -> list[list[Placed]]:
    """*items* in groups that may run in parallel; those with the same address run one after the other."""
    groups: dict[str, list[Placed]] = {}
    for position, item in enumerate(items):
        groups.setdefault(_address(item) or f"item {position}", []).append((position, item))
    return list(groups.values())


def _address(item: Registration | AuthError) -> str | None:
    """The canonical address of *item*, if it has one."""
    if isinstance(item, AuthError):
        return None
    try:
        return canonical_email(item.email)
    except InvalidEmail:
        return None
