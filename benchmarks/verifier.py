"""
How long a token is taken by a service that verifies by itself, after its logout was answered.

    python benchmarks/verifier.py [--rounds 1000] [--threads 4]

Brings its own PostgreSQL and Redis, serves in production mode with two workers, and runs a second service
that uses authsvc.verifier.  Each round is a login, a check, a logout, and checks every few ms until the
token is refused, and a few more.  Ends with status 1 if a token was taken after the promised lag, or taken
again after it was refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.e2e.verifier.verified import PROMISED_LAG_S, Round, Verified, client_options, play
from tests.rig import Service, environment, migrate
from tests.servers import PostgresServer, RedisServer

MAX_ROUNDS, MAX_THREADS = 10_000, 16


def main() -> int:
    """Play the rounds and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=4)
    args = parser.parse_args()
    if not (1 <= args.rounds <= MAX_ROUNDS and 1 <= args.threads <= MAX_THREADS):
        parser.error(f"at most {MAX_ROUNDS} rounds, {MAX_THREADS} threads")
    began_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as name,
        PostgresServer(fsync=True) as postgres,
        RedisServer() as redis,
    ):
        folder = Path(name)
        env = environment(postgres.create_database(), redis.url, folder)
        migrate(env)
        with Service(env, folder) as service, Verified(client_options(service, folder)) as verified:
            played = play(service, verified, rounds=args.rounds, threads=args.threads)
    return report(played, took_s=time.monotonic() - began_s)


def report(played: list[Round], *, took_s: float) -> int:
    """Print the figures; 1 if a promise was broken."""
    lags_ms = sorted(one.lag_s * 1000 for one in played)
    late = sum(one.late for one in played)
    slow = sum(one.lag_s > PROMISED_LAG_S for one in played)
    print(f"rounds {len(played)} in {took_s:.0f} s")
    print(f"accepted after the promised {PROMISED_LAG_S:g} s, or after a refusal: {late}")
    at = {"median": 0.5, "p99": 0.99, "max": 1.0}
    figures = {name: lags_ms[min(len(lags_ms) - 1, int(len(lags_ms) * part))] for name, part in at.items()}
    print("lag " + ", ".join(f"{name} {figure:.0f} ms" for name, figure in figures.items()))
    return 1 if late or slow else 0


if __name__ == "__main__":
    sys.exit(main())
