"""The services of docs/examples: as files that are copied, run by gunicorn as their first lines say."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests import ROOT
from tests.e2e.estate import create_root
from tests.e2e.verifier.verified import client_options
from tests.processes import HOST, ServerProcess, wait_until
from tests.rig import HOPELESS_S, Service
from tests.servers.binaries import tool
from tests.servers.nginx import Nginx, nginx_block

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

EXAMPLES = ROOT / "docs" / "examples"
#: Another address of this machine, which is no gateway's.
ELSEWHERE = "127.0.0.9"
SOMEBODY = "6f1c1e0e-53a1-4b7e-9f0e-2f3a5f0f8a10"


class Example(ServerProcess):
    """One file of the folder, copied and run with *variables*."""

    def __init__(self, name: str, variables: Mapping[str, str]) -> None:
        self.name = name
        super().__init__()
        self._variables = variables
        shutil.copy(EXAMPLES / f"{name}.py", self.folder)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def ask(self, path: str, token: str) -> requests.Response:
        """One request with a bearer token."""
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(self.url + path, headers=headers, timeout=HOPELESS_S)

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "gunicorn", "--bind", f"{self.host}:{self.port}", f"{self.name}:app"]

    def _popen_options(self) -> dict[str, Any]:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        return {"cwd": self.folder, "env": {**env, **self._variables}}

    def _is_ready(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def service(make_service) -> Service:
    """A service with a user and an admin."""
    made: Service = make_service(WEB_CONCURRENCY="1")
    create_root(made.env, made.log.parent)
    assert made.register("ada@example.com").status_code == 201
    return made


@pytest.fixture(scope="module")
def user(service) -> dict[str, Any]:
    """The tokens of a user, and the id."""
    pair: dict[str, Any] = service.log_in("ada@example.com")
    return pair | {"id": service.call("GET", "/v1/me", token=pair["access_token"]).json()["id"]}


@pytest.fixture(scope="module")
def admin(service) -> dict[str, Any]:
    """The tokens of an admin."""
    return dict(service.log_in("root@example.com"))


@pytest.fixture(scope="module")
def behind() -> Iterator[Example]:
    """The service that believes the headers of a gateway at the usual address of this machine."""
    with Example("behind_a_gateway", {"GATEWAYS": f"192.0.2.0/24,{HOST}"}) as running:
        yield running


@contextmanager
def nginx_before(example: Example, service: Service) -> Iterator[str]:
    """nginx as docs/gateways.md has it."""
    tool("nginx", "nginx")
    addresses = {"authsvc:8080": f"{HOST}:{service.port}", "orders:8080": f"{HOST}:{example.port}"}
    with Nginx(nginx_block(ROOT / "docs" / "gateways.md"), addresses) as nginx:
        yield nginx.url


def raw_get(example: Example, path: str, headers: dict[str, str], source: str = HOST) -> int:
    """The status of a request that comes from *source* to the service itself."""
    connection = HTTPConnection(example.host, example.port, timeout=HOPELESS_S, source_address=(source, 0))
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_behind_nginx_it_knows_who_is_asking(behind, service, user, admin):
    """The headers of the gateway are the caller; what a client claims about itself counts for nothing."""
    lies = {"X-Auth-User-Id": SOMEBODY, "X-Auth-Roles": "admin", "X_Auth_Roles": "admin"}
    with nginx_before(behind, service) as gateway:

        def ask(path: str, token: str | None) -> requests.Response:
            headers = lies | ({"Authorization": f"Bearer {token}"} if token else {})
            return requests.get(gateway + path, headers=headers, timeout=HOPELESS_S)

        assert ask("/orders/7", user["access_token"]).json() == {"order": "7", "of": user["id"]}
        assert ask("/orders/admin/7", admin["access_token"]).json()["order"] == "7"
        assert ask("/orders/admin/7", user["access_token"]).status_code == 403
        assert ask("/orders/7", None).status_code == 401
        assert ask("/about", None).json() == {"known": False}


def test_it_believes_nobody_but_the_gateway(behind):
    """From another address: 403, whatever the headers say."""
    claims = {"X-Auth-User-Id": SOMEBODY, "X-Auth-Roles": "user,admin"}

    assert raw_get(behind, "/orders/7", claims) == 200
    assert raw_get(behind, "/orders/7", claims, source=ELSEWHERE) == 403
    assert raw_get(behind, "/about", {}, source=ELSEWHERE) == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-Auth-Roles": "user,admin"}, 401),
        ({"X-Auth-User-Id": SOMEBODY}, 403),
        ({"X-Auth-User-Id": SOMEBODY, "X-Auth-Roles": "user"}, 403),
        ({"X-Auth-User-Id": SOMEBODY, "X-Auth-Roles": "user", "X_Auth_Roles": "admin"}, 403),
        ({"X_Auth_User_Id": SOMEBODY, "X-Auth-Roles": "admin"}, 401),
        ({"X-Auth-User-Id": f"{SOMEBODY},{SOMEBODY}", "X-Auth-Roles": "admin"}, 400),
        ({"X-Auth-User-Id": SOMEBODY, "X-Auth-Roles": "user,admin"}, 200),
    ],
)
def test_it_asks_for_the_role_itself(behind, headers, status):
    """Also where the gateway forgot to: missing, doubled and look-alike headers give nothing away."""
    assert raw_get(behind, "/orders/admin/7", headers) == status


def test_with_the_verifier_it_needs_no_gateway(service, user, admin, tmp_path):
    """By its environment alone, and a logout holds there, too."""
    made = client_options(service, tmp_path)
    secret = tmp_path / "secret"
    secret.write_text(made.pop("client_secret") + "\n")
    variables = {f"AUTHSVC_VERIFIER_{name.upper()}": str(value) for name, value in made.items()}
    variables["AUTHSVC_VERIFIER_CLIENT_SECRET_FILE"] = str(secret)
    pair = service.log_in("ada@example.com")
    with Example("with_the_verifier", variables) as orders:
        assert orders.ask("/orders/7", user["access_token"]).json() == {"order": "7", "of": user["id"]}
        assert orders.ask("/orders/7", pair["access_token"]).status_code == 200
        assert orders.ask("/orders/admin/7", user["access_token"]).status_code == 403
        assert orders.ask("/orders/admin/7", admin["access_token"]).status_code == 200
        assert orders.ask("/orders/7", "x").status_code == 401
        assert requests.get(orders.url + "/about", timeout=HOPELESS_S).json() == {"known": False}

        ended = service.call("POST", "/v1/auth/logout", token=pair["access_token"])
        assert ended.status_code == 204
        wait_until(
            lambda: orders.ask("/orders/7", pair["access_token"]).status_code == 401,
            what="the logout to arrive",
        )


def test_the_warning_stands_beside_the_code():
    """In the file that is copied and on the page that names it."""
    page = (ROOT / "docs" / "gateways.md").read_text()

    assert "WARNING" in (EXAMPLES / "behind_a_gateway.py").read_text()
    assert re.search(
        r"behind_a_gateway\.py.*?\*\*Trust the headers only from the gateway\.\*\*", page, re.DOTALL
    )
