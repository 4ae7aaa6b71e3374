"""Users brought along and taken along: what is imported, what it costs, who can log in with it afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

import psycopg
import pytest
from redis import Redis

from authsvc.domain.authentication import LoginAttempt
from authsvc.domain.credentials import Credentials
from authsvc.domain.values.identifiers import new_id
from authsvc.settings import Settings
from authsvc.wiring import build
from tests.processes import wait_until
from tests.rig import PASSWORD, Service, environment, migrate, run_command
from tests.servers import drop_database
from tests.timings import PATIENT
from tests.transfers import (
    BAD_LINES,
    SOME_HASH,
    Desk,
    arrival,
    asked,
    exported,
    fat_lines,
    has_answered,
    hashed,
    peak_mib,
    started,
    stored_hash,
    user,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

OWN_HASH = re.compile(r"bcrypt-hmac-sha384\$2b\$10\$.{53}")
#: What `htpasswd -nbB -C 5` of Apache 2.4 wrote for the password.
HTPASSWD = ("grüezi mitenand", "$2y$05$mxH3qDh1U1gVVDKfcJMTlOF3kfWQP4bTfLF/N8B9/M0sMBEZPa3O.")


#: Longer than bcrypt reads by itself.
DJANGO_LONG = "grüezi " * 12 + "mitenand"


@pytest.fixture(scope="module")
def elsewhere(postgres_server, service) -> Iterator[dict[str, str]]:
    """The settings of another service: the same pepper, another database, a Redis prefix of its own."""
    url = postgres_server.create_database()
    env = service.env | {"DATABASE_URL": url, "CACHE_KEY_PREFIX": "elsewhere"}
    migrate(env)
    yield env
    drop_database(postgres_server.url, url)


@pytest.fixture(scope="module")
def desk(service) -> Iterator[Desk]:
    """The importer over the database of the service."""
    with opened_desk(service.env) as made:
        yield made


@contextmanager
def opened_desk(env: Mapping[str, str]) -> Iterator[Desk]:
    """The importer over the database of *env*."""
    settings = Settings.from_env(env)
    with closing(build(settings)) as services:
        yield Desk(services, settings)


def status_of_login(service: Service, name: str, password: str) -> int:
    """How a login ends."""
    form = {"email": f"{name}@example.com", "password": password}
    return service.call("POST", "/v1/auth/login", json=form).status_code


def test_hashes_of_every_origin_let_their_owners_in_once(service, desk):
    """Verified as their origin made them, then replaced by one of authsvc, but by no wrong password."""
    passwords = {
        "htpasswd": HTPASSWD,
        "php": ("kurz", hashed(b"kurz", "$2y$", 6)),
        "laravel": ("kurz", hashed(b"kurz", "$2y$", 7)),
        "old": ("a", hashed(b"a", "$2a$")),
        "spring": ("kurz", "{bcrypt}" + hashed(b"kurz", "$2a$")),
        "django": ("kurz", "bcrypt$" + hashed(b"kurz")),
        "django-sha256": (
            DJANGO_LONG,
            "bcrypt_sha256$" + hashed(sha256(DJANGO_LONG.encode()).hexdigest().encode()),
        ),
    }
    taken = desk.take(*(user(name, foreign) for name, (_, foreign) in passwords.items()))
    assert {result["result"] for result in taken} == {"imported"}, taken

    for name, (password, foreign) in passwords.items():
        stored = foreign.removeprefix("{bcrypt}").removeprefix("bcrypt$")
        assert status_of_login(service, name, password + "!") == 401
        assert stored_hash(service, name) == stored
        assert status_of_login(service, name, password) == 200
        assert OWN_HASH.fullmatch(stored_hash(service, name))
        assert status_of_login(service, name, password) == 200


def test_a_byte_order_mark_is_no_part_of_a_line(desk):
    """It is dropped at the start of a file, and of a later line, where two files were joined."""
    mark = b"\xef\xbb\xbf"
    lines = [mark + json.dumps(user(f"marked-{number}")).encode() for number in range(2)]

    results = desk.take(lines[0], mark, lines[1])

    assert [(result["line"], result["result"]) for result in results] == [(1, "imported"), (3, "imported")]


def test_what_htpasswd_writes_today_can_be_imported(service, desk):
    """The tool itself, where it is installed; CI has it."""
    if shutil.which("htpasswd") is None and os.environ.get("CI") != "true":
        pytest.skip("no htpasswd here (Debian, Ubuntu: apt install apache2-utils)")
    command = ["htpasswd", "-nbB", "-C", "4", "fresh", PASSWORD]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    [result] = desk.take(user("fresh", written.removeprefix("fresh:")))

    assert result["result"] == "imported"
    assert status_of_login(service, "fresh", PASSWORD) == 200


def test_the_first_login_reads_as_much_of_a_password_as_its_origin_did(service, desk):
    """72 bytes: the tail is free once, and counts from then on.  NUL never ends a password."""
    long = "ü" * 36 + "tail"
    desk.take(user("long", hashed(long.encode())), user("nul", hashed(b"before")))

    assert status_of_login(service, "nul", "before\0after") == 401
    assert stored_hash(service, "nul").startswith("$2b$04$")
    assert status_of_login(service, "nul", "before") == 200
    assert status_of_login(service, "long", "ü" * 35 + "xx" + "tail") == 401
    assert status_of_login(service, "long", "ü" * 36 + "another tail") == 200
    assert status_of_login(service, "long", long) == 401
    assert status_of_login(service, "long", "ü" * 36 + "another tail") == 200


def test_first_logins_at_once_agree_on_one_hash(service, desk):
    """All of them succeed, and whichever rehash came first is the one that stays usable."""
    desk.take(user("race", hashed(PASSWORD.encode())))

    with ThreadPoolExecutor(4) as pool:
        logins = list(pool.map(lambda _: status_of_login(service, "race", PASSWORD), range(4)))

    assert logins == [200] * 4
    assert OWN_HASH.fullmatch(stored_hash(service, "race"))
    assert status_of_login(service, "race", PASSWORD) == 200


def test_bad_lines_are_named_and_passed_over(desk):
    """Each has its number and its reason, which repeats none of its values; those around it come in."""
    between = [user(f"between-{index}") for index in range(len(BAD_LINES))]

    results = desk.take(
        b"", *(line for pair in zip(BAD_LINES.values(), between, strict=True) for line in pair)
    )

    refused, imported = results[0::2], results[1::2]
    assert [result["line"] for result in results] == list(range(2, 2 + len(results)))
    assert [result["reason"] for result in refused] == list(BAD_LINES)
    assert {result["result"] for result in refused} == {"refused"}
    assert {result["result"] for result in imported} == {"imported"}
    assert {result["email"] for result in refused} == {None, "x@example.com"}
    assert desk.services.users.store.find("x@example.com") is None


def test_an_address_comes_in_once_however_it_is_written(desk):
    """The first line of several wins, in one run as over two; nobody's id is given away."""
    first = user("ONCE", name="first") | {"email": " Once@EXAMPLE.com "}
    desk.take(user("other"))
    other = desk.services.users.store.find("other@example.com")

    results = desk.take(first, user("once", name="second"), user("thief", id=other.id))
    again = desk.take(first)

    assert [result["result"] for result in results] == ["imported", "exists", "refused"]
    assert results[2]["reason"] == "the id is somebody else's"
    assert again == [{"line": 1, "email": "once@example.com", "result": "exists"}]
    assert desk.services.users.store.find("once@example.com").name == "first"


def test_two_imports_of_one_file_share_the_work(desk):
    """At once, in opposite orders: each user comes in once, and nobody waits in a ring."""
    start = Barrier(2)

    def take(batch: list[Credentials]) -> Counter[str]:
        start.wait()
        with desk.transfers() as transfers:
            return Counter(transfers.add(batch, brought_ids=()).value)

    for attempt in range(3):
        batch = [arrival(f"shared-{attempt}-{number}") for number in range(500)]
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(take, (batch, batch[::-1])))
        assert both[0] + both[1] == {"imported": 500, "exists": 500}


def test_who_is_imported_is_seen_at_once(desk, service, tmp_path):
    """From stdin; lists that the running service has cached are out of date, the trail says who came."""
    desk.take(user("root", hashed(PASSWORD.encode()), roles=["admin"]))
    token = service.log_in("root@example.com")["access_token"]

    def addresses() -> set[str]:
        pages = service.call("GET", "/v1/users?role=admin", token=token).json()["items"]
        return {one["email"] for one in pages}

    def is_cached() -> bool:
        addresses()
        with Redis.from_url(service.env["REDIS_URL"]) as redis:
            return bool(redis.keys(f"{service.env['CACHE_KEY_PREFIX']}:v1:users:list:*"))

    wait_until(is_cached, what="a cached list")
    before = addresses()
    line = json.dumps(user("seen", roles=["admin"]))
    done = run_command("users", "import", "-", env=service.env, folder=tmp_path, stdin=line, entry=PATIENT)

    assert (done.returncode, done.stderr) == (0, "1 imported, 0 exists, 0 refused\n"), done.stderr
    assert [addresses() - before for _ in range(4)] == [{"seen@example.com"}] * 4
    detail = asked(service.env, "SELECT detail FROM audit_events WHERE action = 'users.imported'")
    assert detail == "imported=1 exists=0 refused=0"


def test_memory_does_not_grow_with_the_file(elsewhere, tmp_path):
    """Of an import that is fed through a pipe, and of an export that is read slowly; progress is told."""
    results = tmp_path / "results"
    with results.open("wb") as out, (tmp_path / "progress").open("wb") as err:
        importing = started(elsewhere, tmp_path, "import", "-", stdin=subprocess.PIPE, stdout=out, stderr=err)
        peaks = fed(importing, results, [fat_lines(600, "a"), fat_lines(1_800, "b"), b"{}\n" * 2_600])

    assert max(peaks) - peaks[0] < 6
    progress = (tmp_path / "progress").read_text().splitlines()
    assert progress == ["... 2400 imported, 0 exists, 2600 refused", "2400 imported, 0 exists, 2600 refused"]

    count = asked(elsewhere, "SELECT count(*) FROM users")
    exporting = started(elsewhere, tmp_path, "export", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert exporting.stdout
    with exporting, exporting.stdout as lines:
        shown = {lines.readline() for _ in range(600)}
        early = peak_mib(exporting.pid)
        shown |= {lines.readline() for _ in range(count - 800)}
        grown = peak_mib(exporting.pid) - early
        shown |= set(lines)

    assert grown < 6
    assert (exporting.returncode, len(shown)) == (0, count)
    assert not any(b"password_hash" in line for line in shown)


def fed(importing: subprocess.Popen[bytes], results: Path, parts: list[bytes]) -> list[float]:
    """Peaks of memory (MiB) after each of *parts* has been fed and answered."""
    peaks, total = [], 0
    assert importing.stdin
    with importing, importing.stdin as lines:
        for part in parts:
            lines.write(part)
            lines.flush()
            total += part.count(b"\n")
            wait_until(partial(has_answered, importing, results, total), what=f"{total} lines")
            peaks.append(peak_mib(importing.pid))
    return peaks


def test_an_import_that_is_killed_can_be_repeated(elsewhere, tmp_path):
    """What it reported is there, what it did not report may be; the rerun completes it, to the last user."""
    file, results = tmp_path / "users.jsonl", tmp_path / "results"
    names = [f"killed-{number}" for number in range(2_000)]
    lines = [json.dumps(user(name)) + "\n" for name in names]
    file.write_text("".join(lines))
    with results.open("wb") as out:
        streams = {"stdin": subprocess.PIPE, "stdout": out, "stderr": subprocess.DEVNULL}
        importing = started(elsewhere, tmp_path, "import", "-", **streams)
        assert importing.stdin
        # The last ones are kept back: it cannot be done before it is killed.
        importing.stdin.write("".join(lines[:1_500]).encode())
        importing.stdin.flush()
        wait_until(partial(has_answered, importing, results, 400), what="400 lines")
        importing.kill()
        importing.communicate()
    count = "SELECT count(*) FROM users WHERE email LIKE 'killed-%%'"
    reported, there = results.read_bytes().count(b"\n"), asked(elsewhere, count)

    again = run_command("users", "import", str(file), env=elsewhere, folder=tmp_path, entry=PATIENT)

    assert again.returncode == 0, again.stderr
    assert 400 <= reported <= there < 2_000
    counts = Counter(json.loads(line)["result"] for line in again.stdout.splitlines())
    assert counts == {"exists": there, "imported": 2_000 - there}
    assert asked(elsewhere, count) == 2_000


def test_users_move_to_another_database_with_all_that_is_theirs(desk, service, elsewhere, tmp_path):
    """Under the same pepper: ids, roles, status, preferences, times, and their passwords."""
    moment = "2020-02-02T02:02:02.123456Z"
    more = {"name": "Zoë", "phone": "+41 1", "device_id": "d", "preferences": {"ü": [1, None, {"x": 1.5}]}}
    times = {"created_at": moment, "updated_at": "2021-01-01T00:00:00Z", "last_login": moment}
    desk.take(user("zoe", roles=["admin"], **more, **times), user("gone", hashed(b"old"), status="disabled"))
    assert service.register("own@example.com").status_code == 201

    lines = exported(service.env, tmp_path, "--with-hashes")
    moving = [lines[f"{name}@example.com"] for name in ("zoe", "gone", "own")]
    file = tmp_path / "users.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in moving))
    done = run_command("users", "import", str(file), env=elsewhere, folder=tmp_path, entry=PATIENT)

    assert done.returncode == 0, done.stdout
    with opened_desk(elsewhere) as there:
        assert [there.line_of(line["email"]) for line in moving] == moving
        attempt = LoginAttempt(
            email="own@example.com", password=PASSWORD, device_id=None, ip="127.0.0.1", user_agent=None
        )
        assert there.services.authentication.log_in(attempt).access_token
    assert moving[0].items() >= {**more, **times, "roles": ["user", "admin"], "status": "active"}.items()
    assert moving[2].keys() - moving[1].keys() == {"pepper_id"}
    detail = asked(service.env, "SELECT detail FROM audit_events WHERE action = 'users.exported'")
    assert detail == f"exported={len(lines)} hashes=yes"


def test_own_hashes_are_refused_under_another_pepper(service, desk, elsewhere):
    """Nobody could log in with them, so they do not come in; foreign ones do."""
    assert service.register("peppered@example.com").status_code == 201
    line = desk.line_of("peppered@example.com")
    other = elsewhere | {"PASSWORD_PEPPER": "another-pepper-" + "0123456789abcdef" * 2}

    with opened_desk(other) as there:
        results = there.take(line, user("bare"), {**line, "pepper_id": there.pepper_id})

    # The last is somebody's own doing: the name of the pepper is there against mistakes.
    assert [result["result"] for result in results] == ["refused", "imported", "imported"]


def test_a_deleted_user_can_be_brought_back(service, desk):
    """With their id and at once, though Redis still has what ended their tokens; those stay ended."""
    assert service.register("back@example.com").status_code == 201
    old = service.log_in("back@example.com")["access_token"]
    line = desk.line_of("back@example.com")
    deleted = service.call("DELETE", "/v1/me", token=old, json={"password": PASSWORD})
    assert deleted.status_code == 204

    [result] = desk.take(line)

    assert result["result"] == "imported"
    new = service.log_in("back@example.com")["access_token"]
    assert service.verify_everywhere(new, times=2) == {200: 4}
    assert service.verify_everywhere(old, times=2) == {401: 4}
    assert service.call("GET", "/v1/me", token=new).json()["id"] == line["id"]


def test_hashes_in_use_are_counted_by_scheme_and_cost(postgres_server, redis_server, service, tmp_path):
    """Users with a foreign one have not logged in since they were imported; nothing of a hash is shown."""
    env = service.env | {"DATABASE_URL": postgres_server.create_database(), "CACHE_KEY_PREFIX": "counted"}
    migrate(env)
    with opened_desk(env) as counted:
        foreign = [
            user(f"f{n}", SOME_HASH.replace("$04$", f"${cost}$")) for n, cost in enumerate(("05", 12, 12))
        ]
        own = {"password_hash": "bcrypt-hmac-sha384$2b$10$" + "." * 53, "pepper_id": counted.pepper_id}
        counted.take(
            *foreign,
            user("django", "bcrypt_sha256$" + SOME_HASH),
            user("own") | own,
            user("weak") | own | {"password_hash": "bcrypt-hmac-sha384$2b$04$" + "." * 53},
        )
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        connection.execute("UPDATE users SET password_hash = 'secret-word' WHERE email = 'f0@example.com'")

    done = run_command("users", "hashes", env=env, folder=tmp_path, entry=PATIENT)

    assert json.loads(done.stdout) == {
        "users": 6,
        "not_logged_in_since_import": 3,
        "to_rehash": 5,
        "hashes": [
            {"scheme": "bcrypt 2b", "cost": 12, "users": 2},
            {"scheme": "bcrypt-hmac-sha384", "cost": 10, "users": 1},
            {"scheme": "bcrypt-hmac-sha384", "cost": 4, "users": 1},
            {"scheme": "bcrypt_sha256 2b", "cost": 4, "users": 1},
            {"scheme": "malformed", "cost": None, "users": 1},
        ],
    }
    assert "...." not in done.stdout
    drop_database(postgres_server.url, env["DATABASE_URL"])


def test_the_embedded_database_takes_and_gives_users_too(redis_server, tmp_path):
    """SQLite, in development: the same verdicts, pages and kinds."""
    env = environment(f"sqlite:///{tmp_path}/users.sqlite", redis_server.url, tmp_path)
    env |= {"AUTHSVC_ENV": "development", "WEB_CONCURRENCY": "1", "CACHE_KEY_PREFIX": "embedded"}
    migrate(env)
    with opened_desk(env) as embedded, embedded.transfers() as transfers:
        lines = [user(f"u{number}") for number in range(600)]

        results = embedded.take(*lines, lines[0], user("thief", id=new_id()))

        pages = list(transfers.pages(with_hashes=True))
        assert Counter(result["result"] for result in results) == {"imported": 601, "exists": 1}
        assert [len(page) for page in pages] == [500, 101]
        assert transfers.kinds_of_hashes() == {"$2b$04$": 601}
