"""What development makes on first start."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from authsvc.settings import Settings
from authsvc.settings.development import ensure_development_files
from tests.unit.settings.env import DEVELOPMENT, TOKEN_SECRET

STARTERS = 16


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """Work in an empty current directory, under the most careless umask."""
    monkeypatch.chdir(tmp_path)
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def started() -> Settings:
    """Return the settings of one start in development."""
    return Settings.from_env({**DEVELOPMENT, **ensure_development_files(DEVELOPMENT)})


def test_the_first_start_makes_strong_secrets_and_the_next_finds_them():
    """A restart of development logs nobody out."""
    first, second = started(), started()

    assert first.tokens.secret == second.tokens.secret
    assert first.passwords.pepper == second.passwords.pepper
    assert first.second_factors.data_key == second.second_factors.data_key
    assert len({first.tokens.secret, first.passwords.pepper, first.second_factors.data_key}) == 3
    assert not any("weak" in warning for warning in first.warnings)


def test_nobody_else_can_read_them(checkout):
    """The folder is the user's own, and so is each file; no draft is left behind."""
    ensure_development_files(DEVELOPMENT)

    files = sorted((checkout / ".authsvc").iterdir())
    assert [file.name for file in files] == ["data-key", "password-pepper", "token-secret"]
    assert (checkout / ".authsvc").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_two_that_start_at_once_agree():
    """Every starter reads one complete secret, whoever was first."""
    barrier = Barrier(STARTERS)

    def start(_: int) -> tuple[str, str]:
        barrier.wait()
        settings = started()
        assert settings.tokens.secret is not None
        assert settings.passwords.pepper is not None
        return settings.tokens.secret.reveal(), settings.passwords.pepper.reveal()

    with ThreadPoolExecutor(STARTERS) as pool:
        pairs = list(pool.map(start, range(STARTERS)))

    assert len(set(pairs)) == 1
    assert all(len(text) == 64 for text in pairs[0])


@pytest.mark.parametrize("name", ["TOKEN_SECRET", "TOKEN_SECRET_FILE"])
def test_a_secret_that_is_set_is_left_alone(checkout, name):
    """What the developer chose wins, and nothing contradicts it."""
    additions = ensure_development_files({**DEVELOPMENT, name: TOKEN_SECRET})

    assert sorted(additions) == ["DATA_KEY_FILE", "PASSWORD_PEPPER_FILE"]
    assert not (checkout / ".authsvc" / "token-secret").exists()


@pytest.mark.parametrize("env", [{}, {"AUTHSVC_ENV": "production"}, {"AUTHSVC_ENV": "develop"}])
def test_outside_development_nothing_is_made(checkout, env):
    """Production never finds a secret that nobody chose."""
    assert ensure_development_files(env) == {}
    assert list(checkout.iterdir()) == []
