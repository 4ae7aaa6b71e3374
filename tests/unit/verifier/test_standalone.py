"""The verifier without the service: nothing but the standard library, PyJWT and cryptography."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import authsvc.verifier
from tests.unit.test_house import imported_modules

PACKAGE = Path(authsvc.verifier.__file__).parent
ROOT = PACKAGE.parents[1]
ALLOWED = sys.stdlib_module_names | {"jwt", "cryptography"}
#: What the service shares with the verifier: the reader of tokens, the body of an error, and what they need.
SHARED = {
    "authsvc",
    "authsvc.domain",
    "authsvc.domain.tokens",
    "authsvc.domain.tokens.claims",
    "authsvc.domain.values",
    "authsvc.domain.values.identifiers",
    "authsvc.domain.values.jsontext",
    "authsvc.domain.values.levels",
    "authsvc.domain.values.problems",
}
#: Run in a process of its own: imports of anything else fail, from whatever depth.
PROGRAM = """
import sys
from importlib.abc import MetaPathFinder

class Wall(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        is_ours = name in SHARED or name.startswith("authsvc.verifier")
        if is_ours or top in ALLOWED or top in sys.stdlib_module_names:
            return None
        raise ImportError(f"{name} is not there")

SHARED = {shared}
ALLOWED = {"jwt", "cryptography", "_cffi_backend", "cffi", "typing_extensions"}
sys.meta_path.insert(0, Wall())
for absent in "flask redis sqlalchemy marshmallow gunicorn prometheus_client bcrypt".split():
    try:
        __import__(absent)
    except ImportError:
        continue
    raise SystemExit(f"{absent} was not kept out")

from authsvc.verifier import KeysUnknown, Options, TokenInvalid, Verifier
from authsvc.verifier.asgi import Guarded

options = Options(url="http://127.0.0.1:9", client_id="c", client_secret="s", issuer="i", audience="a")
with Verifier(options) as verifier:
    Guarded(None, verifier)
    try:
        verifier.verify("a.b.c")
    except TokenInvalid:
        print("usable")
print(sorted(name for name in sys.modules if name.startswith("authsvc")))
"""


def test_it_works_without_the_dependencies_of_the_service():
    """Core and ASGI, in a process that can import nothing else; of authsvc only the shared reader."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{shared}", repr(SHARED))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    usable, modules = done.stdout.splitlines()
    assert usable == "usable"
    loaded = ast.literal_eval(modules)
    assert {name for name in loaded if not name.startswith("authsvc.verifier")} == SHARED
    assert "authsvc.verifier.flask" not in loaded


def source_of(module: str) -> Path:
    """The file of *module*, of the service."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_it_imports_nothing_else():
    """In no module but the one for Flask, not even in a function; nor do the modules that it shares."""
    strangers = {
        (path.name, name)
        for path in [*sorted(PACKAGE.rglob("*.py")), *map(source_of, sorted(SHARED))]
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported_modules(node)
        if name.partition(".")[0] not in ALLOWED and name not in SHARED
        if not name.startswith("authsvc.verifier")
    }

    assert strangers == {("flask.py", "flask"), ("transport.py", "_typeshed")}
