"""What may be in a request's body, and what may not."""

from __future__ import annotations

import gzip
import io
import json

import pytest

from tests.api.driver import code_of, new_email
from tests.rig import PASSWORD

LOGIN, REGISTER, LOGOUT = "/v1/auth/login", "/v1/auth/register", "/v1/auth/logout"
GOOD = json.dumps({"email": "nobody@example.com", "password": PASSWORD}).encode()


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    """*depth* containers, one in the other."""
    return opening * depth + b"1" + closing * depth


MALFORMED = {
    "empty": b"",
    "white space": b"  \n",
    "cut off": GOOD[:-1],
    "two values": GOOD + GOOD,
    "a comment": b"/**/" + GOOD,
    "single quotes": b"{'email': 'a'}",
    "a trailing comma": b'{"email": "a",}',
    "a control character in a string": b'{"email": "a\x01"}',
    "duplicate names": b'{"email": "a@example.com", "email": "b@example.com", "password": "x"}',
    "duplicate names in two spellings": b'{"email": "a@example.com", "\\u0065mail": "b", "password": "x"}',
    "duplicate names further down": b'{"x": [{"a": 1, "a": 1}]}',
    "NaN": b'{"email": NaN}',
    "Infinity": b'{"email": -Infinity}',
    "a number out of range": b'{"email": 1e999}',
    "an integer of 5,000 digits": b"9" * 5_000,
    "lists 33 deep": nested(33, b"[", b"]"),
    "objects 33 deep": nested(33, b'{"a":', b"}"),
    "objects in lists 34 deep": nested(17, b'[{"a":', b"}]"),
    "30,000 deep": nested(30_000, b"[", b"]"),
    "30,000 opened": b"[" * 30_000,
    "bad UTF-8": b'{"email": "\xff"}',
    "an overlong encoding": b'{"email": "\xc0\xaf"}',
    "an encoded surrogate": b'{"email": "\xed\xa0\x80"}',
    "latin-1": '{"email": "ü"}'.encode("latin-1"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without a mark": GOOD.decode().encode("utf-16-le"),
    "UTF-32": GOOD.decode().encode("utf-32-be"),
    "form data": b"email=a%40example.com&password=x",
    "gzip": b"\x1f\x8b\x08\x00",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_not_json_or_is_ambiguous_is_malformed(pg_api, body):
    """400, by a parser of a view and where a body is optional alike."""
    answer = pg_api.send_raw(LOGIN, body)

    assert (answer.status_code, code_of(answer)) == (400, "malformed_request")
    if body:
        assert code_of(pg_api.send_raw(LOGOUT, body)) == "malformed_request"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        ('{"email": "ü"}'.encode("latin-1"), "not UTF-8 at byte 12"),
        (GOOD.decode().encode("utf-16"), "not UTF-8 at byte 1"),
        (b"\xef\xbb\xbf" + GOOD, "begins with a byte order mark"),
        (b'{"email": "a",}', "a trailing comma at line 1, column 14"),
        (b'{"email": [1, 2,\n ]}', "a trailing comma at line 1, column 16"),
        (b'{"email": "a"\n "password": "b"}', "not JSON at line 2, column 2"),
        (GOOD[:-1], f"not JSON at line 1, column {len(GOOD)}"),
        (b"{'email': 'a'}", "not JSON at line 1, column 2"),
        (b'{"email": "se\\cret"}', "not JSON at line 1, column 14"),
        (b'{"x": [{"a": 1, "a": 1}]}', "an object has one name twice"),
        (b'{"email": NaN}', "NaN and infinities are not JSON"),
        (b'{"email": 1e999}', "a number is out of range"),
        (b"9" * 5_000, "a number is too long"),
        (nested(33, b"[", b"]"), "nested deeper than 32"),
    ],
)
def test_what_is_wrong_with_the_text_is_said(pg_api, body, reason):
    """The cause and its place: a caller who sees one text for all has to guess. Nothing sent is repeated."""
    answer = pg_api.send_raw(LOGIN, body)

    assert code_of(answer) == "malformed_request"
    assert answer.json["detail"] == f"The body is not JSON that this service accepts: {reason}."


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "x-nonsense"])
def test_an_encoded_body_is_not_supported(pg_api, coding):
    """415, and which coding would be taken (RFC 9110 §15.5.16); a plain body marked gzip is not taken."""
    admin = pg_api.an_admin()
    headers = {"Content-Encoding": coding}
    bodies = [GOOD, gzip.compress(GOOD)]

    answers = [
        admin.call(method, path, data=body, content_type="application/json", headers=headers)
        for method, path in (("POST", LOGIN), ("POST", LOGOUT), ("PUT", "/v1/me/preferences"))
        for body in bodies
    ]

    for answer in answers:
        assert (answer.status_code, code_of(answer)) == (415, "unsupported_media_type")
        assert answer.headers["Accept-Encoding"] == "identity"
    plain = pg_api.send_raw(LOGIN, GOOD, "text/plain")
    assert "Accept-Encoding" not in plain.headers


def test_a_body_that_says_it_is_not_encoded_is_taken(pg_api):
    """*identity* means nothing was done to it."""
    headers = {"Content-Encoding": "identity"}

    answer = pg_api.call("POST", LOGIN, data=GOOD, content_type="application/json", headers=headers)

    assert answer.status_code == 401


def test_every_view_with_a_body_reads_it_strictly(pg_api):
    """No view has a parser of its own."""
    admin = pg_api.an_admin()
    views = [
        ("POST", REGISTER),
        ("POST", LOGIN),
        ("POST", "/v1/auth/refresh"),
        ("PATCH", "/v1/me"),
        ("DELETE", "/v1/me"),
        ("POST", "/v1/me/password"),
        ("PUT", "/v1/me/preferences"),
        ("PATCH", "/v1/me/preferences"),
        ("PATCH", f"/v1/users/{admin.id}"),
    ]
    bodies = [b"", b'{"name": NaN}', b'{"name": "a", "name": "b"}', nested(33, b"[", b"]"), b"\xef\xbb\xbf{}"]

    for method, path in views:
        answers = [admin.call(method, path, data=body, content_type="application/json") for body in bodies]
        assert {code_of(answer) for answer in answers} == {"malformed_request"}, (method, path)
        assert (
            code_of(admin.call(method, path, data=GOOD, content_type="text/json")) == "unsupported_media_type"
        )
        assert admin.call(method, path, data=b"x" * 65_537).status_code == 413


def test_nesting_is_counted_in_containers_and_strings_do_not_count(pg_api):
    """32 deep is JSON like any other; brackets in a string are text."""
    deep = pg_api.send_raw(LOGIN, nested(32, b"[", b"]"))
    text = pg_api.log_in("nobody@example.com", '[{"\\' * 40)

    assert (deep.status_code, code_of(deep)) == (422, "validation_failed")
    assert (text.status_code, code_of(text)) == (401, "invalid_credentials")


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
        "Application/JSON",
        "application/json; x=y",
    ],
)
def test_json_in_utf_8_is_taken_however_it_is_announced(pg_api, media_type):
    """Case, quotes and other parameters mean nothing."""
    assert pg_api.send_raw(LOGIN, GOOD, media_type).status_code == 401


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/problem+json",
        "application/json, text/plain",
        "*/*",
        "nonsense",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=utf-7",
    ],
)
def test_any_other_type_or_charset_is_not_supported(pg_api, media_type):
    """415, also without any: a form of another site cannot pass for JSON."""
    answer = pg_api.send_raw(LOGIN, GOOD, media_type)

    assert (answer.status_code, code_of(answer)) == (415, "unsupported_media_type")


@pytest.mark.parametrize("body", [b"null", b"true", b"1", b'"x"', b"[]", b'[{"email": "a"}]'])
def test_what_is_no_object_has_the_wrong_form(pg_api, body):
    """JSON, but 422."""
    answer = pg_api.send_raw(LOGIN, body)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
    assert answer.json["errors"] == {"body": ["Invalid input type."]}


def test_every_wrong_field_is_named_at_once(pg_api):
    """Unknown ones, too."""
    answer = pg_api.post(REGISTER, {"email": 1, "name": [], "role": "admin"})

    assert set(answer.json["errors"]) == {"email", "password", "name", "role"}


def padded(size: int) -> bytes:
    """A good body of *size* bytes."""
    return GOOD + b" " * (size - len(GOOD))


def test_a_body_of_64_kib_is_read_and_a_byte_more_is_not(pg_api):
    """413, before anything is parsed."""
    assert pg_api.send_raw(LOGIN, padded(64 * 1024)).status_code == 401

    answer = pg_api.send_raw(LOGIN, padded(64 * 1024 + 1))

    assert (answer.status_code, code_of(answer)) == (413, "too_large")


def send_chunked(api, body: bytes):
    """POST *body* without saying how long it is, as the server hands a chunked one on."""
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    return api.call(
        "POST", LOGIN, input_stream=io.BytesIO(body), content_type="application/json", environ=environ
    )


def test_a_chunked_body_has_the_same_limit(pg_api):
    """Its length is not known beforehand, and it is read no further than that."""
    assert send_chunked(pg_api, padded(64 * 1024)).status_code == 401
    assert code_of(send_chunked(pg_api, padded(64 * 1024 + 1))) == "too_large"
    assert code_of(send_chunked(pg_api, b"")) == "malformed_request"


def test_a_length_that_lies_breaks_nothing(pg_api):
    """Shorter than announced, or no number at all: 400."""
    for length in ("1000", "-1", "x", ""):
        answer = pg_api.call(
            "POST",
            LOGIN,
            input_stream=io.BytesIO(GOOD),
            content_type="application/json",
            environ={"CONTENT_LENGTH": length},
        )

        assert (answer.status_code, code_of(answer)) == (400, "malformed_request")


def test_a_refused_body_creates_nothing(pg_api):
    """Duplicate names: neither of the two addresses is registered."""
    first, second = new_email(), new_email()
    body = f'{{"email": "{first}", "password": "{PASSWORD}", "email": "{second}"}}'

    assert pg_api.send_raw(REGISTER, body.encode()).status_code == 400
    assert [pg_api.log_in(email).status_code for email in (first, second)] == [401, 401]
