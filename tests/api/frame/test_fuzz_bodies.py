"""
Every route, whatever is sent to it as a body: refused or answered, never a 5xx.

The routes come from the application, the members of their bodies from its own description: what is added
is fuzzed, too.  A sample here; with ``FUZZ_BODIES=20000`` everything, and so many bodies by chance.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests import times
from tests.api.driver import json_of, new_email
from tests.api.frame.test_bodies import MALFORMED
from tests.api.frame.test_routes import ADMIN, CLIENT, USER, declared
from tests.api.gateway import Gateway
from tests.api.passkeys import PASSKEYS
from tests.authenticator import b64, cbor
from tests.rig import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from werkzeug.test import TestResponse

    from tests.api.driver import Api, MakeApi

pytestmark = pytest.mark.slow

BY_CHANCE = times("FUZZ_BODIES", 100)
#: Of the routes' bodies each so-manieth is sent: no divisor of their numbers, so that each body has its turn.
EVERY = 1 if "FUZZ_BODIES" in os.environ else 7
JSON, FORM, PATCH = "application/json", "application/x-www-form-urlencoded", "application/merge-patch+json"
TAKING = ("POST", "PUT", "PATCH", "DELETE")
#: An answer of an authenticator, of the form of both kinds.
CREDENTIAL: dict[str, Any] = {
    "id": "A" * 43, "rawId": "A" * 43, "type": "public-key",
    "response": {
        "clientDataJSON": b64(b'{"type":"webauthn.get","challenge":"AAAA","origin":"https://app.example.com"}'),
        "authenticatorData": b64(bytes(37)), "signature": b64(bytes(64)), "userHandle": b64(bytes(16)),
        "attestationObject": b64(cbor({"fmt": "none", "attStmt": {}, "authData": bytes(37)})),
        "transports": ["usb"],
    },
}  # fmt: skip
#: What gets a body past its schema, for members of that name; others get a word.
PLAUSIBLE: dict[str, Any] = {
    "password": PASSWORD, "current_password": PASSWORD, "new_password": PASSWORD, "roles": ["user"],
    "status": "active", "users": [{"email": "x@example.com", "password": PASSWORD}],
    "credential": CREDENTIAL,
}  # fmt: skip
NESTED: dict[str, Any] = {}
for _ in range(30):
    NESTED = {"a": NESTED}
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 1e308, 5e-324, 2**63, 10**400, "", " ", "\x00", "a\x00b", "\ud800", "a\udfffb",
    "x" * 60_000, "é" * 9_000, "\u202e", "%s%n%x", "'; DROP TABLE users; --", "../../etc/passwd", "{{7*7}}",
    "\U0001f468\u200d\U0001f469", "a@b\nBcc: c@d.e", [], [[]], [None] * 300, ["\ud800"], [{}], {}, {"": ""},
    {"\x00": 1}, {"\ud800": "\udfff"}, {"__proto__": {"a": 1}}, {"$ne": None}, NESTED,
)  # fmt: skip


@dataclass
class Caller:
    """Somebody with every right, again and again: what they send may end them."""

    api: Api

    def __post_init__(self) -> None:
        self.victim, self.gateway = self.api.someone(), Gateway.of(self.api)
        self.people = {USER: self.api.someone(), ADMIN: self.api.an_admin()}
        self.numbers = count()

    def is_chosen(self) -> bool:
        """True for each EVERY-th call."""
        return next(self.numbers) % EVERY == 0

    @cached_property
    def described(self) -> dict[str, Any]:
        """The description of the application."""
        return json_of(self.api.call("GET", "/openapi.json"))

    @property
    def properties(self) -> list[str]:
        """Every member that the description knows in any body."""
        schemas = self.described["components"]["schemas"].values()
        return sorted({name for schema in schemas for name in schema.get("properties", ())})

    def send(self, route: str, access: str | None, data: bytes, content_type: str | None) -> TestResponse:
        """One request with the right that *route* asks for; once more by a successor if that one is dead."""
        answer = self.attempt(route, access, data, content_type)
        if answer.status_code == 401 and access in self.people:
            self.people |= {USER: self.api.someone()} if access == USER else {ADMIN: self.api.an_admin()}
            answer = self.attempt(route, access, data, content_type)
        return answer

    def attempt(self, route: str, access: str | None, data: bytes, content_type: str | None) -> TestResponse:
        """One request."""
        method, path = route.split(" ")
        ids = {
            "<user_id>": self.victim.id,
            "<session_id>": self.people[USER].session_id,
            "<factor_id>": self.victim.id,
        }
        for name, value in ids.items():
            path = path.replace(name, value)
        token = self.people[access].access if access in self.people else None
        headers = self.gateway.headers if access == CLIENT else {}
        return self.api.call(method, path, token=token, headers=headers, data=data, content_type=content_type)


@pytest.fixture(scope="module")
def pg_api(make_module_api: MakeApi) -> Api:
    """Share an application with second factors: their routes read the largest bodies."""
    return make_module_api(**PASSKEYS)


@pytest.fixture(scope="module")
def caller(pg_api) -> Caller:
    """Share one caller."""
    return Caller(pg_api)


@pytest.fixture(scope="module")
def routes(pg_api) -> dict[str, str | None]:
    """Return every route that might read a body, with who may call it."""
    return {
        route: access
        for route, access in declared(pg_api).items()
        if route.startswith(TAKING) and "<path:" not in route
    }


def harmless(answer: TestResponse, sent: object) -> bool:
    """True for an answer of the service itself, in one of its own forms."""
    assert answer.status_code < 500, (answer.status_code, answer.text, sent)
    is_error = answer.status_code >= 400
    forms = {"application/problem+json", JSON} if is_error else {JSON, "text/html; charset=utf-8"}
    return answer.content_type in forms or not answer.data


def members(caller: Caller, route: str) -> list[str]:
    """The members of the bodies of *route*, by its description; every known one where it says nothing."""
    method, path = route.split(" ")
    described = caller.described
    operation = described["paths"].get(path.replace("<", "{").replace(">", "}"), {}).get(method.lower(), {})
    content = operation.get("requestBody", {}).get("content", {})
    names = {
        reference.rpartition("/")[2]
        for form in content.values()
        for reference in [form.get("schema", {}).get("$ref", "")]
    }
    found = [
        n for name in names for n in described["components"]["schemas"].get(name, {}).get("properties", ())
    ]
    return sorted(found) or ["name"]


def plausible(name: str) -> Any:
    """A value that may stand there."""
    return new_email() if name == "email" else PLAUSIBLE.get(name, "word")


def odd_bodies(names: list[str]) -> Iterator[dict[str, Any]]:
    """One member odd, the others as they should be."""
    for name in names:
        for value in ODD:
            yield {other: plausible(other) for other in names} | {name: value}


def test_no_route_breaks_on_a_body_that_is_malformed(caller, routes):
    """Thirty ways, to routes that read a body and to those that do not."""
    assert len(routes) > 15
    for route, access in routes.items():
        for name, body in MALFORMED.items():
            assert not caller.is_chosen() or harmless(caller.send(route, access, body, JSON), (route, name))


def test_no_route_breaks_on_a_media_type_or_charset(caller, routes):
    """The announced form is another than the real one."""
    charsets = ("utf-8", "utf-16", "latin-1", "utf-7", "idna", "unknown", '"', "utf-8; charset=utf-16")
    kinds = (FORM, PATCH, "text/plain", "multipart/form-data; boundary=x", "a/b; charset=\udcff", "", None)
    for route, access in routes.items():
        for kind in (*kinds, *(f"{JSON}; charset={charset}" for charset in charsets)):
            data = '{"name": "é"}'.encode("utf-16")
            assert not caller.is_chosen() or harmless(caller.send(route, access, data, kind), (route, kind))


def odd_credentials() -> Iterator[dict[str, Any]]:
    """One member of a credential odd, in JSON or within the bytes that it holds."""
    inner = CREDENTIAL["response"]
    for value in (
        *ODD,
        *(b64(raw) for raw in (b"", b"{}", b"[[[", b"\xff" * 40, b"\x9f" * 4000, bytes(300))),
    ):
        yield from ({**CREDENTIAL, name: value} for name in CREDENTIAL)
        yield from ({**CREDENTIAL, "response": {**inner, name: value}} for name in inner)


def test_no_passkey_breaks_on_a_credential_that_is_odd(caller, routes):
    """Whatever a browser, or somebody in its place, sends as the answer of an authenticator."""
    taking = [route for route in routes if "credential" in members(caller, route)]
    assert len(taking) == 4
    for route in taking:
        others = {"challenge": "AAAA"} if "challenge" in members(caller, route) else {}
        for credential in odd_credentials():
            if caller.is_chosen():
                data = json.dumps({"credential": credential, **others}).encode()
                assert harmless(caller.send(route, routes[route], data, JSON), (route, credential))


def test_no_route_breaks_on_a_member_that_is_odd(caller, routes):
    """Each member that is described, with each odd value, and all others as they should be."""
    sent = 0
    for route, access in routes.items():
        kind = FORM if access == CLIENT else JSON
        for body in odd_bodies(members(caller, route)):
            if caller.is_chosen():
                data = json.dumps(body).encode()
                assert harmless(caller.send(route, access, data, kind), (route, body))
                sent += 1
    assert sent > 100


def any_value(random: Random, names: list[str], depth: int = 0) -> Any:
    """A JSON value by chance."""
    kind = random.randrange(8 if depth < 6 else 6)
    if kind == 6:
        return [any_value(random, names, depth + 1) for _ in range(random.randrange(5))]
    if kind == 7:
        return {random.choice(names): any_value(random, names, depth + 1) for _ in range(random.randrange(5))}
    return random.choice(ODD)


def test_no_route_breaks_on_whatever_comes_by_chance(caller, routes):
    """Values of any shape under names that mean something here, some of them with a byte changed."""
    random, names = Random(BY_CHANCE), [*caller.properties, "", "\ud800"]
    for _ in range(BY_CHANCE):
        route = random.choice(sorted(routes))
        data = bytearray(json.dumps(any_value(random, names)).encode()[:70_000])
        if data and random.randrange(2):
            data[random.randrange(len(data))] = random.randrange(256)
        assert harmless(caller.send(route, routes[route], bytes(data), JSON), (route, bytes(data)))
