"""``authsvc dev`` from an empty folder: nothing to install, nothing to set, and no secret that two share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jwt
import pytest

from tests.rig import PASSWORD, Service, run_command
from tests.timings import PATIENT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: Hashes of the production cost would take most of this file's time.
ENV = {"BCRYPT_COST": "4"}


def test_an_empty_folder_becomes_a_service(tmp_path):
    """Register to logout, as a newcomer would try it; what it lacks for production it says."""
    with Service(ENV, tmp_path, command="dev", entry=PATIENT) as service:
        registered = service.register("ann@example.com")
        pair = service.log_in("ann@example.com")
        checks = [service.verify(pair["access_token"])]
        refreshed = service.call("POST", "/v1/auth/refresh", json={"refresh_token": pair["refresh_token"]})
        out = service.call("POST", "/v1/auth/logout", token=pair["access_token"])
        checks += [service.verify(pair["access_token"]), service.verify(refreshed.json()["access_token"])]
        health = service.call("GET", "/v1/health").json()
        status = service.stop()

    assert [registered.status_code, refreshed.status_code, out.status_code] == [201, 200, 204]
    assert checks == [200, 401, 401]
    assert (health["status"], health["redis"], health["database"]) == ("ok", "in-memory", "up")
    assert status == 0
    assert "Redis is in memory" in service.log.read_text()
    assert modes(tmp_path / ".authsvc") == {0o600, 0o700}


def modes(folder: Path) -> set[int]:
    """The permissions of *folder*, of its key folder, keys and secrets."""
    private = [
        folder,
        folder / "keys",
        *folder.glob("keys/*"),
        folder / "token-secret",
        folder / "password-pepper",
    ]
    return {path.stat().st_mode & 0o777 for path in private}


def test_a_second_start_finds_users_sessions_and_keys(tmp_path):
    """What is in memory is gone, what counts is not: who was logged in stays so, who had left stays out."""
    service = Service(ENV, tmp_path, command="dev", entry=PATIENT)
    with service:
        service.register("ann@example.com")
        stays, gone = (service.log_in("ann@example.com") for _ in range(2))
        assert service.call("POST", "/v1/auth/logout", token=gone["access_token"]).status_code == 204

    with service.start():
        checks = [service.verify(pair["access_token"]) for pair in (stays, gone)]
        again = service.log_in("ann@example.com")
        keys = service.call("GET", "/.well-known/jwks.json").json()["keys"]

    assert checks == [200, 401]
    assert [key["kid"] for key in keys] == [jwt.get_unverified_header(again["access_token"])["kid"]]
    assert again["session_id"] != stays["session_id"]


def test_two_processes_cannot_share_what_is_in_memory(tmp_path):
    """WEB_CONCURRENCY=2 would make each worker a service of its own: refused, with the way out."""
    refused = run_command("dev", env=ENV | {"WEB_CONCURRENCY": "2"}, folder=tmp_path)

    assert refused.returncode != 0
    assert "WEB_CONCURRENCY" in refused.stderr
    assert "REDIS_URL" in refused.stderr


def test_admins_are_made_on_the_command_line(tmp_path):
    """The same folder, the same secrets: what the command makes can log in, also while the service runs."""
    with Service(ENV, tmp_path, command="dev", entry=PATIENT) as service:
        create = ("users", "create", "root@example.com", "--role", "admin", "--password-stdin")
        created = run_command(
            *create, env=ENV | {"AUTHSVC_ENV": "development"}, folder=tmp_path, stdin=PASSWORD, entry=PATIENT
        )
        assert created.returncode == 0, created.stderr
        root = service.log_in("root@example.com")

        assert service.call("GET", "/v1/users", token=root["access_token"]).status_code == 200


def test_without_the_command_nothing_is_embedded(tmp_path):
    """Production is the default: ``serve`` in an empty folder makes no file and no secret."""
    refused = run_command("serve", env={}, folder=tmp_path)

    assert refused.returncode != 0
    assert list(tmp_path.iterdir()) == []
