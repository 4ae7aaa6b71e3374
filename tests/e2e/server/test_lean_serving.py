"""What a serving process has loaded: what it uses, and all of it before its workers fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.processes import free_port
from tests.rig import environment, migrate

if TYPE_CHECKING:
    from pathlib import Path

#: ``authsvc serve`` up to the fork, and what a worker does first; writes what was loaded by then and since.
SERVE = """
import json, sys
import authsvc.server
from authsvc.cli import main

def serve(options, load):
    services = load().services
    before = set(sys.modules)
    services.start()
    services.close()
    # Not to stdout: that is where the log goes.
    with open("modules.json", "w") as file:
        json.dump([sorted(before), sorted(set(sys.modules) - before)], file)

authsvc.server.serve = serve
sys.exit(main(["serve"]))
"""


@pytest.fixture
def env(database_url, redis_url, tmp_path) -> dict[str, str]:
    """The environment of a service in production."""
    ports = {"PORT": str(free_port()), "METRICS_PORT": str(free_port())}
    made = environment(database_url, redis_url, tmp_path, **ports)
    migrate(made)
    return made


def loaded(env: dict[str, str], folder: Path) -> tuple[set[str], set[str]]:
    """The modules that are loaded before the fork, and after it."""
    subprocess.run(
        [sys.executable, "-c", SERVE],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    before, after = json.loads((folder / "modules.json").read_text())
    return set(before), set(after)


def test_a_serving_process_loads_what_it_uses(env, tmp_path):
    """Neither tracing nor passkeys that are off, nor YAML; all before the fork, for workers to share."""
    before, after = loaded(env, tmp_path)

    assert {name.partition(".")[0] for name in before} & {
        "alembic",
        "fido2",
        "opentelemetry",
        "psutil",
        "yaml",
    } == set()
    assert after == set()


#: Modules of parts that are off by default.
OPTIONAL = {
    "authsvc.api.clients",
    "authsvc.api.factors",
    "authsvc.api.passkeys",
    "authsvc.api.recovery",
    "authsvc.domain.accounts.addresses",
    "authsvc.domain.accounts.passkeys",
    "authsvc.domain.accounts.step_up",
    "authsvc.mail.sender",
    "authsvc.wiring.second_factors",
    "smtplib",
}
#: What only another database needs.
OTHER_DATABASES = {"sqlalchemy.dialects.sqlite", "sqlite3"}


def test_a_serving_process_loads_no_part_that_is_off(env, tmp_path):
    """Each takes time at the start, and memory of every process."""
    before, _ = loaded(env, tmp_path)

    assert before & (OPTIONAL | OTHER_DATABASES) == set()


def test_parts_that_are_on_are_loaded_before_the_fork(env, tmp_path):
    """Workers share them, too."""
    parts = {
        "MACHINES": "on",
        "MAIL_TRANSPORT": "smtp",
        "MAIL_FROM": "authsvc@example.com",
        "SMTP_HOST": "127.0.0.1",
        "SECOND_FACTORS": "on",
        "DATA_KEY": "tests-data-key-" + "89abcdef01234567" * 2,
        "WEBAUTHN_RP_ID": "example.com",
        "WEBAUTHN_ORIGINS": "https://example.com",
    }

    before, after = loaded(env | parts, tmp_path)

    assert before >= OPTIONAL
    assert after == set()


def test_tracing_is_loaded_where_it_is_on(env, tmp_path):
    """What the start left out for others is there for who uses it."""
    traced = env | {"TRACING": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}

    before, after = loaded(traced, tmp_path)

    assert "opentelemetry.sdk" in before | after


def test_passkeys_are_loaded_before_the_fork_where_they_are_on(env, tmp_path):
    """Workers share what reads them, too."""
    passkeys = {
        "SECOND_FACTORS": "on",
        "DATA_KEY": "tests-data-key-" + "89abcdef01234567" * 2,
        "WEBAUTHN_RP_ID": "example.com",
        "WEBAUTHN_ORIGINS": "https://example.com",
    }

    before, after = loaded(env | passkeys, tmp_path)

    assert "fido2.webauthn" in before
    assert after == set()
