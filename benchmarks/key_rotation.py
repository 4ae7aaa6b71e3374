"""
Keys are rotated under load, counted: no request fails, and a removed key ends its tokens within 5 seconds.

    python benchmarks/key_rotation.py [--seconds 60] [--per-second 200]

Brings its own PostgreSQL and Redis and serves in production mode with two workers.  Clients check their
tokens, refresh them every few seconds and log in now and then, while the signing key goes round ES256,
EdDSA and RS256; each old key is removed when its tokens are over.  New keys are dated back, so that they
sign after some seconds and not after 300.  At the end the key that signs is removed.  Ends with status 1
if a single request failed, or if a token lived on.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from authsvc.domain.tokens.keys import PUBLISHED_FIRST_S, Algorithm
from authsvc.store.key_folder import FolderTimings
from tests.e2e.rotation import Load, add_key
from tests.processes import wait_until
from tests.rig import Service, environment, migrate
from tests.servers import PostgresServer, RedisServer

CLIENTS = 16
TOKEN_LIFE_S = 3
SIGNS_SOON_S = PUBLISHED_FIRST_S - FolderTimings().reread_s - 1.5
KILLED_WITHIN_S = 5.0
PATIENCE_S = 60
REFUSED = 401
LABEL_WIDTH = 34
AROUND: tuple[Algorithm, ...] = ("EdDSA", "RS256", "ES256")


def main() -> int:
    """Bring up what is needed, rotate for a while, say how it went."""
    options = arguments()
    folder = Path(tempfile.mkdtemp(prefix="authsvc-key-rotation-"))
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    first = add_key(keys, "ES256", age_s=3600)
    with RedisServer() as redis, PostgresServer() as postgres:
        env = environment(
            postgres.create_database(), redis.url, folder, REDIS_AUTH_TOKEN_TTL=str(TOKEN_LIFE_S)
        )
        migrate(env)
        with Service(env, folder) as service:
            with Load(service, clients=CLIENTS, per_s=options.per_second, life_s=TOKEN_LIFE_S) as load:
                began = time.monotonic()
                for key in rotations(load, keys, first, until_s=began + options.seconds):
                    told(f"{key.name} signs", f"{time.monotonic() - began:.1f} s")
                took_s = time.monotonic() - began
            report(load, took_s)
            killed_s = kill(service, key)
    told("tokens of a removed key ended after", f"{killed_s:.2f} s, in both workers")
    return 0 if not load.failures and killed_s <= KILLED_WITHIN_S else 1


def rotations(load: Load, keys: Path, old: Path, *, until_s: float) -> Iterator[Path]:
    """Each new key, when every client has a token of it; the one before it goes when its tokens are over."""
    before: Algorithm = "ES256"
    for algorithm in itertools.cycle(AROUND):
        load.forget(algorithm)
        new = add_key(keys, algorithm, age_s=SIGNS_SOON_S)
        wait_until(partial(load.everybody_has, algorithm), timeout_s=PATIENCE_S)
        yield new
        wait_until(partial(load.is_over, before), timeout_s=PATIENCE_S)
        old.unlink()
        old, before = new, algorithm
        if time.monotonic() > until_s:
            return


def kill(service: Service, key: Path) -> float:
    """Remove *key*, which signs; seconds until neither worker accepts its tokens."""
    email = "victim@example.com"
    service.register(email)
    token = service.log_in(email)["access_token"]
    accepted = service.verify_everywhere(token, times=1)
    began = time.monotonic()
    key.unlink()
    wait_until(lambda: set(service.verify_everywhere(token, times=1)) == {REFUSED}, timeout_s=PATIENCE_S)
    took_s = time.monotonic() - began
    told("workers that accepted it before", str(dict(accepted)))
    return took_s


def report(load: Load, took_s: float) -> None:
    """What everything came to."""
    for what, count in sorted(load.outcomes.items()):
        told(what, f"{count:,}")
    requests = sum(count for what, count in load.outcomes.items() if " " in what)
    told("requests per second", f"{requests / took_s:.0f}")
    told("failures", str(dict(load.failures) or 0))


def told(what: str, figure: str) -> None:
    """One line."""
    print(f"{what:<{LABEL_WIDTH}} {figure}", flush=True)


def arguments() -> argparse.Namespace:
    """Read the options; bounded, so that a typing error does not run for a day."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, choices=range(5, 601), metavar="N")
    parser.add_argument("--per-second", type=int, default=200, choices=range(10, 1001), metavar="N")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
