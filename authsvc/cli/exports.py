"""Export of users as JSON lines, which `users import` reads, and a count of the hashes in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from authsvc.domain.passwords.hasher import MALFORMED, SCHEME, kind_of_hash
from authsvc.domain.users import RoleNames, User
from authsvc.domain.values.clocks import rfc3339
from authsvc.store.accounts.transfers import SqlUserTransfers


def exported_users(
    transfers: SqlUserTransfers, roles: RoleNames, *, pepper_id: str | None
) -> Iterator[list[dict[str, Any]]]:
    """All users, in pages; with password hashes, and the pepper that they need, if *pepper_id* is given."""
    for page in transfers.pages(with_hashes=pepper_id is not None):
        yield [described(user, roles) | _hash(stored, pepper_id) for user, stored in page]


def hashes_in_use(kinds: Mapping[str, int], needs_rehash: Callable[[str], bool]) -> dict[str, Any]:
    """
    The number of hashes of each scheme and cost, from *kinds*, the beginnings of hashes.

    The first login replaces a foreign hash: users who have one have not logged in since the import.
    """
    counts = Counter[tuple[str, int | None]]()
    for beginning, count in kinds.items():
        counts[kind_of_hash(beginning)] += count
    foreign = {kind for kind in counts if kind[0] not in {SCHEME, MALFORMED}}
    return {
        "users": sum(counts.values()),
        "not_logged_in_since_import": sum(counts[kind] for kind in foreign),
        "to_rehash": sum(n for beginning, n in kinds.items() if needs_rehash(beginning)),
        "hashes": [
            {"scheme": scheme, "cost": cost, "users": count}
            for (scheme, cost), count in sorted(counts.items(), key=str)
        ],
    }


def described(user: User, roles: RoleNames) -> dict[str, Any]:
    return {
        "id": user.id,
        "email": user.email,
        "name": user.name,
        "phone": user.phone,
        "device_id": user.device_id,
        "roles": list(roles.shown(user.roles)),
        "status": user.status,
        "preferences": user.preferences,
        "created_at": rfc3339(user.created_at),
        "updated_at": rfc3339(user.updated_at),
        "last_login": rfc3339(user.last_login) if user.last_login else None,
        "email_verified": user.email_verified,
    }


def _hash(stored: str | None, pepper_id: str | None) -> dict[str, Any]:
    if stored is None:
        return {}
    is_own = stored.startswith(SCHEME)
    return {"password_hash": stored, "pepper_id": pepper_id} if is_own else {"password_hash": stored}
