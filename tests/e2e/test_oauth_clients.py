"""Clients from the command line, and another library's idea of introspection and revocation."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from authlib.integrations.requests_client import OAuth2Session

from tests.rig import Service, run_command
from tests.timings import PATIENT

if TYPE_CHECKING:
    import subprocess

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CREATE = ("create", "Gäteway: west", "--may", "introspect-refresh", "--may", "revoke")
METADATA = "/.well-known/oauth-authorization-server"


@pytest.fixture(scope="module")
def service(make_service) -> Service:
    """A service with a user."""
    made: Service = make_service()
    assert made.register("ada@example.com").status_code == 201
    return made


@pytest.fixture(scope="module")
def command(service, tmp_path_factory):
    """Run commands with the service's settings, several at once."""
    folder = tmp_path_factory.mktemp("commands")

    def run(*lines: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
        with ThreadPoolExecutor(len(lines)) as pool:
            return list(
                pool.map(
                    lambda line: run_command("clients", *line, env=service.env, folder=folder, entry=PATIENT),
                    lines,
                )
            )

    return run


@pytest.fixture(scope="module")
def made(command) -> list[dict[str, Any]]:
    """Make two clients."""
    return [printed(done) for done in command(CREATE, ("create", "gone"))]


def printed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object that a command printed."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Authlib:
    """Authlib's client, which knows the secret and finds the endpoints by the metadata."""

    def __init__(self, service: Service, client: dict[str, str]) -> None:
        # One connection each, so that the kernel deals each request to any worker.
        headers = {"Connection": "close"}
        self.session = OAuth2Session(client["client_id"], client["client_secret"])
        self.session.headers.update(headers)
        issuer = service.env["JWT_ISSUER"]
        found = service.call("GET", METADATA).json()
        self.introspection = found["introspection_endpoint"].replace(issuer, service.url)
        self.revocation = found["revocation_endpoint"].replace(issuer, service.url)

    def introspect(self, token: str, hint: str | None = None) -> Any:
        """What the service says of *token*."""
        return self.session.introspect_token(self.introspection, token=token, token_type_hint=hint)

    def revoke(self, token: str, hint: str | None = None) -> Any:
        """What the service answers to a revocation of *token*."""
        return self.session.revoke_token(self.revocation, token=token, token_type_hint=hint)


def test_another_library_asks_about_tokens_and_revokes_them(made, service):
    """Authlib finds, asks and revokes with an id and a secret as the command line made them."""
    client = Authlib(service, made[0])
    pair = service.log_in("ada@example.com")

    for kind in ("access_token", "refresh_token"):
        found = client.introspect(pair[kind], hint=kind).json()
        assert (found["active"], found["token_type"], found["sid"]) == (True, kind, pair["session_id"])
    assert client.revoke(pair["refresh_token"], hint="refresh_token").status_code == 200

    for kind in ("access_token", "refresh_token"):
        assert client.introspect(pair[kind], hint=kind).json() == {"active": False}
    stranger = Authlib(service, made[0] | {"client_secret": "wrong"})
    refused = stranger.introspect(pair["access_token"])
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(("here", "there"), [(0, 1), (1, 0)])
def test_what_one_worker_revokes_is_inactive_in_the_other_at_once(made, service, here, there):
    """Either way round, for both tokens; a gateway is told the same."""
    client = Authlib(service, made[0])
    pair = service.log_in("ada@example.com")
    tokens = (pair["access_token"], pair["refresh_token"])

    def asked() -> list[dict[str, Any]]:
        return [client.introspect(token).json() for token in tokens]

    before = service.from_worker(there, asked)
    revoked = service.from_worker(here, lambda: client.revoke(tokens[0]).status_code)
    after = service.from_worker(there, lambda: (asked(), service.verify(tokens[0])))

    assert [found["active"] for found in before] == [True, True]
    assert revoked == 200
    assert after == ([{"active": False}] * 2, 401)


def test_a_deleted_client_is_refused_on_its_next_request_everywhere(made, command, service):
    """Also by a worker that has just confirmed it; others go on. Clients are listed without secrets."""
    token = service.log_in("ada@example.com")["access_token"]
    staying, leaving = (Authlib(service, client) for client in made)
    assert service.from_each_worker(lambda: leaving.introspect(token).status_code) == [200, 200]
    listed = printed(command(("list",))[0])["clients"]

    assert command(("delete", made[1]["client_id"]))[0].returncode == 0

    assert service.from_each_worker(lambda: leaving.introspect(token).status_code) == [401, 401]
    assert service.from_each_worker(lambda: staying.introspect(token).json()["active"]) == [True, True]
    assert {(client["client_id"], client["name"]) for client in listed} == {
        (made[0]["client_id"], "Gäteway: west"),
        (made[1]["client_id"], "gone"),
    }
    shown = {"client_id", "name", "scopes", "may", "created_at", "secrets"}
    assert all(client.keys() == shown for client in listed)
    secrets = [secret for client in listed for secret in client["secrets"]]
    assert [secret.keys() for secret in secrets] == [{"id", "created_at", "last_used_on"}] * 2
    assert {client["name"]: client["may"] for client in listed} == {
        "Gäteway: west": ["introspect-refresh", "revoke"],
        "gone": ["introspect", "revoke", "feed"],
    }


def test_a_client_that_cannot_be_is_refused(command):
    """Exit 1 with a reason, and nothing on stdout."""
    nobody, nameless = command(("delete", "gateway"), ("create", "a\nb"))

    for done, said in ((nobody, "clients list"), (nameless, "printable")):
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr
