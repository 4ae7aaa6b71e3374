"""The command line: what it prints, how it ends, and that the service believes it."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import bcrypt
import psycopg
import pytest

from authsvc import __version__
from authsvc.cli import main
from authsvc.cli import service as service_commands
from tests.processes import HOST, free_port
from tests.rig import PASSWORD, Service, run_command
from tests.timings import PATIENT

if TYPE_CHECKING:
    import subprocess

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OWN_HASH = re.compile(r"bcrypt-hmac-sha384\$2b\$10\$.{53}")
USAGE = 2


@pytest.fixture
def command(service, tmp_path):
    """Run a command with the service's settings, in a folder of its own."""

    def run(*arguments: str, stdin: str = "", **overrides: str) -> subprocess.CompletedProcess[str]:
        env = service.env | overrides
        return run_command(*arguments, env=env, folder=tmp_path, stdin=stdin, entry=PATIENT)

    return run


def made(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object that a command printed which made something."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def failed(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """What a command said on stderr that failed, and printed nothing else."""
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr
    return done.stderr


def at_once(command, *lines: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
    """Several commands that have nothing to do with each other."""
    with ThreadPoolExecutor(len(lines)) as pool:
        return list(pool.map(lambda line: command(*line), lines))


def test_an_admin_is_created_and_logs_in(command, service):
    """One trailing newline of the password is the shell's; the new admin may do what admins do."""
    create = ("users", "create", "Root@Example.COM", "--role", "admin", "--password-stdin")

    root = made(command(*create, stdin=f"{PASSWORD}\n"))
    pair = service.log_in("root@example.com")
    users = service.call("GET", "/v1/users", token=pair["access_token"])

    assert root.keys() == {"id", "email", "roles"}
    assert UUID.fullmatch(root["id"])
    assert (root["email"], root["roles"]) == ("root@example.com", ["user", "admin"])
    assert [user["id"] for user in users.json()["items"]] == [root["id"]]

    assert "email_taken" in failed(command(*create, stdin=PASSWORD))


def test_a_refused_user_is_not_made(command):
    """The fields at fault are named, the password is not repeated."""
    address = failed(command("users", "create", "no address", "--password-stdin", stdin=PASSWORD))
    password = failed(command("users", "create", "ok@example.com", "--password-stdin", stdin="hunter2"))

    assert "email" in address
    assert "password" in password
    assert "hunter2" not in password


def test_roles_of_nobody_and_roles_that_are_none_are_refused(command):
    """By the address where nobody has it, by usage where the command is wrong."""
    setting = ("users", "set-role", "nobody@example.com")

    nobody, nothing, no_action = at_once(command, (*setting, "admin"), (*setting, "king"), ("users",))

    assert failed(nobody) == "authsvc: no user has the address nobody@example.com\n"
    assert "there is no role king" in failed(nothing)
    assert "usage:" in failed(no_action, USAGE)


def test_roles_of_the_operator_s_own_are_given_taken_along_and_named(command, tmp_path):
    """By create, set-role, export and import; who still has one that left the setting is named."""
    roles = {"ROLES": "editor,billing"}
    create = ("users", "create", "press@example.com", "--role", "billing", "--password-stdin")
    created = made(command(*create, stdin=PASSWORD, **roles))
    changed = made(command("users", "set-role", "press@example.com", "editor", "billing", **roles))
    lines = command("users", "export", "--with-hashes", **roles).stdout.splitlines()
    (line,) = [json.loads(line) for line in lines if "press@example.com" in line]
    line |= {"email": "press2@example.com", "id": "00000000-0000-4000-8000-0000000000aa"}
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps(line))

    refused = command("users", "import", str(file))
    imported = command("users", "import", str(file), **roles)
    checked = command("config", "check", "--connect", ROLES="billing")

    assert created["roles"] == ["user", "billing"]
    assert changed["roles"] == line["roles"] == ["user", "billing", "editor"]
    assert json.loads(refused.stdout)["reason"] == "a role that is not in ROLES"
    assert json.loads(imported.stdout)["result"] == "imported"
    assert "warning: ROLES does not name editor, which users have (2)" in checked.stderr


def imported_hash(password: str, prefix: str) -> str:
    """A hash as Apache's htpasswd (``$2y$``), an old PHP (``$2a$``) or bcrypt itself wrote it."""
    made = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    return prefix + made.removeprefix("$2b$")


def test_imported_users_log_in_and_are_rehashed(command, service, tmp_path):
    """Each line is reported, a rerun is harmless, the first login replaces the foreign hash by our own."""
    prefixes = {"y": "$2y$", "a": "$2a$", "b": "$2b$"}
    hashes = {name: imported_hash(f"{name} short", prefix) for name, prefix in prefixes.items()}
    profile = {"name": "Y", "phone": "+41 1", "roles": ["admin"], "created_at": "2020-02-02T02:02:02Z"}
    good = [{"email": f"{n.upper()}@Example.com", "password_hash": h} for n, h in hashes.items()]
    bad = [
        '{"email": "twice@example.com", "email": "twice@example.com"}',
        json.dumps({"email": "x@example.com", "password_hash": hashes["y"][:-1] + "!"}),
        json.dumps({"email": "no address", "password_hash": hashes["y"]}),
        json.dumps({"email": "x@example.com", "password_hash": hashes["y"], "is_god": True}),
    ]
    file = tmp_path / "users.jsonl"
    file.write_text("\n".join([json.dumps(good[0] | profile), *map(json.dumps, good[1:]), "", *bad]) + "\n")

    first = command("users", "import", str(file))
    again = command("users", "import", str(file))

    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert [(line["line"], line["email"], line["result"]) for line in lines] == [
        (1, "y@example.com", "imported"),
        (2, "a@example.com", "imported"),
        (3, "b@example.com", "imported"),
        (5, None, "refused"),
        (6, "x@example.com", "refused"),
        (7, None, "refused"),
        (8, "x@example.com", "refused"),
    ]
    assert [line["line"] for line in lines if line.get("reason")] == [5, 6, 7, 8]
    assert (first.returncode, again.returncode) == (1, 1)
    assert "3 imported" in first.stderr
    assert "4 refused" in first.stderr
    assert [json.loads(line)["result"] for line in again.stdout.splitlines()] == ["exists"] * 3 + [
        "refused"
    ] * 4
    assert not [h for h in hashes.values() if h in first.stdout + first.stderr]
    for name, foreign in hashes.items():
        check_first_login(service, f"{name}@example.com", f"{name} short", foreign)
    pair = service.log_in("y@example.com", "y short")
    me = service.call("GET", "/v1/me", token=pair["access_token"]).json()
    assert (me["name"], me["phone"], me["roles"]) == ("Y", "+41 1", ["user", "admin"])
    assert me["created_at"].startswith("2020-02-02T02:02:02")


def check_first_login(service: Service, email: str, password: str, foreign: str) -> None:
    """The foreign hash is kept until the right password comes, and our own takes its place."""
    wrong = service.call("POST", "/v1/auth/login", json={"email": email, "password": f"{password}!"})
    assert wrong.status_code == 401
    assert stored_hash(service, email) == foreign
    service.log_in(email, password)
    assert OWN_HASH.fullmatch(stored_hash(service, email))
    service.log_in(email, password)


def stored_hash(service: Service, email: str) -> str:
    """The truth."""
    with psycopg.connect(service.env["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT password_hash FROM users WHERE email = %s", [email]).fetchone()
    assert row is not None
    return str(row[0])


def test_an_import_without_refusals_ends_well(command, tmp_path):
    """Status 0, nothing but the results on stdout; a file that is not there is an error like any other."""
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps({"email": "ok@example.com", "password_hash": imported_hash("p", "$2b$")}))

    imported, nowhere = at_once(command, ("users", "import", str(file)), ("users", "import", "nowhere.jsonl"))

    assert (imported.returncode, imported.stdout.count("\n")) == (0, 1)
    assert "No such file" in failed(nowhere)


def test_a_client_gets_a_secret_that_is_kept_nowhere(command, service):
    """Shown once, stored as a digest."""
    client = made(command("clients", "create", "gateway"))

    assert client.keys() == {"client_id", "client_secret"}
    with psycopg.connect(service.env["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT id::text, name, secret_hash FROM clients").fetchone()
    assert row is not None
    assert row[:2] == (client["client_id"], "gateway")
    assert client["client_secret"] not in row[2]
    assert len(client["client_secret"]) >= 32


def test_keys_are_made_for_their_owner_alone_and_listed(command, tmp_path):
    """Named by the time and the algorithm; the first one signs at once, later ones are published first."""
    folder = tmp_path / "keys"
    folder.mkdir()
    generate = ("keys", "generate", "--dir", str(folder))

    first = made(command(*generate))
    later = [
        made(done) for done in at_once(command, (*generate, "--alg", "EdDSA"), (*generate, "--alg", "RS256"))
    ]
    listing, no_folder = at_once(
        command,
        ("keys", "list", "--dir", str(folder)),
        ("keys", "generate", "--dir", str(folder / first["file"])),
    )
    listed = made(listing)["keys"]

    assert [(key["alg"], key["state"]) for key in (first, *later)] == [
        ("ES256", "signing"),
        ("EdDSA", "published"),
        ("RS256", "published"),
    ]
    assert first.keys() == {"kid", "alg", "file", "created_at", "state"}
    assert re.fullmatch(r"\d{8}T\d{6}Z-es256\.pem", first["file"])
    assert sorted(map(str, listed)) == sorted(map(str, (first, *later)))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert first["file"] in failed(no_folder)


def test_the_settings_are_checked_without_a_connection(command, service, tmp_path):
    """Good settings for stores that are away are good; every problem of bad ones is named at once."""
    away = f"{HOST}:{free_port()}"
    stores = {"DATABASE_URL": f"postgresql://u:hunter2@{away}/db", "REDIS_URL": f"redis://{away}/0"}

    good = command("config", "check", **stores)
    wrong = failed(command("config", "check", BCRYPT_COST="99", TOKEN_SECRET="short", AUTHSVC_COLOUR="red"))
    connected = failed(command("config", "check", "--connect", **stores))

    assert (good.returncode, good.stdout) == (0, "")
    assert "RATE_LIMIT_LOGIN_IP is off" in good.stderr
    assert [name for name in ("BCRYPT_COST", "TOKEN_SECRET", "AUTHSVC_COLOUR") if name not in wrong] == []
    assert [name for name in ("DATABASE_URL", "REDIS_URL") if name not in connected] == []
    assert "hunter2" not in connected
    assert command("config", "check", "--connect").returncode == 0


def test_four_upgrades_at_once_are_one(command, database_url):
    """Whoever comes second waits and finds it done; until then, what needs the schema names the command."""
    early = failed(command("clients", "create", "early", DATABASE_URL=database_url))

    with ThreadPoolExecutor(4) as pool:
        upgrades = list(pool.map(lambda _: command("db", "upgrade", DATABASE_URL=database_url), range(4)))

    assert "authsvc db upgrade" in early
    assert [upgrade.returncode for upgrade in upgrades] == [0, 0, 0, 0], upgrades
    with psycopg.connect(database_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert ("users",) in tables
    own = {"DATABASE_URL": database_url, "CACHE_KEY_PREFIX": "four-upgrades"}
    assert command("config", "check", "--connect", **own).returncode == 0


def test_what_is_over_is_pruned_while_the_service_runs(command, service):
    """Old rows go, the counts are printed; who is logged in stays so, and who is revoked, too."""
    email = "pruned@example.com"
    service.register(email)
    old, ended, living = [service.log_in(email) for _ in range(3)]
    service.call("POST", "/v1/auth/logout", token=ended["access_token"])
    with psycopg.connect(service.env["DATABASE_URL"], autocommit=True) as connection:
        past = "now() - interval '25 hours'"
        connection.execute(f"UPDATE sessions SET idle_expires_at = {past} WHERE id = %s", [old["session_id"]])
        log = connection.execute(f"UPDATE revocations SET expires_at = {past} RETURNING seq").fetchall()

    printed = made(command("db", "prune"))

    kept = {"mails": 0, "tickets": 0, "spent": 0, "enrolments": 0}
    assert printed["deleted"] == {"sessions": 1, "revocations": len(log) - 1} | kept
    assert made(command("db", "prune"))["deleted"] == {"sessions": 0, "revocations": 0} | kept
    assert service.verify_everywhere(living["access_token"], times=2) == {200: 4}
    assert service.verify_everywhere(ended["access_token"], times=2) == {401: 4}
    for pair, code in ((living, None), (ended, "session_ended"), (old, "refresh_invalid")):
        answer = service.call("POST", "/v1/auth/refresh", json={"refresh_token": pair["refresh_token"]})
        assert answer.json().get("code") == code


def test_without_a_database_a_command_says_so_in_one_line(command):
    """No stack trace, no password of the database."""
    away = f"postgresql://u:hunter2@{HOST}:{free_port()}/db"

    said = failed(command("users", "set-role", "a@example.com", "admin", DATABASE_URL=away))

    assert "DATABASE_URL cannot be reached" in said
    assert "hunter2" not in said


def test_the_version_is_one_line(command):
    """As every program's."""
    assert command("--version").stdout == f"authsvc {__version__}\n"


def test_no_command_shows_a_password_with_a_percent_sign(command):
    """It breaks the URL, and libpq's own complaint would quote it."""
    url = f"postgresql://u:hunter2%zz@{HOST}:{free_port()}/db"

    lines = (("db", "upgrade"), ("config", "check"), ("users", "hashes"), ("serve",))
    done = at_once(command_with(command, DATABASE_URL=url), *lines)

    for said in map(failed, done):
        assert "DATABASE_URL has a % that begins no escape" in said
        assert "hunter2" not in said


def command_with(command, **overrides: str):
    """*command* with other settings."""
    return partial(command, **overrides)


def test_an_error_of_the_database_shows_no_row(command, database_url):
    """A trigger of the operator's own quotes what it refuses; neither address nor hash is printed."""
    assert command("db", "upgrade", DATABASE_URL=database_url).returncode == 0
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
            " AS $$BEGIN RAISE EXCEPTION 'bad row: %', NEW; END$$"
        )
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    create = ("users", "create", "secret@example.com", "--password-stdin")

    said = failed(command(*create, stdin=PASSWORD, DATABASE_URL=database_url))

    assert said.startswith("authsvc: unavailable: sql: RaiseException (")
    assert said.count("\n") == 1
    assert "secret@" not in said
    assert "bcrypt" not in said


def test_an_upgrade_in_trouble_is_one_line(command, database_url, postgres_server):
    """Missing rights, a table of somebody else: the cause, its SQLSTATE's meaning, and nothing is changed."""
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS bystander")
        admin.execute("CREATE ROLE bystander LOGIN")
    url = database_url.replace("postgres@", "bystander@")

    rights = failed(command("db", "upgrade", DATABASE_URL=url))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE users (id integer)")
    taken = failed(command("db", "upgrade", DATABASE_URL=database_url))

    assert rights.startswith("authsvc: unavailable: sql: InsufficientPrivilege (the role lacks a right")
    assert taken.startswith(
        "authsvc: unavailable: sql: DuplicateTable (a table of that name is there already"
    )
    assert rights.count("\n") == taken.count("\n") == 1
    with psycopg.connect(database_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("users",)]


def test_a_database_of_a_newer_release_says_what_to_install(command, database_url):
    """From every command in the same words: the revision, and the release that made it."""
    assert command("db", "upgrade", DATABASE_URL=database_url).returncode == 0
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE authsvc_version SET version_num = '9999', release = '9.8.7'")

    lines = (("serve",), ("db", "upgrade"), ("users", "hashes"))
    done = at_once(command_with(command, DATABASE_URL=database_url, PORT=str(free_port())), *lines)

    for said in map(failed, done):
        assert "is at revision 9999, which authsvc 9.8.7 made" in said
        assert "install authsvc 9.8.7 or later" in said
        assert "db upgrade" not in said


def test_what_nobody_thought_of_is_one_line_without_its_text(monkeypatch, capsys):
    """A traceback, or the words of a library, could quote a secret; the place is enough for a report."""

    def fail() -> str:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(service_commands, "settings_page", fail)

    assert main(["config", "docs"]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(
        r"authsvc: unexpected RuntimeError at test_cli\.py:\d+: this is a fault of authsvc, .*\n", printed.err
    )
