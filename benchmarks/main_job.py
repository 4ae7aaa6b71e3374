"""
The main job, counted: nobody who logged out comes back in, nobody who stayed is thrown out.

    python benchmarks/main_job.py [--users 200] [--checks 20] [--cost 12]

Brings its own PostgreSQL and Redis and serves in production mode with two workers.  Everybody registers
and logs in over HTTP, half of them log out, then Redis is killed with SIGKILL and comes back empty at
once.  From then on each token is checked ``--checks`` times, over new connections that the kernel deals to
either worker.  Ends with status 1 if a single answer is not what it must be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from requests import Response

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.rig import PASSWORD, Service, environment, migrate
from tests.servers import PostgresServer, RedisServer

T = TypeVar("T")
R = TypeVar("R")

CLIENTS = 8
MAX_TRIES = 20
MAX_USERS = 5_000
LABEL_WIDTH = 46


@dataclass(frozen=True, slots=True)
class Job:
    """The service, and how often it is asked."""

    service: Service
    redis: RedisServer
    users: int
    checks: int

    def run(self) -> bool:
        """Do all of it, printing a line for each step; True if every answer was right."""
        emails = [f"user{number}@example.com" for number in range(self.users)]
        registered = told("registered", lambda: in_parallel(self._register, emails))
        tokens = told("logged in", lambda: in_parallel(self._log_in, emails))
        accepted = told("checked once", lambda: in_parallel(self.service.verify, tokens))
        gone, stay = tokens[: self.users // 2], tokens[self.users // 2 :]
        ended = told("logged out", lambda: in_parallel(self._log_out, gone))
        told("Redis killed with SIGKILL, back and empty", self._lose_redis)
        refused = told("checks of who logged out", lambda: self._check_often(gone))
        kept = told("checks of who stayed", lambda: self._check_often(stay))
        return all(
            (
                counted("registered", registered, 201),
                counted("accepted before", accepted, 200),
                counted("logged out", ended, 204),
                counted("refused after the loss, of who logged out", refused, 401),
                counted("accepted after the loss, of who stayed", kept, 200),
            )
        )

    def _register(self, email: str) -> int:
        return patiently(lambda: self.service.register(email)).status_code

    def _log_in(self, email: str) -> str:
        body = {"email": email, "password": PASSWORD}
        answer = patiently(lambda: self.service.call("POST", "/v1/auth/login", json=body))
        token: str = answer.json()["access_token"]
        return token

    def _log_out(self, token: str) -> int:
        return self.service.call("POST", "/v1/auth/logout", token=token).status_code

    def _lose_redis(self) -> list[None]:
        self.redis.kill()
        self.redis.start()
        return []

    def _check_often(self, tokens: list[str]) -> list[int]:
        return in_parallel(self.service.verify, tokens * self.checks)


def main() -> int:
    """Bring up what is needed, do the job, say how it went."""
    options = arguments()
    folder = Path(tempfile.mkdtemp(prefix="authsvc-main-job-"))
    with RedisServer() as redis, PostgresServer(fsync=True) as postgres:
        env = environment(postgres.create_database(), redis.url, folder, BCRYPT_COST=str(options.cost))
        migrate(env)
        with Service(env, folder) as service:
            print(f"{len(service.workers())} workers, bcrypt cost {options.cost}, {options.users} users")
            is_right = Job(service, redis, options.users, options.checks).run()
    print("every answer was right" if is_right else "AN ANSWER WAS WRONG")
    return 0 if is_right else 1


def arguments() -> argparse.Namespace:
    """Read the options; bounded, so that a typing error does not run for a day."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("--users", type=int, default=200, choices=range(2, MAX_USERS + 1), metavar="N")
    parser.add_argument("--checks", type=int, default=20, choices=range(1, 101), metavar="N")
    parser.add_argument("--cost", type=int, default=12, choices=range(10, 16), metavar="N")
    return parser.parse_args()


def in_parallel(ask: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What *ask* returns for each item, in order, from several clients at once."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(ask, items))


def patiently(ask: Callable[[], Response]) -> Response:
    """The answer to *ask*; where the hashing queue is full it is asked again, as ``Retry-After`` says."""
    for _ in range(MAX_TRIES):
        answer = ask()
        if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
            break
        time.sleep(int(answer.headers["Retry-After"]))
    return answer


def told(what: str, work: Callable[[], list[R]]) -> list[R]:
    """Do *work* and print how many answers it brought in how long."""
    began = time.monotonic()
    answers = work()
    count = f"{len(answers):6}" if answers else " " * 6
    print(f"{what:{LABEL_WIDTH}}{count}  {time.monotonic() - began:7.2f} s", flush=True)
    return answers


def counted(what: str, statuses: list[int], wanted: int) -> bool:
    """Print how many of *statuses* are *wanted*; True if all are."""
    by_status = Counter(statuses)
    others = {status: count for status, count in by_status.items() if status != wanted}
    print(
        f"{what:{LABEL_WIDTH}}{by_status[wanted]:6} of {len(statuses)}{f', but {others}' if others else ''}"
    )
    return not others


if __name__ == "__main__":
    sys.exit(main())
