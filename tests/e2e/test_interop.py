"""Other people's code against the running service: JWT libraries, and a client made from its description."""

from __future__ import annotations

import importlib
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.e2e.rotation import add_key
from tests.processes import wait_until
from tests.rig import HOPELESS_S, PASSWORD, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from authsvc.domain.tokens.keys import Algorithm

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

EMAIL = "alice@example.com"
ALGORITHMS: tuple[Algorithm, ...] = ("ES256", "EdDSA", "RS256")
#: Older than what everybody has fetched.
OLD_S = 3600


@pytest.fixture(scope="module")
def service(make_service, tmp_path_factory) -> Service:
    """One service for all tests; its keys are those of :func:`tokens`."""
    folder = tmp_path_factory.mktemp("interop")
    (folder / "keys").mkdir()
    add_key(folder / "keys", "ES256", age_s=OLD_S)
    made: Service = make_service(folder)
    assert made.register(EMAIL).status_code == 201
    return made


@pytest.fixture(scope="module")
def tokens(service) -> dict[str, str]:
    """A token of each algorithm, by its name; all keys stay published."""
    found: dict[str, str] = {"ES256": service.log_in(EMAIL)["access_token"]}
    for number, algorithm in enumerate(ALGORITHMS[1:], 1):
        add_key(Path(service.env["JWT_KEYS_DIR"]), algorithm, age_s=OLD_S - 2 * number)
        wait_until(partial(is_signing, service, algorithm), what=f"{algorithm} in both workers")
        found[algorithm] = service.log_in(EMAIL)["access_token"]
    return found


def is_signing(service: Service, algorithm: Algorithm) -> bool:
    """True when each worker publishes a key of *algorithm*, which is the newest."""
    sets = service.from_each_worker(lambda: service.call("GET", "/.well-known/jwks.json").json()["keys"])
    return all(keys[0]["alg"] == algorithm for keys in sets)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pyjwt_verifies_a_token_by_the_address_of_the_keys(service, tokens, algorithm):
    """As its documentation has it; a token of another audience is refused."""
    token = tokens[algorithm]
    key = jwt.PyJWKClient(f"{service.url}/.well-known/jwks.json").get_signing_key_from_jwt(token)

    claims = jwt.decode(
        token,
        key,
        algorithms=[algorithm],
        audience=service.env["JWT_AUDIENCE"],
        issuer=service.env["JWT_ISSUER"],
        options={"require": ["exp", "iat", "nbf", "sub", "jti"]},
    )

    assert jwt.get_unverified_header(token)["alg"] == algorithm
    assert claims["roles"] == ["user"]
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(token, key, algorithms=[algorithm], audience="others")


# RFC 9864 prefers the name Ed25519, which few libraries know yet.
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated via RFC 9864:joserfc.errors.SecurityWarning")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_joserfc_verifies_a_token_by_the_whole_key_set(service, tokens, algorithm):
    """The key set as published, the key by its ``kid``; a token of another issuer is refused."""
    keys = KeySet.import_key_set(service.call("GET", "/.well-known/jwks.json").json())

    token = joserfc_jwt.decode(tokens[algorithm], keys, algorithms=[algorithm])

    wanted: dict[str, Any] = {
        "iss": {"essential": True, "value": service.env["JWT_ISSUER"]},
        "aud": {"essential": True, "value": service.env["JWT_AUDIENCE"]},
        "exp": {"essential": True},
    }
    joserfc_jwt.JWTClaimsRegistry(**wanted).validate(token.claims)
    assert (token.header["alg"], token.header["typ"]) == (algorithm, "at+jwt")
    with pytest.raises(Exception, match="iss"):
        joserfc_jwt.JWTClaimsRegistry(**wanted | {"iss": {"value": "others"}}).validate(token.claims)


def test_the_description_is_valid_as_it_is_served(service):
    """By the validator of the OpenAPI specification's own schema."""
    served = service.call("GET", "/openapi.json")

    assert served.json()["openapi"].startswith("3.1")
    assert list(OpenAPIV31SpecValidator(served.json()).iter_errors()) == []


@pytest.fixture
def generated(service, tmp_path, monkeypatch) -> Iterator[str]:
    """Make a client from the served description, without a warning, and make it importable by this name."""
    name = "authsvc_generated"
    (tmp_path / "openapi.json").write_text(service.call("GET", "/openapi.json").text)
    (tmp_path / "config.yaml").write_text("post_hooks: []\n")
    make = (
        *("generate", "--path", "openapi.json", "--meta", "none", "--output-path", name),
        *("--config", "config.yaml", "--fail-on-warning"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", *make],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_generated_client_registers_logs_in_and_reads_its_account(service, generated):
    """Nothing but the description was known to it; what is wrong comes back typed, too."""

    def part(path: str) -> ModuleType:
        return importlib.import_module(f"{generated}.{path}")

    models, connect = part("models"), part("client")
    account = {"email": "generated@example.com", "password": PASSWORD}
    patient = httpx.Timeout(HOPELESS_S)

    with connect.Client(base_url=service.url, timeout=patient) as client:
        registered = part("api.auth.post_v1_auth_register").sync(
            client=client, body=models.RegisterBody(**account, name="Généré")
        )
        pair = part("api.auth.post_v1_auth_login").sync(client=client, body=models.LoginBody(**account))
        refused = part("api.auth.post_v1_auth_login").sync_detailed(
            client=client, body=models.LoginBody(email=account["email"], password="wrong")
        )
    with connect.AuthenticatedClient(
        base_url=service.url, token=pair.access_token, timeout=patient
    ) as client:
        me = part("api.me.get_v1_me").sync(client=client)

    assert (registered.email, registered.name) == (account["email"], "Généré")
    assert (refused.status_code, refused.parsed.code) == (401, "invalid_credentials")
    assert isinstance(me, models.UserView)
    assert (me.id, me.roles, me.created_at) == (registered.id, ["user"], registered.created_at)
