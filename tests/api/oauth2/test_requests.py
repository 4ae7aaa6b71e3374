"""What the OAuth endpoints make of whatever is sent to them: RFC 6749 §5.2, and never a 500."""

from __future__ import annotations

import base64
import gzip
from urllib.parse import quote, quote_plus

import pytest

from tests.api.driver import Api, Person, at_once
from tests.api.gateway import INACTIVE, INTROSPECT, REVOKE, Gateway, basic, refusal

FORM = "application/x-www-form-urlencoded"
ENDPOINTS = pytest.mark.parametrize("path", [INTROSPECT, REVOKE])
CHALLENGE = 'Basic realm="authsvc", charset="UTF-8"'


@pytest.fixture(scope="module")
def gateway(pg_api: Api) -> Gateway:
    """Register one client for all."""
    return Gateway.of(pg_api)


@pytest.fixture(scope="module")
def person(pg_api: Api) -> Person:
    """Log somebody in whose session nothing here may end."""
    return pg_api.someone()


def encoded(text: bytes) -> str:
    """Return *text* in base64."""
    return base64.b64encode(text).decode()


#: Nothing that shows who is asking.
NO_PROOF: dict[str, dict[str, str]] = {
    "nothing": {},
    "empty": {"Authorization": ""},
    "another scheme": {"Authorization": "Bearer x"},
    "the scheme alone": {"Authorization": "Basic"},
    "no base64": {"Authorization": "Basic !!!"},
    "broken base64": {"Authorization": "Basic YTp"},
    "two": {"Authorization": f"Basic {encoded(b'a:b')}, Basic {encoded(b'a:b')}"},
    "no colon": {"Authorization": "Basic " + encoded(b"nocolon")},
    "no UTF-8": {"Authorization": "Basic " + encoded(b"\xff\xfe:\xff")},
    "no UTF-8 below percent signs": basic("%ff", "%fe"),
    "NUL": basic("%00", "\x00"),
    "a lone surrogate": basic("%ed%a0%80", "x"),
    "empty id and secret": basic("", ""),
    "a long one": basic("a" * 4000, "b" * 2000),
    "not ASCII": {"Authorization": "Basic ä"},
    "an id of another form": basic("{7d8b1d0e-0a53-4be4-93f9-0b0a8bfc1c11}", "x"),
}


@pytest.mark.parametrize("headers", NO_PROOF.values(), ids=NO_PROOF.keys())
def test_without_proof_everybody_is_answered_alike(pg_api, person, headers):
    """401 `invalid_client` with a challenge, whatever was sent in its place, before the body is read."""
    answers = [
        pg_api.call("POST", path, headers=headers, **options)
        for path in (INTROSPECT, REVOKE)
        for options in ({"data": {"token": person.access}}, {"data": b"{" * 70_000, "content_type": "x/y"})
    ]

    assert {refusal(answer) for answer in answers} == {(401, "invalid_client")}
    assert {answer.headers["WWW-Authenticate"] for answer in answers} == {CHALLENGE}
    assert len({answer.data for answer in answers}) == 1
    assert person.is_accepted()


@ENDPOINTS
def test_wrong_credentials_get_the_same_answer(gateway, person, path):
    """An unknown client, a wrong secret, another client's secret, and a secret in the body alone."""
    other = Gateway.of(gateway.api)
    shown = [
        basic("7d8b1d0e-0a53-4be4-93f9-0b0a8bfc1c11", gateway.secret),
        basic(gateway.id, gateway.secret + "x"),
        basic(gateway.id, ""),
        basic(gateway.id, other.secret),
        basic(gateway.id.upper(), gateway.secret),
        basic(gateway.secret, gateway.id),
        {},
    ]
    body = {"token": person.access, "client_id": gateway.id, "client_secret": gateway.secret}

    answers = [gateway.api.call("POST", path, headers=headers, data=body) for headers in shown]

    assert {refusal(answer) for answer in answers} == {(401, "invalid_client")}
    assert len({answer.data for answer in answers}) == 1
    assert all(gateway.secret not in str(answer.headers) + answer.text for answer in answers)


@pytest.mark.parametrize(
    "encode", [str, quote, quote_plus, lambda text: "".join(f"%{b:02X}" for b in text.encode())]
)
@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC  "])
def test_id_and_secret_may_be_percent_encoded(gateway, encode, scheme):
    """RFC 6749 §2.3.1: each is form-encoded before Basic; the scheme has no case."""
    pair = f"{encode(gateway.id)}:{encode(gateway.secret)}"

    answer = gateway.api.call(
        "POST",
        INTROSPECT,
        headers={"Authorization": f"{scheme} {encoded(pair.encode())}"},
        data={"token": "x"},
    )

    assert (answer.status_code, answer.json) == (200, INACTIVE)


#: Bodies that are no request, each with its type and the status.
BODIES: dict[str, tuple[bytes, str | None, int]] = {
    "empty": (b"", FORM, 400),
    "empty without a type": (b"", None, 400),
    "no token": (b"token_type_hint=access_token", FORM, 400),
    "a token without a value": (b"token=", FORM, 400),
    "a token without an equals sign": (b"token", FORM, 400),
    "two tokens": (b"token=a&token=b", FORM, 400),
    "the same token twice": (b"token=a&token=a", FORM, 400),
    "a token and an empty one": (b"token=a&token=", FORM, 400),
    "two hints": (b"token=a&token_type_hint=x&token_type_hint=y", FORM, 400),
    "an unknown one twice": (b"token=a&b=1&b=2", FORM, 400),
    "a secret as well": (b"token=a&client_secret=s", FORM, 400),
    "too many": (b"token=a&" + b"&".join(b"p%d=1" % number for number in range(40)), FORM, 400),
    "raw bytes": (b"token=\xff\xfe", FORM, 400),
    "bytes below percent signs": (b"token=%ff%fe", FORM, 400),
    "a surrogate below percent signs": (b"token=%ed%a0%80", FORM, 400),
    "JSON": (b'{"token": "a"}', "application/json", 415),
    "JSON that says it is a form": (b'{"token": "a"}', FORM, 400),
    "no type": (b"token=a", None, 415),
    "plain text": (b"token=a", "text/plain", 415),
    "parts": (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x", 415),
    "another charset": (b"token=a", f"{FORM}; charset=utf-16", 415),
    "too large": (b"token=" + b"a" * 65_536, FORM, 413),
    "much too large": (b"token=" + b"a" * 1_000_000, FORM, 413),
}  # fmt: skip


@ENDPOINTS
@pytest.mark.parametrize(("data", "content_type", "status"), BODIES.values(), ids=BODIES.keys())
def test_a_body_that_is_no_request_is_refused(gateway, path, data, content_type, status):
    """400, 413 or 415, each `invalid_request`; nothing of it is repeated."""
    answer = gateway.post(path, data, content_type=content_type)

    assert refusal(answer) == (status, "invalid_request")


@pytest.mark.parametrize(
    "token", ["%00", "a%00b", "%F0%9F%92%A9", "+", "%25", "a" * 65_000, ";", "%26token%3Db"]
)
def test_any_text_may_be_asked_about(gateway, token):
    """It is no token, and that is all there is to say; revoking it is 200."""
    body = f"token={token}".encode()

    asked, revoked = (gateway.post(path, body, content_type=FORM) for path in (INTROSPECT, REVOKE))

    assert (asked.status_code, asked.json) == (200, INACTIVE)
    assert revoked.status_code == 200


@ENDPOINTS
def test_an_encoded_form_is_not_supported(gateway, person, path):
    """415, and which coding would be taken; the token in it is not looked at."""
    body = gzip.compress(f"token={person.access}".encode())

    answer = gateway.post(path, body, content_type=FORM, headers={"Content-Encoding": "gzip"})

    assert refusal(answer) == (415, "invalid_request")
    assert answer.headers["Accept-Encoding"] == "identity"
    assert person.is_accepted()


@pytest.mark.parametrize("content_type", [FORM.upper(), f"{FORM}; charset=UTF-8", f'{FORM};charset="utf-8"'])
def test_a_form_may_name_its_charset(gateway, person, content_type):
    """UTF-8, in whatever letters."""
    answer = gateway.post(INTROSPECT, f"token={person.access}".encode(), content_type=content_type)

    assert answer.json["active"]


@ENDPOINTS
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_named(pg_api, path, method):
    """405 `invalid_request` with `Allow`; a token never belongs into an address."""
    answer = pg_api.call(method, f"{path}?token=x")

    assert refusal(answer) == (405, "invalid_request")
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "path", ["/v1/oauth2/token", "/v1/oauth2/", "/v1/oauth2/introspect/", "/v1/oauth2/a/b"]
)
def test_what_is_not_there_is_refused_in_the_same_form(gateway, path):
    """404, for whoever reads errors as OAuth has them."""
    assert refusal(gateway.post(path, {"token": "x"})) == (404, "invalid_request")


def test_a_token_in_the_query_is_none(gateway, person):
    """Addresses end up in logs: only the body counts."""
    assert refusal(gateway.post(f"{INTROSPECT}?token={person.access}")) == (400, "invalid_request")


def test_wrong_secrets_are_limited_by_address_and_right_ones_never(make_api, gateway):
    """429 after 100 in a quarter of an hour, exactly; meanwhile the client goes on from the same address."""
    api = make_api()
    client = Gateway.of(api)
    wrong = basic(client.id, "wrong")

    def guess(_: int) -> tuple[int, str]:
        return refusal(api.call("POST", INTROSPECT, headers=wrong, data={"token": "x"}, ip="192.0.2.1"))

    guesses = at_once(guess, range(120))
    limited = api.call("POST", INTROSPECT, headers=wrong, data={"token": "x"}, ip="192.0.2.1")

    assert sorted(guesses) == [(401, "invalid_client")] * 100 + [(429, "temporarily_unavailable")] * 20
    assert 0 < int(limited.headers["Retry-After"]) <= 900
    assert limited.headers["RateLimit-Policy"] == '"client-ip";q=100;w=900'
    for _ in range(3):
        allowed = client.post(INTROSPECT, {"token": "x"}, ip="192.0.2.1")
        assert (allowed.status_code, allowed.json) == (200, INACTIVE)
        assert "RateLimit" not in allowed.headers
    elsewhere = api.call("POST", INTROSPECT, headers=wrong, data={"token": "x"}, ip="192.0.2.2")
    assert elsewhere.status_code == 401


def test_whoever_shows_nothing_is_not_counted(make_api):
    """A scanner without credentials guesses nothing."""
    api = make_api()

    statuses = {api.call("POST", INTROSPECT, data={"token": "x"}).status_code for _ in range(110)}

    assert statuses == {401}


def test_a_refused_client_is_written_down_without_what_it_showed(gateway, caplog):
    """`client.refused` with the address; neither the secret nor a made-up id is in any record."""
    caplog.set_level("DEBUG")

    for headers in (basic("made-up-id", "made-up-secret"), basic(gateway.id, "made-up-secret")):
        gateway.api.call("POST", INTROSPECT, headers=headers, data={"token": "x"}, ip="192.0.2.3")

    found = [record for record in caplog.records if record.message == "client.refused"]
    assert [vars(record)["client_ip"] for record in found] == ["192.0.2.3"] * 2
    assert [vars(record).get("detail") for record in found] == [None, gateway.id]
    assert "made-up" not in str([vars(record) for record in caplog.records])


def test_a_revocation_is_written_down_with_the_client_that_asked_for_it(gateway, caplog):
    """`session.ended`, the client as the one who did it."""
    caplog.set_level("INFO")
    person = gateway.api.someone()

    gateway.revoke(person.refresh_token)

    found = [vars(record) for record in caplog.records if record.message == "session.ended"]
    assert [(record["user_id"], record["session_id"], record["actor_id"]) for record in found] == [
        (person.id, person.session_id, gateway.id)
    ]
