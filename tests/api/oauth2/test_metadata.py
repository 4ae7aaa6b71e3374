"""GET /.well-known/oauth-authorization-server (RFC 8414)."""

from __future__ import annotations

import pytest
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata, get_well_known_url

from tests.api.driver import Api, MakeApi, code_of, json_of
from tests.api.gateway import INTROSPECT, REVOKE, Gateway

METADATA = "/.well-known/oauth-authorization-server"
ISSUER = "https://auth.example.com"
#: Authlib wants a token endpoint and a response type of everybody; RFC 8414 of those who have grants.
NOT_OURS = {"token_endpoint", "response_types_supported"}


@pytest.fixture(scope="module")
def api(make_module_api: MakeApi) -> Api:
    """Start an application that clients know by an address with TLS."""
    return make_module_api(JWT_ISSUER=ISSUER)


def test_it_says_what_works_and_nothing_else(api):
    """No authorization, no token endpoint, no grants: left out, these would mean two that there are not."""
    found = json_of(api.call("GET", METADATA))

    assert found == {
        "issuer": ISSUER,
        "jwks_uri": f"{ISSUER}/.well-known/jwks.json",
        "introspection_endpoint": f"{ISSUER}/v1/oauth2/introspect",
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
        "revocation_endpoint": f"{ISSUER}/v1/oauth2/revoke",
        "revocation_endpoint_auth_methods_supported": ["client_secret_basic"],
        "response_types_supported": [],
        "grant_types_supported": [],
    }


def test_another_library_takes_it(api):
    """Authlib's own validation, of each entry that RFC 8414 lets such a server have."""
    found = AuthorizationServerMetadata(json_of(api.call("GET", METADATA)))

    for name in set(found.REGISTRY_KEYS) - NOT_OURS:
        getattr(found, f"validate_{name}")()
    assert found.introspection_endpoint_auth_methods_supported == ["client_secret_basic"]
    assert NOT_OURS & found.keys() == {"response_types_supported"}


def test_every_endpoint_that_it_names_answers(api):
    """With what the metadata say that it takes; and the issuer is the one of the tokens."""
    found = json_of(api.call("GET", METADATA))
    gateway, person = Gateway.of(api), api.someone()

    def path(name: str) -> str:
        return str(found[name]).removeprefix(ISSUER)

    assert (path("introspection_endpoint"), path("revocation_endpoint")) == (INTROSPECT, REVOKE)
    assert gateway.introspect(person.access)["iss"] == person.claims()["iss"] == found["issuer"]
    assert gateway.revoke(person.access) == 200
    assert api.call("GET", path("jwks_uri")).json["keys"]


def test_anybody_may_keep_it_for_a_while(api):
    """Public and cacheable, JSON, for no user in particular."""
    answer = api.call("GET", METADATA)

    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "public, max-age=3600"
    assert api.call("POST", METADATA).status_code == 405


@pytest.mark.parametrize("issuer", [f"{ISSUER}/", f"{ISSUER}/tenant", f"{ISSUER}/a/b/"])
def test_an_issuer_with_a_path_is_found_where_clients_look(make_api, issuer):
    """Below the well-known path (RFC 8414 §3), and below no other; endpoints are below the issuer."""
    api = make_api(JWT_ISSUER=issuer)
    where = get_well_known_url(issuer, external=True).removeprefix(ISSUER)

    found = json_of(api.call("GET", where))

    assert where.startswith(METADATA)
    assert found == json_of(api.call("GET", where.rstrip("/"))) == json_of(api.call("GET", METADATA))
    assert found["issuer"] == issuer
    assert found["jwks_uri"] == issuer.rstrip("/") + "/.well-known/jwks.json"
    for other in ("x", "tenant/x", "a", "%00"):
        assert code_of(api.call("GET", f"{METADATA}/{other}")) == "not_found"


def test_no_host_header_makes_it_somebody_else(api):
    """The addresses are those of the settings."""
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}

    assert "evil" not in api.call("GET", METADATA, headers=headers).text
