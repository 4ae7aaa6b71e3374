"""Preferences: one JSON object per user, with merge patch (RFC 7396) and entity tags (RFC 9110 §8.8.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from authsvc.domain.errors import Invalid, PreconditionFailed
from authsvc.domain.revocations import Outcome, Revocations
from authsvc.domain.users import User, UserStore
from authsvc.domain.values.identifiers import UserId
from authsvc.domain.values.jsontext import Json, canonical

Preferences = dict[str, Json]

MAX_BYTES = 16 * 1024
MAX_KEYS = 100
MAX_DEPTH = 5


def merge(target: Json, patch: Preferences) -> Preferences:
    """*target* patched as RFC 7396 §2 says: null removes, an object merges, all else replaces."""
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value) if isinstance(value, dict) else value
    return merged


def entity_tag(preferences: Preferences) -> str:
    """An entity tag: equal tags mean equal objects, whatever the order of their members."""
    return f'"{hashlib.sha256(canonical(preferences).encode()).hexdigest()[:32]}"'


def checked(preferences: Preferences) -> Preferences:
    """*preferences* if it is within the limits; raises Invalid."""
    problems = []
    depth, keys = _measure(preferences)
    if depth > MAX_DEPTH:
        problems.append(f"nested deeper than {MAX_DEPTH}")
    if keys > MAX_KEYS:
        problems.append(f"more than {MAX_KEYS} keys")
    if len(canonical(preferences).encode()) > MAX_BYTES:
        problems.append(f"more than {MAX_BYTES} bytes")
    if problems:
        raise Invalid({"preferences": problems})
    return preferences


def _measure(value: Json) -> tuple[int, int]:
    """Depth of containers and number of keys in *value*; JSON input is at most 32 deep."""
    if isinstance(value, dict):
        inner = [_measure(member) for member in value.values()]
        own_keys = len(value)
    elif isinstance(value, list):
        inner = [_measure(member) for member in value]
        own_keys = 0
    else:
        return 0, 0
    return 1 + max((depth for depth, _ in inner), default=0), own_keys + sum(keys for _, keys in inner)


@dataclass(frozen=True, slots=True)
class PreferenceBook:
    """Reads and writes preferences; each write holds the user's row lock, so that no update is lost."""

    users: UserStore
    revocations: Revocations

    def get(self, user_id: UserId) -> Preferences:
        """The whole object; raises NotFound."""
        return self.users.get(user_id).preferences

    def replace(self, user_id: UserId, wanted: Preferences, *, if_match: Condition) -> Outcome[User]:
        """Store *wanted* as the new object; raises PreconditionFailed, Invalid."""
        return self._write(user_id, lambda _: wanted, if_match)

    def patch(self, user_id: UserId, patch: Preferences, *, if_match: Condition) -> Outcome[User]:
        """Merge *patch* in; raises PreconditionFailed, Invalid for the merged object."""
        return self._write(user_id, lambda current: merge(current, patch), if_match)

    def _write(
        self, user_id: UserId, change: Callable[[Preferences], Preferences], if_match: Condition
    ) -> Outcome[User]:
        def rule(user: User) -> User:
            if not if_match.holds(user.preferences):
                raise PreconditionFailed
            return replace(user, preferences=checked(change(user.preferences)))

        return self.revocations.publish(self.users.change(user_id, rule))


@dataclass(frozen=True, slots=True)
class Condition:
    """An ``If-Match`` header: entity tags, of which one must be the current one; None: no condition."""

    tags: frozenset[str] | None = None

    def holds(self, preferences: Preferences) -> bool:
        """True if the write may go on; ``*`` matches any object."""
        return self.tags is None or "*" in self.tags or entity_tag(preferences) in self.tags
