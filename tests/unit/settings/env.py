"""Environments for the tests of the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from authsvc.settings import VARIABLES, Settings, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from authsvc.settings import Problem

TOKEN_SECRET = "rV1-token-secret-sZ8qL0wXo5tYb2mNc7"
PEPPER = "kQ4-pepper-hJ3uPq9eRt6yUi1oAs5dFg8"
DEVELOPMENT = {"AUTHSVC_ENV": "development"}
SECRETS = [each.name for each in VARIABLES.values() if each.kind.is_secret]
SENTINEL = {"REDIS_SENTINELS": "s1:26379,s2:26379", "REDIS_SENTINEL_SERVICE": "main"}
CLUSTER = {"REDIS_CLUSTER_ENABLED": "true", "REDIS_CLUSTER_NODES": "n1:6379,[::1]:6379"}


def production(keys_dir: Path | str, **changes: str | None) -> dict[str, str]:
    """Return an environment that starts, with *changes*; None removes."""
    env = {
        "DATABASE_URL": "postgresql://authsvc:db-Pa55word@db.internal:5432/authsvc",
        "REDIS_HOST": "redis.internal",
        "JWT_ISSUER": "https://auth.internal",
        "JWT_AUDIENCE": "internal",
        "JWT_KEYS_DIR": str(keys_dir),
        "TOKEN_SECRET": TOKEN_SECRET,
        "PASSWORD_PEPPER": PEPPER,
    }
    return {name: value for name, value in {**env, **changes}.items() if value is not None}


def problems(env: dict[str, str]) -> tuple[Problem, ...]:
    """Return what is wrong with *env*; fails when it is accepted."""
    with pytest.raises(SettingsError) as refusal:
        Settings.from_env(env)
    assert all(str(problem) in str(refusal.value) for problem in refusal.value.problems)
    return refusal.value.problems


def only_problem(env: dict[str, str]) -> Problem:
    """Return the one thing wrong with *env*; fails when there are more."""
    found = problems(env)
    assert len(found) == 1, found
    return found[0]


def read(keys_dir: Path, **changes: str | None) -> Settings:
    """Return the settings of a production environment with *changes*, on four CPUs."""
    return Settings.from_env(production(keys_dir, **changes), cpu_count=4)
