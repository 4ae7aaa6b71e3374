"""docs/verify-in-other-languages.md: each block that can run here takes good tokens, and no others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from authlib.common.errors import AuthlibBaseError
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests import ROOT
from tests.rig import Service
from tests.servers.binaries import BinaryMissing, tool

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = ROOT / "docs/verify-in-other-languages.md"
LIBRARIES = ROOT / ".venv/javascript/node_modules"
EMAIL = "alice@example.com"


def blocks(section: str, language: str) -> list[str]:
    """The code of one section of the page."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


PYTHON = dict(zip(("pyjwt", "authlib"), blocks("Python", "python"), strict=True))
JAVASCRIPT = dict(zip(("jose", "oauth4webapi"), blocks("JavaScript", "javascript"), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What every block is given."""

    url: str
    issuer: str
    audience: str
    token: str = field(repr=False)


@pytest.fixture(scope="module")
def service(make_service) -> Service:
    """A service that is reached by its issuer's address."""
    made: Service = make_service(at_issuer=True, WEB_CONCURRENCY="1")
    assert made.register(EMAIL).status_code == 201
    return made


@pytest.fixture(scope="module")
def good(service) -> Given:
    """Everything right."""
    token = service.log_in(EMAIL)["access_token"]
    return Given(url=service.url, issuer=service.url, audience=service.env["JWT_AUDIENCE"], token=token)


@pytest.fixture(scope="module")
def signed(service, good) -> Callable[..., str]:
    """Sign a token like the good one with the service's own key, its claims or type changed."""
    (file,) = Path(service.env["JWT_KEYS_DIR"]).iterdir()
    key: Any = load_pem_private_key(file.read_bytes(), password=None)
    header = jwt.get_unverified_header(good.token)
    claims = jwt.decode(good.token, options={"verify_signature": False})

    def sign(typ: str | None = "at+jwt", **changes: object) -> str:
        changed = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt.encode(changed, key, "ES256", headers={"kid": header["kid"], "typ": typ})

    return sign


@pytest.fixture(scope="module")
def bad(good, signed) -> dict[str, Given]:
    """Everything that a validator must refuse, by its name."""
    head, body, signature = good.token.split(".")
    past = int(time.time()) - 4000
    tokens = {
        "forged": f"{head}.{body}.{signature[:-8]}AAAAAAAA",
        "unsigned": f"{head}.{body}.",
        "expired": signed(iat=past, nbf=past, exp=past + 3600),
        "another type": signed(typ="JWT"),
        "without client_id": signed(client_id=None),
        "no token": "x",
    }
    return {name: replace(good, token=token) for name, token in tokens.items()} | {
        "another audience": replace(good, audience="others"),
        "another issuer": replace(good, token=signed(iss="http://127.0.0.1:1")),
    }


def run_python(code: str, given: Given) -> dict[str, Any]:
    """The claims that a block finds; raises what it raises."""
    names: dict[str, Any] = {
        "url": given.url,
        "issuer": given.issuer,
        "audience": given.audience,
        "token": given.token,
    }
    exec(code, names)
    return dict(names["claims"])


@pytest.mark.parametrize(
    ("library", "refusal"), [("pyjwt", jwt.PyJWTError), ("authlib", AuthlibBaseError)], ids=[*PYTHON]
)
def test_a_python_block_takes_good_tokens_alone(good, bad, library, refusal):
    """The page's own code, against the keys that the service publishes."""
    claims = run_python(PYTHON[library], good)

    assert claims == jwt.decode(good.token, options={"verify_signature": False})
    for name, given in bad.items():
        with pytest.raises(refusal):
            pytest.fail(f"{name}: {run_python(PYTHON[library], given)}")


@pytest.fixture(scope="module")
def node() -> str:
    """Return Node.js with the libraries beside it; without them the test is skipped, but never in CI."""
    found = str(tool("node", "nodejs"))
    if not LIBRARIES.is_dir():
        message = "no jose and oauth4webapi here: run `make javascript`, which needs npm"
        if os.environ.get("CI") == "true":
            raise BinaryMissing(message)
        pytest.skip(message)
    return found


#: Runs one block for each of the things given, and tells what came of each.
RUNNER = """
import { readFileSync } from 'node:fs'
import { verify } from './block.mjs'
for (const given of JSON.parse(readFileSync(0, 'utf8'))) {
  try { console.log(JSON.stringify({ claims: await verify(given) })) }
  catch (error) { console.log(JSON.stringify({ refused: error.name })) }
}
"""


@pytest.mark.parametrize("library", JAVASCRIPT)
def test_a_javascript_block_takes_good_tokens_alone(good, bad, node, tmp_path, library):
    """The page's own code in a function, its imports in front."""
    lines = JAVASCRIPT[library].splitlines()
    imports = [line for line in lines if line.startswith("import ")]
    body = [line for line in lines if not line.startswith("import ")]
    head = "export async function verify({ url, issuer, audience, token }) {"
    (tmp_path / "block.mjs").write_text("\n".join([*imports, head, *body, "return claims }"]))
    (tmp_path / "run.mjs").write_text(RUNNER)
    (tmp_path / "node_modules").symlink_to(LIBRARIES)
    asked = [good, *bad.values()]
    given = [{name: getattr(one, name) for name in Given.__slots__} for one in asked]

    done = subprocess.run(
        [node, "run.mjs"],
        cwd=tmp_path,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    first, *others = [json.loads(line) for line in done.stdout.splitlines()]
    assert first == {"claims": jwt.decode(good.token, options={"verify_signature": False})}
    assert {name: found.keys() for name, found in zip(bad, others, strict=True)} == {
        name: {"refused"} for name in bad
    }


def test_the_page_says_which_blocks_are_not_run():
    """Java, Go and .NET: nobody reads them as tried."""
    for section in ("Java", "Go", ".NET"):
        text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
        assert "Not run by the tests" in text
