"""
Tokens of services: what issuing one costs beside a login without bcrypt, and a check beside a person's.

    python benchmarks/machines.py [--seconds 4] [--rounds 3]

Brings its own PostgreSQL and Redis, and serves with two workers.  A login hashes with bcrypt cost 4, which
takes about a millisecond: what is left is what both do, SQL, signature and Redis.  The kinds of requests
take turns; the figures are medians over the rounds.
"""

from __future__ import annotations

import base64
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.costs import cpu_s, processes
from benchmarks.load import closed_loop, request, rounds_and_seconds
from tests.rig import COMMAND, PASSWORD, Service, development, run_command
from tests.servers import PostgresServer, RedisServer

CONNECTIONS = 8
#: Each connection logs in somebody else: logins of one user wait for each other.
EMAILS = [f"user{number}@example.com" for number in range(CONNECTIONS)]
SETTINGS = {
    "WEB_CONCURRENCY": "2",
    "BCRYPT_COST": "4",
    "MACHINES": "on",
    "RATE_LIMIT_TOKEN_CLIENT": "off",
    "RATE_LIMIT_LOGIN_IP": "off",
    "RATE_LIMIT_LOGIN_ACCOUNT": "off",
    "SESSION_MAX_PER_USER": "1000000",
}
FORM = b"grant_type=client_credentials"


def main() -> None:
    """Measure, and print one line for each figure."""
    options = rounds_and_seconds(__doc__, rounds=3, seconds=4).parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer() as redis,
        PostgresServer(fsync=True) as postgres,
    ):
        env = development(postgres.create_database(), redis.url, Path(folder), **SETTINGS)
        run_command("db", "upgrade", env=env, folder=Path(folder)).check_returncode()
        made = command(env, folder, "clients", "create", "billing", "--scope", "orders:read")
        with Service(env, Path(folder)).start(ready_within_s=60) as service:
            for email in EMAILS:
                service.register(email)
            report(service, requests_of(service, made), options.seconds, options.rounds)


def command(env: dict[str, str], folder: str, *arguments: str) -> dict[str, Any]:
    """The object that a command prints."""
    done = run_command(*arguments, env=env, folder=Path(folder), entry=COMMAND)
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def requests_of(service: Service, made: dict[str, Any]) -> dict[str, list[bytes]]:
    """Every kind of request by its name, one for each connection or one for all."""
    pair = base64.b64encode(f"{made['client_id']}:{made['client_secret']}".encode())
    head = (
        b"POST /v1/oauth2/token HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic %b\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n" % (pair, len(FORM))
    )
    answer = service.call(
        "POST",
        "/v1/oauth2/token",
        data=FORM.decode(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        auth=(made["client_id"], made["client_secret"]),
    )
    person, machine = service.log_in(EMAILS[0])["access_token"], answer.json()["access_token"]
    logins = [json.dumps({"email": email, "password": PASSWORD}).encode() for email in EMAILS]
    return {
        "token": [head + FORM],
        "login": [request("POST", "/v1/auth/login", body=login) for login in logins],
        "verify": [request("GET", "/v1/auth/verify?role=user", token=person)],
        "verify-machine": [request("GET", "/v1/auth/verify-machine?scope=orders:read", token=machine)],
    }


def report(service: Service, requests: dict[str, list[bytes]], seconds: float, rounds: int) -> None:
    """Let all kinds take turns, and print how they compare."""
    per_s: dict[str, list[float]] = {name: [] for name in requests}
    cpu_ms: dict[str, list[float]] = {name: [] for name in requests}
    for turn in range(rounds):
        for name in requests if turn % 2 == 0 else reversed(requests):
            before = sum(map(cpu_s, processes(service)))
            result = closed_loop(service.port, requests[name], connections=CONNECTIONS, seconds=seconds)
            if result.statuses.keys() != {200}:
                raise AssertionError(f"{name}: {result.statuses}")
            used_s = sum(map(cpu_s, processes(service))) - before
            per_s[name].append(result.per_s)
            cpu_ms[name].append(used_s * 1000 / len(result.latencies_s))
    for name in requests:
        print(
            f"{name}: {statistics.median(per_s[name]):.0f} requests/s,"
            f" {statistics.median(cpu_ms[name]):.3f} ms of CPU"
        )
    for one, other in (("token", "login"), ("verify-machine", "verify")):
        for what, found in (("requests/s", per_s), ("CPU", cpu_ms)):
            ratios = [a / b for a, b in zip(found[one], found[other], strict=True)]
            low, high = min(ratios), max(ratios)
            print(f"{one} / {other}, {what}: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
