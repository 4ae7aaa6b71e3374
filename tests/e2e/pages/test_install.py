"""docs/install.md, word for word: its commands, the files that it copies, and the paths that it publishes."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
import requests
import yaml
from flask import Flask

from authsvc.api.frame.docs import VERIFY_PATH
from authsvc.api.frame.errors import DETAILS
from authsvc.app import BLUEPRINTS
from tests import ROOT
from tests.e2e.pages.reader import RECORDER, Reader, commands
from tests.processes import HOST, free_port
from tests.rig import HOPELESS_S, PASSWORD, Service
from tests.servers import PostgresServer, RedisServer
from tests.servers.binaries import postgres_binaries, tool
from tests.servers.certificates import self_signed
from tests.servers.nginx import Nginx

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = "docs/install.md"
EXAMPLES = ROOT / "docs" / "examples"
#: Where the page puts what it installs, and the folders that are there before.
PLACES = ("/opt/authsvc", "/etc/authsvc", "/usr/local/bin", "/etc/systemd", "/etc/nginx")
FOLDERS = (
    "home",
    "checkout/docs",
    "opt/authsvc/bin",
    "usr/local/bin",
    "etc/systemd/system",
    "etc/nginx/conf.d",
)
#: ``runuser -u authsvc -- COMMAND``: the test run is one user.
AS_ONESELF = '#!/bin/sh\ntest "$1 $2 $3" = "-u authsvc --" && shift 3 && exec "$@"\n'
#: ``redis-cli -h HOST COMMAND``, to the server of the test; it has no file to write its configuration to.
REDIS_CLI = """#!{python}
import sys
from redis import Redis
if sys.argv[3:] != ["CONFIG", "REWRITE"]:
    Redis.from_url("{url}").execute_command(*sys.argv[3:])
"""


@pytest.fixture(scope="module")
def stores() -> Iterator[tuple[PostgresServer, RedisServer]]:
    """Servers of this file alone: the page makes a role and a user."""
    with PostgresServer() as postgres, RedisServer("--maxmemory-policy", "noeviction") as redis:
        yield postgres, redis


@pytest.fixture(scope="module")
def installed(stores, tmp_path_factory) -> Iterator[tuple[Reader, Service]]:
    """A machine on which steps 1 to 8 were pasted, below a folder in place of its root; the service runs."""
    postgres, redis = stores
    root = tmp_path_factory.mktemp("machine")
    reader = _reader(root, redis)
    placed = _Placed(root, postgres, redis)
    shutil.copytree(
        EXAMPLES, reader.folder / "docs" / "examples", ignore=shutil.ignore_patterns("*.pyc", "__*")
    )
    for file in (reader.folder / "docs" / "examples").iterdir():
        file.write_text(placed.here(file.read_text()))
    script = placed.here(commands(PAGE, "First start, as a plain process"))
    # What needs a network, and what was tried by hand: an environment of its own for the package.
    reader.paste(re.sub(r"^(python3 -m venv|\S+/pip|curl) .*\n", "", script, flags=re.MULTILINE))
    lines = (root / "etc/authsvc/environment").read_text().splitlines()
    env = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    env["WEB_CONCURRENCY"] = "1"
    with Service(env, root) as service:
        yield reader, service


def _reader(root: Path, redis: RedisServer) -> Reader:
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    command = root / "opt/authsvc/bin/authsvc"
    command.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from authsvc.cli import main\nsys.exit(main())\n"
    )
    command.chmod(0o755)
    stubs = dict.fromkeys(("useradd", "chown", "systemctl", "nginx"), RECORDER)
    stubs |= {"runuser": AS_ONESELF, "redis-cli": REDIS_CLI.format(python=sys.executable, url=redis.url)}
    stubs["psql"] = f'#!/bin/sh\nexec {postgres_binaries() / "psql"} "$@"\n'
    stubs["pg_dump"] = f'#!/bin/sh\nexec {postgres_binaries() / "pg_dump"} "$@"\n'
    stubs["authsvc"] = f'#!/bin/sh\nexec {root}/usr/local/bin/authsvc "$@"\n'
    return Reader(root / "home", root / "checkout", stubs)


class _Placed:
    """Paths and addresses of the page, and what stands for them here."""

    def __init__(self, root: Path, postgres: PostgresServer, redis: RedisServer) -> None:
        self._places = {
            **{path: f"{root}{path}" for path in PLACES},
            "postgresql://postgres@db.example.com/postgres": postgres.url,
            "db.example.com:5432": f"{postgres.host}:{postgres.port}",
            "REDIS_HOST=redis.example.com": f"REDIS_HOST={redis.host}\nREDIS_PORT={redis.port}",
        }

    def here(self, text: str) -> str:
        """*text*, for the folder and the servers of the test."""
        for place, here in self._places.items():
            text = text.replace(place, here)
        return text


def test_the_steps_lead_to_a_service_that_is_ready(installed):
    """Keys, secrets, role, database, Redis user, settings, tables; nothing is open to others."""
    reader, service = installed
    etc = reader.home.parent / "etc" / "authsvc"

    assert requests.get(f"{service.url}/v1/health/ready", timeout=HOPELESS_S).json()["status"] == "ok"
    assert {path.stat().st_mode & 0o077 for path in (etc, *etc.rglob("*"))} == {0}
    assert "systemctl enable --now authsvc" in reader.asked
    assert (reader.home.parent / "etc/systemd/system/authsvc.service").exists()
    assert (reader.home.parent / "etc/nginx/conf.d/authsvc.conf").exists()


def test_the_first_admin_and_a_client_are_made_as_the_page_says(installed):
    """By the commands of the two sections, and the admin logs in with the password of the file."""
    reader, service = installed

    made = reader.paste(commands(PAGE, "The first admin"))
    client = reader.paste(commands(PAGE, "Clients"))

    assert '"roles": ["user", "admin"]' in made
    assert '"client_secret"' in client
    password = (reader.home / "root-password").read_text().rstrip("\n")
    token = service.log_in("root@example.com", password)["access_token"]
    assert service.call("GET", "/v1/users", token=token).status_code == 200
    assert (reader.home / "root-password").stat().st_mode & 0o077 == 0


def test_the_database_is_closed_to_other_roles(installed, stores):
    """The role owns it and can do no more; nobody else connects."""
    postgres, _ = stores
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE ROLE stranger LOGIN")
        attributes = admin.execute(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolcanlogin FROM pg_roles WHERE rolname = 'authsvc'"
        ).fetchone()
    url = f"postgresql://stranger@{postgres.host}:{postgres.port}/authsvc"

    assert attributes == (False, False, False, True)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(url)


def test_a_dump_is_readable_by_its_owner_alone(installed):
    """docs/backup.md holds the same umask as the other pages."""
    reader, _ = installed
    script = commands("docs/backup.md", "Back up PostgreSQL")

    reader.paste(script.replace("/etc/authsvc", f"{reader.home.parent}/etc/authsvc"))

    dump = reader.folder / "authsvc.dump"
    assert dump.read_bytes().startswith(b"PGDMP")
    assert dump.stat().st_mode & 0o777 == 0o600


def test_systemd_takes_the_unit(tmp_path):
    """``systemd-analyze verify`` has nothing to say against it, and it starts what the page installs."""
    unit = (EXAMPLES / "authsvc.service").read_text()
    command = "/opt/authsvc/bin/authsvc"
    assert f"ExecStart={command} serve\n" in unit
    assert f"exec {command} " in (EXAMPLES / "authsvc.sh").read_text()
    (tmp_path / "authsvc.service").write_text(unit.replace(command, sys.executable))

    told = subprocess.run(
        [tool("systemd-analyze", "systemd"), "verify", tmp_path / "authsvc.service"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (told.returncode, told.stdout + told.stderr) == (0, "")


@pytest.fixture(scope="module")
def published(installed) -> Iterator[tuple[str, str, Path]]:
    """nginx with the file of the page: the addresses of http and https, and the certificate."""
    _, service = installed
    tool("nginx", "nginx")
    with (
        TemporaryDirectory(prefix="authsvc-tls-") as folder,
        _served(f"{HOST}:{service.port}", Path(folder)) as addresses,
    ):
        yield addresses


@contextmanager
def _served(authsvc: str, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """The file of the page in nginx, in front of what is at *authsvc*."""
    certificate, key = self_signed(folder, "auth.example.com")
    # nginx may run as another user.
    folder.chmod(0o755)
    key.chmod(0o644)
    port = free_port()
    addresses = {
        "127.0.0.1:8080": authsvc,
        "listen 443 ssl;": f"listen {HOST}:{port} ssl;",
        "/etc/nginx/tls/auth.example.com.pem": str(certificate),
        "/etc/nginx/tls/auth.example.com.key": str(key),
    }
    with Nginx((EXAMPLES / "nginx-tls.conf").read_text(), addresses) as nginx:
        assert nginx.complaints() == ""
        yield nginx.url, f"https://{HOST}:{port}", certificate


class _Client(requests.Session):
    """A client that trusts the certificate, whatever name it carries."""

    def __init__(self, base: str, certificate: Path) -> None:
        super().__init__()
        self.base = base
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        self.mount("https://", _Trusting(context))

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request."""
        return self.request(method, self.base + path, timeout=HOPELESS_S, allow_redirects=False, **options)


class _Trusting(requests.adapters.HTTPAdapter):
    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, ssl_context=self._context, assert_hostname=False)


def rows() -> list[tuple[set[str], bool]]:
    """The paths of each row of the page's table, and whether they are published."""
    section = (ROOT / PAGE).read_text().split("## Which paths to publish\n")[1].split("\n## ")[0]
    cells = [line.split(" | ") for line in section.splitlines() if line.startswith("| `/")]
    return [(set(re.findall(r"`(/[^`]*)`", cell[0])), cell[1].startswith("yes")) for cell in cells]


def is_published(path: str) -> bool:
    """What the page says of *path*: the longest of its entries that it is, or lies below."""
    entries = {entry: yes for paths, yes in rows() for entry in paths}
    fitting = [
        one for one in entries if path == one or path.startswith(one.rstrip("/") + "/") or one == "/" == path
    ]
    assert fitting, f"{path} is in no row"
    return entries[max(fitting, key=len)]


def every_path() -> set[str]:
    """Each path of the public port."""
    app = Flask("routes", static_folder=None)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    paths = {re.sub(r"<\w+>", "6f1c1e0e", rule.rule) for rule in app.url_map.iter_rules()}
    return paths | {VERIFY_PATH, f"{VERIFY_PATH}/x", "/", "/docs", "/openapi.json", "/health"}


def test_the_proxy_publishes_what_the_page_says_and_nothing_else(published):
    """Asked over TLS for every path that there is; what is not published is nginx's own 404."""
    _, base, certificate = published
    with _Client(base, certificate) as client:
        reached = {path: "X-Request-Id" in client.ask("OPTIONS", path).headers for path in every_path()}

    assert reached == {path: is_published(path) for path in every_path()}


def test_the_proxy_refuses_in_the_form_of_authsvc(published):
    """Too large a body, a path that is not published: problem documents, as the service writes them."""
    _, base, certificate = published
    with _Client(base, certificate) as client:
        large = client.ask("POST", "/v1/auth/login", json={"password": "x" * 70_000})
        hidden = client.ask("GET", "/v1/users")

    for answer, code in ((large, "too_large"), (hidden, "not_found")):
        problem = answer.json()
        assert (problem["status"], problem["code"]) == (answer.status_code, code)
        assert (problem["type"], problem["detail"]) == (f"urn:authsvc:problem:{code}", DETAILS[code])


def test_the_proxy_says_when_to_come_back_while_authsvc_is_away():
    """503 and ``Retry-After``, for a restart of the service as for its end."""
    tool("nginx", "nginx")
    with (
        TemporaryDirectory(prefix="authsvc-tls-") as folder,
        _served(f"{HOST}:{free_port()}", Path(folder)) as (_, base, certificate),
        _Client(base, certificate) as client,
    ):
        away = client.ask("GET", "/v1/me")

    assert (away.status_code, away.headers["Retry-After"], away.json()["code"]) == (503, "2", "unavailable")
    assert away.json()["detail"] == DETAILS["unavailable"]


def test_compose_finds_the_secrets_that_the_page_makes(tmp_path):
    """Every file that compose.yaml mounts is there, in a folder that is closed to others."""
    (tmp_path / "home").mkdir()
    (tmp_path / "checkout").mkdir()
    reader = Reader(tmp_path / "home", tmp_path / "checkout", dict.fromkeys(("docker", "curl"), RECORDER))

    reader.paste(commands(PAGE, "With Compose"))

    secrets = yaml.safe_load((ROOT / "compose.yaml").read_text())["secrets"]
    assert {path.name for path in (reader.folder / "var" / "secrets").iterdir()} == set(secrets)
    assert all((reader.folder / secret["file"]).stat().st_size for secret in secrets.values())
    assert (reader.folder / "var" / "secrets").stat().st_mode & 0o077 == 0
    assert "docker compose up --detach" in reader.asked


def test_the_ingress_publishes_the_same():
    """k8s/examples/ingress.yaml has the rows that say yes."""
    [ingress, _] = yaml.safe_load_all((ROOT / "k8s" / "examples" / "ingress.yaml").read_text())
    rules = ingress["spec"]["rules"][0]["http"]["paths"]

    published = {entry for paths, yes in rows() if yes for entry in paths}

    assert {rule["path"].rstrip("/") for rule in rules} == {entry.rstrip("/") for entry in published}


def test_behind_the_proxy_a_client_logs_in_from_its_own_address(published):
    """Over TLS; http is sent to https, and an address that the client claims is dropped."""
    plain, base, certificate = published
    form = {"email": "tess@example.com", "password": PASSWORD}
    lies = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    with _Client(base, certificate) as client:
        assert client.ask("POST", "/v1/auth/register", json=form).status_code == 201
        pair = client.ask("POST", "/v1/auth/login", json=form, headers=lies).json()
        bearer = {"Authorization": f"Bearer {pair['access_token']}"}
        [session] = client.ask("GET", "/v1/me/sessions", headers=bearer).json()["items"]
        keys = client.ask("GET", "/.well-known/jwks.json")
    moved = requests.get(f"{plain}/v1/me?a=b", timeout=HOPELESS_S, allow_redirects=False)

    assert session["ip"] == HOST
    assert keys.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert (moved.status_code, moved.headers["Location"].partition("/v1")[2]) == (308, "/me?a=b")
