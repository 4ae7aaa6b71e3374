"""The house rules that no linter knows."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pytest

from authsvc.domain import errors
from tests import ROOT
from tests.unit.sources import modules_below, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PACKAGE = ROOT / "authsvc"
#: hiredis is an extra of redis.
CACHE_IMPORTS = sys.stdlib_module_names | {"redis", "hiredis"}


class Reserved(NamedTuple):
    """Something that only some modules of authsvc may use; everybody else takes it as an argument."""

    pattern: str
    owners: frozenset[str]


RESERVED = {
    "redis connections": Reserved(
        r"(redis|fakeredis)(\.\w+)*\.(Fake|Strict|FakeStrict)?(Redis|RedisCluster|Sentinel)(\.from_url)?\(",
        frozenset({"cache.redis", "wiring"}),
    ),
    "the wall clock": Reserved(
        r"datetime\.datetime\.(now|utcnow|today)|datetime\.date\.today|time\.time(_ns)?",
        # A log line and a Date header are stamped where they are written; no rule hangs on either.  The
        # verifier is a library: its clock is an argument, too, with the system's for who gives none.
        frozenset({"wiring", "observability.logs", "server.exchange", "verifier.core"}),
    ),
    "the environment": Reserved(
        r"os\.(environb?|getenvb?|putenv|unsetenv)",
        # observability: the folder of the metrics' files has its name in a variable of prometheus_client's.
        # verifier: a library of its own, whose options may come from its user's environment.
        frozenset(
            {
                "settings",
                "cli",
                "server",
                "observability.metrics",
                "observability.figures",
                "verifier.options",
            }
        ),
    ),
}


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Map each name that an import of *tree* binds to the dotted name it stands for."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            bound |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return bound


def used_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of whatever a module uses; that of a call ends with a parenthesis."""
    bound = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute | ast.Call):
            called = isinstance(node, ast.Call)
            head, dot, rest = ast.unparse(node.func if isinstance(node, ast.Call) else node).partition(".")
            yield node.lineno, bound.get(head, head) + dot + rest + "(" * called


@cache
def names_in(path: Path) -> list[tuple[int, str]]:
    """Return what a module uses."""
    return list(used_names(tree_of(path)))


def lines_using(pattern: str, names: Iterable[tuple[int, str]]) -> list[int]:
    """Return the lines that use a name of *pattern*."""
    return sorted({line for line, name in names if re.fullmatch(pattern, name)})


def is_owner(module: Path, owners: frozenset[str]) -> bool:
    """True where *module* is one of *owners* or lies in a package that is."""
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    return any(".".join(parts[:depth]) in owners for depth in range(1, len(parts) + 1))


@pytest.mark.parametrize("thing", RESERVED)
def test_what_is_reserved_is_used_by_its_owners_alone(thing):
    """Connections, clock and environment arrive as arguments: else no test could turn them."""
    pattern, owners = RESERVED[thing]
    strangers = [path for path in modules_below("authsvc") if not is_owner(path, owners)]

    breaches = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in strangers
        for line in lines_using(pattern, names_in(path))
    ]

    assert breaches == []


@pytest.mark.parametrize(
    ("thing", "source"),
    [
        ("redis connections", "import redis\nclient = redis.Redis(host='h')"),
        ("redis connections", "import redis\nclient = redis.asyncio.cluster.RedisCluster()"),
        ("redis connections", "from redis.sentinel import Sentinel as S\nsentinel = S([])"),
        ("redis connections", "from fakeredis import FakeRedis\nclient = FakeRedis.from_url(url)"),
        ("the wall clock", "import datetime as dt\nnow = dt.datetime.now(dt.UTC)"),
        ("the wall clock", "from datetime import datetime\nclock = datetime.now"),
        ("the wall clock", "from time import time\nnow = time()"),
        ("the environment", "from os import environ\nport = environ['PORT']"),
        ("the environment", "import os\nport = os.environ.get('PORT')"),
        ("the environment", "import os\nport = os.getenv('PORT')"),
    ],
)
def test_a_breach_is_found_whatever_the_import_looks_like(thing, source):
    """An alias hides nothing."""
    assert lines_using(RESERVED[thing].pattern, used_names(ast.parse(source))) == [2]


@pytest.mark.parametrize(
    ("thing", "source"),
    [
        (
            "redis connections",
            "from redis import Redis\ndef ping(client: Redis) -> bool: return client.ping()",
        ),
        ("the wall clock", "from time import monotonic\nmonotonic()"),
        ("the wall clock", "def age(self): return self.time.time() - self.now()"),
        ("the environment", "environment = settings.environment"),
    ],
)
def test_a_harmless_name_is_no_breach(thing, source):
    """Naming a type, or a like-sounding attribute, is fine."""
    assert lines_using(RESERVED[thing].pattern, used_names(ast.parse(source))) == []


def test_the_cache_imports_the_standard_library_and_redis_alone():
    """Another service can take authsvc.cache as it is."""
    imported = {
        (path.name, name)
        for path in modules_below("authsvc/cache")
        for node in ast.walk(tree_of(path))
        for name in imported_modules(node)
    }

    strangers = {
        (file, name)
        for file, name in imported
        if name.partition(".")[0] not in CACHE_IMPORTS and not name.startswith("authsvc.cache")
    }

    assert strangers == set()


def imported_modules(node: ast.AST) -> list[str]:
    """Return the modules that *node* imports, if it is an import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    return []


def test_every_lua_script_says_what_it_does():
    """A script starts with a comment: keys, arguments, units."""
    scripts = sorted(PACKAGE.rglob("*.lua"))

    silent = [str(path.relative_to(ROOT)) for path in scripts if not path.read_text().startswith("--")]

    assert silent == []


def test_every_error_stands_in_the_tree():
    """The docstring of the errors' module names each error beside its code."""
    tree = inspect.getdoc(errors) or ""
    subclasses = [
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.AuthError) and error is not errors.AuthError
    ]

    missing = [e.__name__ for e in subclasses if not re.search(rf"─ {e.__name__}\s+{e.code}\b", tree)]

    assert subclasses
    assert missing == []


def test_every_test_states_a_behaviour():
    """A test without a docstring is a riddle to who breaks it."""
    riddles = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules_below("tests")
        if path.name.startswith("test_")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert riddles == []
