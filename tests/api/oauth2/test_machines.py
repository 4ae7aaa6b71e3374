"""Tokens of services: client credentials, checks for machines, secrets that rotate, clients over the API."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from authsvc.domain.clients import Right
from tests.api.driver import Api, MakeApi, at_once, code_of, json_of
from tests.api.gateway import REVOKE, TOKEN, Gateway, basic, refusal
from tests.api.watching import Shelf

if TYPE_CHECKING:
    from collections.abc import Iterator


CLIENTS, LOGOUT = "/v1/clients", "/v1/auth/logout"
VERIFY = "/v1/auth/verify"
GRANT = {"grant_type": "client_credentials"}
READ, WRITE = "orders:read", "orders:write"
#: Claims that introspection shows; tokens have two more.
NAMED_AT_INTROSPECTION = ("sub", "client_id", "scope", "sid", "iss", "aud", "iat", "exp", "jti")
ON = {"MACHINES": "on", "RATE_LIMIT_TOKEN_CLIENT": "off"}


@dataclass(frozen=True, slots=True)
class Machine(Gateway):
    """A client that calls in its own name."""

    def token(self, **form: str) -> str:
        """A token of its own."""
        answer = self.post(TOKEN, {**GRANT, **form})
        assert answer.status_code == 200, answer.text
        return str(json_of(answer)["access_token"])

    def with_secret(self, secret: str) -> Machine:
        """The same client with another of its secrets."""
        return Machine(api=self.api, id=self.id, secret=secret)


def machine(api: Api, *scopes: str, may: tuple[Right, ...] | None = None) -> Machine:
    """Register a client with *scopes*."""
    made = api.services.client_registry.create("orders", scopes=scopes, may=may or (Right.TOKEN,))
    return Machine(api=api, id=made.client.id, secret=made.secret)


def verdict(api: Api, token: str, path: str = "-machine") -> tuple[int, str | None]:
    """Status and code of a check."""
    answer = api.call("GET", VERIFY + path, token=token)
    return answer.status_code, None if answer.status_code == 200 else code_of(answer)


def is_good(api: Api, token: str) -> bool:
    """Three ways to ask agree on *token*."""
    asked = Gateway.of(api, may=[Right.INTROSPECT]).introspect(token)["active"]
    checked = [verdict(api, token, path)[0] for path in ("-machine", "-any")]
    assert checked in ([200, 200], [401, 401])
    assert asked == (checked == [200, 200])
    return bool(asked)


def claims(token: str) -> dict[str, Any]:
    """The claims of *token*."""
    return jwt.decode(token, options={"verify_signature": False})


def flush(api: Api) -> None:
    """Take everything out of Redis that is of this application."""
    with closing(Shelf(api)) as shelf:
        shelf.drop("*")


@pytest.fixture(scope="module")
def m_api(make_module_api: MakeApi) -> Api:
    """Share one application where machines are on."""
    return make_module_api(**ON)


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def both_api(make_module_api: MakeApi, request) -> Api:
    """The same over each database."""
    return make_module_api(sqlite=request.param == "sqlite", **ON)


@pytest.fixture
def other(m_api) -> Iterator[Api]:
    """Another process over the same stores."""
    with closing(Api(m_api.env)) as opened:
        yield opened


def test_a_client_gets_a_token_for_all_its_scopes(both_api):
    """RFC 6749 §4.4: no refresh token, and exactly the claims that validators of RFC 9068 accept."""
    client = machine(both_api, WRITE, READ)

    answer = client.post(TOKEN, GRANT)

    body = json_of(answer)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    token = body.pop("access_token")
    assert body == {"token_type": "Bearer", "expires_in": 600, "scope": f"{READ} {WRITE}"}
    said = claims(token)
    assert said.keys() == {*NAMED_AT_INTROSPECTION, "nbf", "epoch"}
    assert (said["sub"], said["client_id"], said["scope"]) == (client.id, client.id, body["scope"])
    secret = both_api.services.client_registry.get(client.id).secrets[0]
    assert (said["sid"], said["exp"] - said["iat"]) == (secret.id, 600)
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"


def test_a_client_asks_for_less(m_api):
    """What it names is what it gets, in the order of its own list."""
    client = machine(m_api, "a", "b", "c")

    assert claims(client.token(scope="c a"))["scope"] == "a c"
    assert claims(client.token(scope="b"))["scope"] == "b"


def test_a_client_without_scopes_has_tokens_that_say_who_it_is(m_api):
    """RFC 6749 §3.3 has no text for no scopes: the member is left out."""
    client = machine(m_api)

    body = json_of(client.post(TOKEN, GRANT))

    assert body.keys() == {"access_token", "token_type", "expires_in"}
    assert claims(body["access_token"])["scope"] == ""
    assert "scope" not in Gateway.of(m_api).introspect(body["access_token"])
    assert is_good(m_api, body["access_token"])


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({}, "invalid_request"),
        ({"grant_type": ""}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token"}, "unsupported_grant_type"),
        ({"grant_type": "Client_Credentials"}, "unsupported_grant_type"),
        ({**GRANT, "scope": "root"}, "invalid_scope"),
        ({**GRANT, "scope": f"{READ} root"}, "invalid_scope"),
        ({**GRANT, "scope": " "}, "invalid_scope"),
        ({**GRANT, "scope": f"{READ} "}, "invalid_scope"),
        ({**GRANT, "scope": READ.upper()}, "invalid_scope"),
        ({**GRANT, "client_secret": "x"}, "invalid_request"),
        (b"\xff=\xff", "invalid_request"),
    ],
)
def test_errors_are_those_of_rfc_6749(m_api, form, code):
    """400, and the code that libraries know; nothing of the request is repeated."""
    client = machine(m_api, READ)
    options = {"content_type": "application/x-www-form-urlencoded"} if isinstance(form, bytes) else {}

    assert refusal(client.post(TOKEN, form, **options)) == (400, code)


def test_the_secret_comes_first(m_api):
    """401 before anything else is looked at; without the right 400."""
    client = machine(m_api, READ)

    assert refusal(client.with_secret("wrong").post(TOKEN, {})) == (401, "invalid_client")
    assert refusal(m_api.call("POST", TOKEN, data=GRANT)) == (401, "invalid_client")
    lacking = machine(m_api, READ, may=(Right.INTROSPECT,))
    assert refusal(lacking.post(TOKEN, GRANT)) == (400, "unauthorized_client")


def test_tokens_of_one_client_are_limited(make_api):
    """By client, whatever its address; another client is not touched."""
    api = make_api(MACHINES="on", RATE_LIMIT_TOKEN_CLIENT="2/minute")
    first, second = machine(api, READ), machine(api, READ)

    statuses = [first.post(TOKEN, GRANT).status_code for _ in range(3)]

    assert statuses == [200, 200, 429]
    refused = first.post(TOKEN, GRANT)
    assert refusal(refused) == (429, "temporarily_unavailable")
    assert int(refused.headers["Retry-After"]) > 0
    assert second.post(TOKEN, GRANT).status_code == 200


def test_a_check_names_the_machine(m_api):
    """In headers of its own; those of people are there and empty, so that no client's claim is passed on."""
    client = machine(m_api, READ, WRITE)
    token = client.token()

    for path in ("-machine", "-any", "-machine/orders/7", "-any/"):
        answer = m_api.call("GET", VERIFY + path, token=token)
        said = {name: value for name, value in answer.headers.items() if name.startswith("X-Auth-")}
        assert said == {
            "X-Auth-User-Id": "",
            "X-Auth-Session-Id": "",
            "X-Auth-Roles": "",
            "X-Auth-Client-Id": client.id,
            "X-Auth-Scopes": f"{READ},{WRITE}",
        }
    person = m_api.someone()
    answer = person.call("GET", f"{VERIFY}-any")
    assert (answer.headers["X-Auth-User-Id"], answer.headers["X-Auth-Client-Id"]) == (person.id, "")


@pytest.mark.parametrize(
    ("path", "of_machine", "of_user", "of_admin"),
    [
        ("", "forbidden", 200, 200),
        ("?role=user", "forbidden", 200, 200),
        (f"?scope={READ}", "forbidden", "insufficient_scope", "insufficient_scope"),
        ("-machine", 200, "forbidden", "forbidden"),
        (f"-machine?scope={READ}", 200, "forbidden", "forbidden"),
        (f"-machine?scope={READ}&scope={WRITE}", 200, "forbidden", "forbidden"),
        ("-machine?scope=root", "insufficient_scope", "forbidden", "forbidden"),
        (f"-machine?scope={READ}&scope=root", "insufficient_scope", "forbidden", "forbidden"),
        (f"-machine?scope={READ}+{WRITE}", "insufficient_scope", "forbidden", "forbidden"),
        ("-machine?scope=", "insufficient_scope", "forbidden", "forbidden"),
        ("-machine?scope=%ff", "insufficient_scope", "forbidden", "forbidden"),
        ("-machine?role=user", "forbidden", "forbidden", "forbidden"),
        (f"-machine?scope={READ}&role=user", "forbidden", "forbidden", "forbidden"),
        ("-machine?acr=aal2&max_age=5", 200, "forbidden", "forbidden"),
        ("-any", 200, 200, 200),
        ("-any?role=admin", "forbidden", "forbidden", 200),
        (f"-any?scope={READ}", 200, "insufficient_scope", "insufficient_scope"),
        (f"-any?scope={READ}&role=admin", 200, "forbidden", 200),
        ("-any?scope=root&role=admin", "insufficient_scope", "forbidden", 200),
        ("-any?acr=aal1", 200, "forbidden", "forbidden"),
        ("-any?acr=high", "forbidden", "forbidden", "forbidden"),
    ],
)
def test_who_may_pass(m_api, path, of_machine, of_user, of_admin):
    """People by roles, machines by scopes; a check that asks for one kind alone does not let in the other."""
    token = machine(m_api, READ, WRITE).token()
    person, admin = m_api.someone().access, m_api.an_admin().access

    expected = [as_pair(wanted) for wanted in (of_machine, of_user, of_admin)]
    assert [verdict(m_api, one, path) for one in (token, person, admin)] == expected


def as_pair(wanted: int | str) -> tuple[int, str | None]:
    """A status of 200, or the code of a 403."""
    return (wanted, None) if isinstance(wanted, int) else (403, wanted)


def test_a_missing_scope_is_said_as_rfc_6750_has_it(m_api):
    """The challenge names the error, and not what the token holds."""
    answer = m_api.call("GET", f"{VERIFY}-machine?scope=root", token=machine(m_api, READ).token())

    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="authsvc", error="insufficient_scope"'


def test_a_machine_logs_nobody_out(m_api):
    """403, and its token stays good."""
    token = machine(m_api, READ).token()

    answer = m_api.call("POST", LOGOUT, token=token)

    assert (answer.status_code, code_of(answer)) == (403, "forbidden")
    assert is_good(m_api, token)


def test_introspection_names_client_and_scope(m_api):
    """RFC 7662 §2.2; no role."""
    client = machine(m_api, READ, WRITE)
    token = client.token()

    found = Gateway.of(m_api).introspect(token)

    said = claims(token)
    expected = {name: said[name] for name in NAMED_AT_INTROSPECTION}
    assert found == {"active": True, "token_type": "access_token", **expected}


def test_a_dropped_secret_takes_its_tokens_along_and_no_others(both_api):
    """On the very next request, in another process too, and right after Redis was emptied."""
    client = machine(both_api, READ)
    registry = both_api.services.client_registry
    first = registry.get(client.id).secrets[0]
    second = registry.add_secret(client.id)
    old, new = client.token(), client.with_secret(second.secret).token()
    assert claims(new)["sid"] == second.id

    with closing(Api(both_api.env)) as replica:
        assert is_good(replica, old)
        assert registry.drop_secret(client.id, first.id).is_complete

        for api in (both_api, replica):
            assert [(is_good(api, old), is_good(api, new)) for _ in range(20)] == [(False, True)] * 20
        flush(both_api)
        for api in (both_api, replica):
            assert [(is_good(api, old), is_good(api, new)) for _ in range(20)] == [(False, True)] * 20
        both_api.prove_redis()
        assert (is_good(both_api, old), is_good(both_api, new)) == (False, True)
    assert refusal(client.post(TOKEN, GRANT)) == (401, "invalid_client")


def test_a_deleted_client_takes_all_its_tokens_along(both_api):
    """Another client's stay."""
    gone, stays = machine(both_api, READ), machine(both_api, READ)
    tokens = [gone.token(), stays.token()]

    both_api.services.client_registry.delete(gone.id)

    assert [is_good(both_api, token) for token in tokens] == [False, True]
    flush(both_api)
    assert [is_good(both_api, token) for token in tokens] == [False, True]


def test_scopes_that_are_cut_end_the_tokens_of_before(both_api):
    """All of the client's, also those that never named the scope; what is issued then is good."""
    admin = both_api.an_admin()
    client = machine(both_api, READ, WRITE)
    tokens = [client.token(), client.token(scope=READ)]

    more = admin.call("PATCH", f"{CLIENTS}/{client.id}", json={"scopes": [READ, WRITE, "orders:list"]})
    assert more.status_code == 200
    assert [is_good(both_api, token) for token in tokens] == [True, True]
    cut = admin.call("PATCH", f"{CLIENTS}/{client.id}", json={"scopes": [READ]})

    assert cut.status_code == 200
    assert [is_good(both_api, token) for token in tokens] == [False, False]
    fresh = client.token()
    assert (is_good(both_api, fresh), claims(fresh)["scope"]) == (True, READ)
    flush(both_api)
    assert [is_good(both_api, token) for token in [*tokens, fresh]] == [False, False, True]


def test_who_loses_the_right_to_tokens_loses_those_there_are(m_api):
    """A right that was taken away would go on for ten minutes otherwise."""
    client = machine(m_api, READ)
    token = client.token()

    m_api.an_admin().call("PATCH", f"{CLIENTS}/{client.id}", json={"may": ["introspect"]})

    assert not is_good(m_api, token)
    assert refusal(client.post(TOKEN, GRANT)) == (400, "unauthorized_client")


def test_a_machine_revokes_its_own_token_and_that_alone(both_api):
    """RFC 7009, without any right but to have tokens; it stays dead after Redis was emptied."""
    client = machine(both_api, READ)
    revoked, kept = client.token(), client.token()

    assert client.revoke(revoked) == 200
    assert client.revoke(revoked) == 200

    assert [is_good(both_api, token) for token in (revoked, kept)] == [False, True]
    flush(both_api)
    assert [is_good(both_api, token) for token in (revoked, kept)] == [False, True]
    both_api.prove_redis()
    assert [is_good(both_api, token) for token in (revoked, kept)] == [False, True]


def test_nobody_revokes_the_token_of_another_client(m_api):
    """400, with every right there is; and a client without the right ends no session of a user."""
    client, other = machine(m_api, READ), machine(m_api, READ, may=tuple(Right))
    token, person = client.token(), m_api.someone()

    assert refusal(other.post("/v1/oauth2/revoke", {"token": token})) == (400, "unauthorized_client")
    assert refusal(client.post("/v1/oauth2/revoke", {"token": person.access})) == (400, "unauthorized_client")
    assert refusal(client.post("/v1/oauth2/revoke", {"token": "x"})) == (400, "unauthorized_client")
    assert other.revoke(person.access) == 200

    assert is_good(m_api, token)
    assert not person.is_accepted()


def test_a_token_that_races_the_end_of_its_secret_is_dead(m_api):
    """A token issued before the answer to the drop is refused after it."""
    client = machine(m_api, READ)
    registry = m_api.services.client_registry
    secret = registry.get(client.id).secrets[0]

    def act(number: int) -> str | None:
        if number == 7:
            registry.drop_secret(client.id, secret.id)
            return None
        answer = client.post(TOKEN, GRANT)
        return json_of(answer)["access_token"] if answer.status_code == 200 else None

    tokens = [token for token in at_once(act, range(16)) if token]

    assert [verdict(m_api, token)[0] for token in tokens] == [401] * len(tokens)


def test_what_ends_a_token_outlives_it_whichever_kind_lives_longer(make_api):
    """In Redis and in the log: a machine's token may live longer than a person's."""
    api = make_api(**ON, MACHINE_TOKEN_TTL="7200", REDIS_AUTH_TOKEN_TTL="60")
    client = machine(api, READ)
    token = client.token()
    secret = api.services.client_registry.get(client.id).secrets[0]

    api.services.client_registry.drop_secret(client.id, secret.id)

    left_s = claims(token)["exp"] - api.clock().timestamp()
    with closing(Shelf(api)) as shelf:
        assert shelf.ttl_s(f"auth:session:{secret.id}") > left_s
    reader = Gateway.of(api, may=[Right.FEED])
    (item,) = json_of(api.call("GET", "/v1/revocations", headers=reader.headers))["items"]
    assert datetime.fromisoformat(item["until"]).timestamp() > claims(token)["exp"]


def test_the_feed_tells_of_machines_as_of_people(m_api):
    """The secret stands where a session does, the client where a user does, a token by itself."""
    reader = Gateway.of(m_api, may=[Right.FEED])
    client = machine(m_api, READ)
    token = client.token()
    secret = m_api.services.client_registry.get(client.id).secrets[0]

    client.revoke(token)
    m_api.services.client_registry.drop_secret(client.id, secret.id)
    m_api.services.client_registry.delete(client.id)

    items = json_of(m_api.call("GET", "/v1/revocations", headers=reader.headers))["items"]
    ours = [
        item for item in items if {client.id, secret.id, claims(token)["jti"]} & set(map(str, item.values()))
    ]
    assert [(item["kind"], item.get("epoch")) for item in ours] == [
        ("token", None),
        ("session", None),
        ("user", 1),
    ]


def test_admins_manage_clients(both_api):
    """Create, read, list, change, a second secret, drop one, delete; secrets are shown once."""
    admin = both_api.an_admin()

    made = admin.call("POST", CLIENTS, json={"name": "orders", "scopes": [WRITE, READ]})

    created = json_of(made)
    assert made.status_code == 201
    secret = created.pop("client_secret")
    assert created.keys() == {"client_id", "name", "scopes", "may", "created_at", "secrets"}
    assert (created["scopes"], created["may"]) == ([READ, WRITE], ["token"])
    path = f"{CLIENTS}/{created['client_id']}"
    assert json_of(admin.call("GET", path)) == created
    assert created in json_of(admin.call("GET", CLIENTS))["items"]
    second = admin.call("POST", f"{path}/secrets")
    assert second.status_code == 201
    assert json_of(second).keys() == {"id", "client_secret"}
    third = admin.call("POST", f"{path}/secrets")
    assert (third.status_code, code_of(third)) == (409, "too_many")
    client = Machine(api=both_api, id=created["client_id"], secret=secret)
    assert is_good(both_api, client.token())
    listed = json_of(admin.call("GET", path))["secrets"]
    today = both_api.clock().date().isoformat()
    assert [one["last_used_on"] for one in listed] == [today, None]
    assert all(one.keys() == {"id", "created_at", "last_used_on"} for one in listed)
    renamed = admin.call("PATCH", path, json={"name": "shop", "may": ["feed", "token"]})
    assert (json_of(renamed)["name"], json_of(renamed)["may"]) == ("shop", ["feed", "token"])
    assert admin.call("DELETE", f"{path}/secrets/{listed[0]['id']}").status_code == 204
    assert admin.call("DELETE", f"{path}/secrets/{listed[0]['id']}").status_code == 404
    assert admin.call("DELETE", path).status_code == 204
    assert admin.call("GET", path).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "x", "scopes": ["A"]}, "scopes.0"),
        ({"name": "x", "scopes": "a"}, "scopes"),
        ({"name": "x", "scopes": ["a"] * 33}, "scopes"),
        ({"name": "x", "scopes": [1]}, "scopes.0"),
        ({"name": "x", "scopes": None}, "scopes"),
        ({"name": "x", "may": ["everything"]}, "may.0"),
        ({"name": "x", "epoch": 1}, "epoch"),
    ],
)
def test_a_malformed_client_is_refused(m_api, body, field):
    """422, naming what is wrong, and nothing is made."""
    admin = m_api.an_admin()
    before = json_of(admin.call("GET", CLIENTS))["items"]

    answer = admin.call("POST", CLIENTS, json=body)

    assert answer.status_code == 422
    assert field in json_of(answer)["errors"]
    assert len(json_of(admin.call("GET", CLIENTS))["items"]) == len(before)


@pytest.mark.parametrize("client_id", ["x", "00000000-0000-0000-0000-000000000000"])
def test_a_client_that_is_not_there_is_not_found(m_api, client_id):
    """By whatever route; a malformed id names none."""
    admin, path = m_api.an_admin(), f"{CLIENTS}/{client_id}"

    answers = [
        admin.call("GET", path),
        admin.call("PATCH", path, json={"name": "x"}),
        admin.call("DELETE", path),
        admin.call("POST", f"{path}/secrets"),
        admin.call("DELETE", f"{path}/secrets/{client_id}"),
    ]

    assert [(answer.status_code, code_of(answer)) for answer in answers] == [(404, "not_found")] * 5


def test_what_is_done_to_clients_is_in_the_trail(m_api):
    """Who did it, to which client, and which secret; never the secret itself."""
    admin = m_api.an_admin()
    made = json_of(admin.call("POST", CLIENTS, json={"name": "x"}))
    path = f"{CLIENTS}/{made['client_id']}"
    secret = json_of(admin.call("POST", f"{path}/secrets"))
    admin.call("PATCH", path, json={"name": "y"})
    admin.call("DELETE", f"{path}/secrets/{secret['id']}")
    admin.call("DELETE", path)

    answer = admin.call("GET", f"/v1/audit?actor_id={admin.id}")

    items = [item for item in json_of(answer)["items"] if item["action"].startswith("client.")]
    assert [(item["action"], item["detail"]) for item in reversed(items)] == [
        (f"client.{word}", made["client_id"])
        for word in ("created", "secret_added", "changed", "secret_dropped", "deleted")
    ]
    assert secret["client_secret"] not in answer.text


def test_what_is_off_does_not_exist(pg_api):
    """404, and no word of it in the description or the metadata."""
    admin = pg_api.an_admin()
    client = machine(pg_api, READ)

    missing = [client.post(TOKEN, GRANT), admin.call("GET", CLIENTS), admin.call("GET", f"{VERIFY}-machine")]

    assert [answer.status_code for answer in missing] == [404] * 3
    described = pg_api.call("GET", "/openapi.json").text
    assert "oauth2/token" not in described
    assert "verify-" not in described
    assert "/v1/clients" not in described
    metadata = json_of(pg_api.call("GET", "/.well-known/oauth-authorization-server"))
    assert "token_endpoint" not in metadata
    assert metadata["grant_types_supported"] == []


def test_tokens_of_machines_outlive_the_switch_and_can_still_be_ended(m_api):
    """
    Switched off: no new tokens and no checks for machines; those that there are stay what they are.

    Introspection and revocation answer about them in every process, on either side of the switch.
    """
    client, gateway = machine(m_api, READ), Gateway.of(m_api, may=[Right.INTROSPECT, Right.REVOKE])
    dropped, revoked, kept = client.token(), client.token(), machine(m_api, WRITE).token()
    secret = claims(dropped)["sid"]
    with closing(Api({**m_api.env, "MACHINES": "off"})) as off:
        there, here = replace(client, api=off), replace(gateway, api=off)
        admin = off.an_admin()

        assert there.post(TOKEN, GRANT).status_code == 404
        for token in (dropped, revoked, kept):
            assert verdict(off, token, "") == (403, "forbidden")
            assert [verdict(off, token, path)[0] for path in ("-machine", "-any")] == [404, 404]
            assert off.call("GET", "/v1/me", token=token).status_code == 403
            assert here.introspect(token)["client_id"] == claims(token)["client_id"]
        assert verdict(off, admin.access, "-any")[0] == 404
        assert refusal(here.post(REVOKE, {"token": kept})) == (400, "unauthorized_client")

        assert there.post(REVOKE, {"token": revoked}).status_code == 200
        assert off.verify(revoked) == 401
        assert [here.introspect(token)["active"] for token in (revoked, dropped, kept)] == [False, True, True]
        assert not is_good(m_api, revoked)
        assert is_good(m_api, dropped)

        off.services.client_registry.drop_secret(client.id, secret)
        assert off.verify(dropped) == 401
        assert [here.introspect(token)["active"] for token in (dropped, kept)] == [False, True]
        assert not is_good(m_api, dropped)
        assert is_good(m_api, kept)


def test_the_metadata_name_endpoint_and_grant(m_api):
    """RFC 8414 §2: what a library needs to get a token."""
    metadata = json_of(m_api.call("GET", "/.well-known/oauth-authorization-server"))

    assert metadata["token_endpoint"] == metadata["issuer"] + TOKEN
    assert metadata["token_endpoint_auth_methods_supported"] == ["client_secret_basic"]
    assert metadata["grant_types_supported"] == ["client_credentials"]
    described = json_of(m_api.call("GET", "/openapi.json"))["paths"]
    assert {TOKEN, f"{VERIFY}-machine", f"{VERIFY}-any", CLIENTS} <= described.keys()


def test_tokens_are_counted_by_result(m_api):
    """Each ending of the route has its series from the start."""

    def counts() -> dict[str, float]:
        text = m_api.services.metrics.exposition()[0].decode()
        lines = [line for line in text.splitlines() if line.startswith("authsvc_machine_tokens_total{")]
        return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}

    client, before = machine(m_api, READ), counts()
    client.post(TOKEN, GRANT)
    client.post(TOKEN, {**GRANT, "scope": "root"})
    client.post(TOKEN, {})
    m_api.call("POST", TOKEN, headers=basic("x", "y"))

    after = counts()
    risen = {result for result, count in after.items() if count == before[result] + 1}
    assert risen == {"ok", "invalid_scope", "malformed", "invalid_client"}
