"""
Every variable of the table, refused in every way that its kind allows: one that is added is covered, too.

Through ``authsvc config check``, as an operator meets it: exit 1, one message, every name, no secret.
"""

from __future__ import annotations

import os

import pytest

from authsvc.cli import main
from authsvc.cli.keys import generate_key
from authsvc.settings import VARIABLES, Settings
from tests.unit.settings.env import CLUSTER, SECRETS, SENTINEL, only_problem, problems, production

OPEN = [variable.name for variable in VARIABLES.values() if not variable.kind.is_secret]
REQUIRED = [variable.name for variable in VARIABLES.values() if variable.is_required]
#: No kind of value is written so; a secret may be any text, but not one that is no text.
NEVER = {
    "no UTF-8": "a\udcff", "NUL": "a\x00b", "a line break": "a\nb", "an escape": "\x1b[2J",
    "a template": "{{ value }}", "a variable": "$" + "{VALUE} ", "too long": "x y" * 30_000,
}  # fmt: skip
HIDDEN = "hUnter2-"


@pytest.fixture
def keys(tmp_path):
    """Make a folder with a signing key."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    generate_key(folder, "ES256")
    return folder


@pytest.fixture
def check(monkeypatch, capsys):
    """Give the test ``authsvc config check`` in an environment of its own: status and message."""

    def run(env: dict[str, str]) -> tuple[int, str]:
        monkeypatch.setattr(os, "environ", env)
        status = main(["config", "check"])
        printed = capsys.readouterr()
        assert printed.out == ""
        return status, printed.err

    return run


def test_the_environment_that_the_others_break_is_a_good_one(check, keys):
    """So that each refusal below has the cause that its test names."""
    assert check(production(keys)) == (0, "the settings are complete and consistent\n")


@pytest.mark.parametrize("name", REQUIRED)
def test_what_is_required_is_missed_by_name_and_as_a_file_that_is_gone(check, keys, name):
    """One message that says what is expected."""
    missing = check(production(keys, **{name: None}))
    ways = [missing]
    if name in SECRETS:
        ways.append(check(production(keys, **{name: None, f"{name}_FILE": str(keys / "gone")})))

    for status, message in ways:
        assert status == 1
        assert message.startswith("authsvc: 1 problem in the settings:\n")
        assert name in message
        assert "expected" in message


@pytest.mark.parametrize("name", OPEN)
def test_garbage_in_any_variable_is_refused_by_its_name(keys, name):
    """Also what would forge a line of the log, or flood it."""
    for what, text in NEVER.items():
        found = [problem for problem in problems(production(keys, **{name: text})) if problem.name == name]

        assert found, (name, what)
        assert all(problem.message.isprintable() and len(problem.message) < 500 for problem in found), what


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_is_no_text_is_refused_and_not_shown(keys, name):
    """A file of raw bytes, say."""
    found = problems(production(keys, **{name: f"{HIDDEN}\udcff" * 8}))

    assert name in {problem.name for problem in found}
    assert HIDDEN not in str(found)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_s_file_is_read_without_its_line_break_or_refused(keys, tmp_path, name):
    """Whatever the secret: one trailing newline goes; empty, a folder, or not there is a problem."""
    base = production(keys, REDIS_HOST=None if name in {"REDIS_URL", "REDIS_SENTINEL_PASSWORD"} else "h")
    base |= SENTINEL if name == "REDIS_SENTINEL_PASSWORD" else {}
    base |= {"SMTP_USERNAME": "app"} if name == "SMTP_PASSWORD" else {}
    base |= {"DATA_KEY": "hJ3-uPq9eRt6yUi1oAs5dFg8kQ4zXc7v"} if name == "DATA_KEY_PREVIOUS" else {}
    text = {"REDIS_URL": "redis://h", "DATABASE_URL": "postgresql://u@h/d"}.get(
        name, "zS1-8qL0wXo5tYb2mNc7-rV4kJ6hG9fD3"
    )
    env = {key: value for key, value in base.items() if key != name}
    (tmp_path / "whole").write_text(text + "\n")
    (tmp_path / "empty").write_text("\n")

    by_file = Settings.from_env(env | {f"{name}_FILE": str(tmp_path / "whole")})

    assert by_file == Settings.from_env(env | {name: text})
    for file in ("empty", "gone", "."):
        assert only_problem(env | {f"{name}_FILE": str(tmp_path / file)}).name == name


def test_everything_wrong_at_once_is_named_at_once(check, keys):
    """Forty variables, one message; of the secrets among them not a letter."""
    secrets = {name: f"{HIDDEN}{number}" for number, name in enumerate(SECRETS)}
    env = (
        production(keys) | dict.fromkeys(OPEN, "{{ not filled in }}\x00") | secrets | {"AUTHSVC_TYPO": HIDDEN}
    )

    status, message = check(env)

    named = {name for name in (*VARIABLES, "AUTHSVC_TYPO") if f"\n  {name} " in message}
    # Passwords of servers are somebody else's policy: any text may be one.
    assert named >= {*OPEN, "DATABASE_URL", "REDIS_URL", "TOKEN_SECRET", "PASSWORD_PEPPER", "AUTHSVC_TYPO"}
    assert status == 1
    assert HIDDEN not in message
    assert "\x00" not in message


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"REDIS_HOST": None}, "REDIS_URL"),
        ({"DATABASE_URL": "sqlite:///dev.sqlite3"}, "DATABASE_URL"),
        ({"BCRYPT_COST": "4"}, "BCRYPT_COST"),
        ({"TOKEN_SECRET": "short"}, "TOKEN_SECRET"),
        ({"PASSWORD_PEPPER": "0" * 64}, "PASSWORD_PEPPER"),
        ({"PORT": "9464"}, "METRICS_PORT"),
        ({"TOKEN_SECRET_FILE": "x"}, "TOKEN_SECRET"),
        ({"REDIS_URL": "redis://h"}, "REDIS_URL"),
        ({**SENTINEL}, "REDIS_HOST"),
        ({**CLUSTER, "REDIS_HOST": None, "REDIS_DB": "1"}, "REDIS_CLUSTER_ENABLED"),
        ({"AUTHSVC_ENV": "develop"}, "AUTHSVC_ENV"),
        ({"AUTHSVC_DEBUG": "1"}, "AUTHSVC_DEBUG"),
    ],
)
def test_what_development_may_and_contradictions_end_the_command(check, keys, changes, name):
    """Production starts with none of them."""
    status, message = check(production(keys, **changes))

    assert status == 1
    assert f"\n  {name} " in message
    assert "Traceback" not in message


def test_two_workers_cannot_share_a_redis_in_memory(check, keys):
    """Not in development either: each would have a blacklist of its own."""
    env = production(keys, AUTHSVC_ENV="development", REDIS_HOST=None, WEB_CONCURRENCY="2")

    status, message = check(env)

    assert status == 1
    assert "WEB_CONCURRENCY contradicts the in-memory store" in message
