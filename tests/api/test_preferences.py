"""GET, PUT and PATCH /v1/me/preferences."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.api.driver import Person, at_once, code_of

PATH = "/v1/me/preferences"


def put(person: Person, value: object, **headers: str):
    """Replace the object."""
    return person.call("PUT", PATH, json=value, headers={k.replace("_", "-"): v for k, v in headers.items()})


def patch(person: Person, value: object, **headers: str):
    """Merge *value* in."""
    return person.call(
        "PATCH", PATH, json=value, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def test_they_begin_empty_and_keep_what_is_put(person):
    """The bare object, with an entity tag that reads and writes agree on; the profile shows it, too."""
    wanted = {"theme": "dark", "nested": {"list": [1, 2.5, None, True, "ü😀"], "empty": {}}}
    assert person.call("GET", PATH).json == {}

    written = put(person, wanted)

    read = person.call("GET", PATH)
    assert (written.status_code, written.json, read.json) == (200, wanted, wanted)
    assert written.headers["ETag"] == read.headers["ETag"]
    assert written.headers["ETag"].startswith('"')
    assert person.call("GET", "/v1/me").json["preferences"] == wanted


@pytest.mark.parametrize("number", ["0", "-0.0", "1.0", "1e22", "1e300", "0.1", "5e-324", "9" * 400])
def test_numbers_come_back_as_they_went_in(pg_api, number):
    """Whatever writes and reads them again, value and entity tag stay."""
    person = pg_api.someone()

    written = person.call("PUT", PATH, data=f'{{"n":{number}}}', content_type="application/json")

    read = [person.call("GET", PATH) for _ in range(2)]
    assert {answer.headers["ETag"] for answer in read} == {written.headers["ETag"]}
    assert json.loads(read[0].data) == json.loads(f'{{"n":{number}}}')


def test_a_put_replaces_all_of_it(person):
    """What is not named is gone; null is a value like any other."""
    put(person, {"a": 1, "b": 2})

    assert put(person, {"b": None}).json == {"b": None}
    assert person.call("GET", PATH).json == {"b": None}


def test_a_patch_merges(person):
    """RFC 7396: null removes, objects merge, everything else replaces."""
    put(person, {"a": "b", "c": {"d": "e", "f": "g"}, "list": [1, 2]})

    answer = patch(person, {"a": "z", "c": {"f": None}, "list": [3], "new": {"x": None, "y": 1}})

    assert answer.status_code == 200
    assert answer.json == {"a": "z", "c": {"d": "e"}, "list": [3], "new": {"y": 1}}
    assert answer.headers["ETag"] == person.call("GET", PATH).headers["ETag"]


@pytest.mark.parametrize(
    ("method", "media_type", "status"),
    [
        ("PATCH", "application/merge-patch+json", 200),
        ("PATCH", "application/merge-patch+json; charset=UTF-8", 200),
        ("PATCH", "application/json", 200),
        ("PATCH", "application/json-patch+json", 415),
        ("PUT", "application/json", 200),
        ("PUT", "application/merge-patch+json", 415),
    ],
)
def test_a_patch_may_say_that_it_is_one(pg_api, method, media_type, status):
    """A merge patch is for PATCH, plain JSON for both."""
    answer = pg_api.someone().call(method, PATH, data=b'{"a": 1}', content_type=media_type)

    assert answer.status_code == status


def test_a_write_on_an_old_read_is_refused(person):
    """412 `precondition_failed`, nothing is written; the current tag, one of several, or a star will do."""
    old = put(person, {"n": 1}).headers["ETag"]
    current = put(person, {"n": 2}).headers["ETag"]

    for write in (put, patch):
        answer = write(person, {"n": 3}, If_Match=old)
        assert (answer.status_code, code_of(answer)) == (412, "precondition_failed")
    assert person.call("GET", PATH).json == {"n": 2}
    current = put(person, {"n": 4}, If_Match=current).headers["ETag"]
    current = patch(person, {"n": 5}, If_Match=f'{old}, "x", {current}').headers["ETag"]
    assert put(person, {"n": 6}, If_Match="*").status_code == 200


@pytest.mark.parametrize(
    "condition",
    [
        'W/"{tag}"',
        *(f'"{{tag}}{suffix}"' for suffix in ("-gzip", "-br", "-zstd", "-deflate", ";gzip", "--gzip", ";br")),
        'W/"{tag}-gzip"',
        '"x", W/"{tag}--gzip"',
    ],
)
def test_a_tag_that_a_compressing_proxy_has_marked_is_still_the_tag(pg_api, condition):
    """The content is the same: a write on the current read goes on, one on an old read is refused."""
    person = pg_api.someone()
    old = put(person, {"n": 1}).headers["ETag"].strip('"')
    tag = put(person, {"n": 2}).headers["ETag"].strip('"')

    late = [write(person, {"n": 3}, If_Match=condition.format(tag=old)) for write in (put, patch)]
    current = put(person, {"n": 2}, If_Match=condition.format(tag=tag))

    assert [code_of(answer) for answer in late] == ["precondition_failed"] * 2
    assert current.status_code == 200
    assert patch(person, {"n": 4}, If_Match=condition.format(tag=tag)).status_code == 200


@pytest.mark.parametrize(
    "condition",
    ["", '"*"', "nonsense", '"', '""', '"{tag}-tar"', '"{tag}gzip"', '"{tag}-gzip-gzip"', '"-gzip"'],
)
def test_a_condition_that_names_no_current_tag_fails(pg_api, condition):
    """A quoted star, an empty header, the current tag with anything but a content coding behind it."""
    person = pg_api.someone()
    tag = put(person, {"n": 1}).headers["ETag"].strip('"')

    answer = put(person, {"n": 2}, If_Match=condition.format(tag=tag))

    assert (answer.status_code, code_of(answer)) == (412, "precondition_failed")


def in_order(text: str) -> object:
    """JSON *text* with its objects as lists of pairs."""
    return json.loads(text, object_pairs_hook=list)


SENT = '{"zeta":1,"beta":{"y":[{"q":0,"b":0}],"a":2},"alpha":null,"eta":3,"10":4,"2":5}'


def test_the_order_of_members_is_that_of_the_caller(person):
    """On every level, written and read, from SQL and from the cache, in the profile and for an admin."""
    admin = person.api.an_admin()

    written = person.call("PUT", PATH, data=SENT, content_type="application/json")

    assert in_order(written.text) == in_order(SENT)
    for _ in range(2):
        assert in_order(person.call("GET", PATH).text) == in_order(SENT)
    for path in ("/v1/me", f"/v1/users/{person.id}", f"/v1/batch/users/lookup?ids={person.id}"):
        reader = person if path == "/v1/me" else admin
        assert SENT in reader.call("GET", path).text


def test_a_patch_keeps_the_order_and_adds_at_the_end(person):
    """As RFC 7396 describes the merge: what is there stays where it is."""
    person.call("PUT", PATH, data=SENT, content_type="application/json")

    answer = person.call(
        "PATCH", PATH, data='{"omega":6,"beta":{"c":3,"y":null},"chi":7}', content_type="application/json"
    )

    merged = '{"zeta":1,"beta":{"a":2,"c":3},"alpha":null,"eta":3,"10":4,"2":5,"omega":6,"chi":7}'
    assert in_order(answer.text) == in_order(merged)


def test_another_order_is_a_change(person):
    """The same members in another order are stored, and read, in the new order."""
    person.call("PUT", PATH, data='{"a":1,"b":2}', content_type="application/json")

    person.call("PUT", PATH, data='{"b":2,"a":1}', content_type="application/json")

    assert in_order(person.call("GET", PATH).text) == [("b", 2), ("a", 1)]


def test_equal_objects_have_equal_tags(person):
    """The order of members means nothing, and ``If-None-Match`` is not honoured."""
    first = person.call("PUT", PATH, data=b'{"a":1,"b":2}', content_type="application/json")
    second = person.call("PUT", PATH, data=b'{ "b": 2, "a": 1 }', content_type="application/json")

    assert first.headers["ETag"] == second.headers["ETag"]
    conditional = person.call("GET", PATH, headers={"If-None-Match": first.headers["ETag"]})
    assert (conditional.status_code, conditional.json) == (200, {"a": 1, "b": 2})


def nested(depth: int) -> object:
    """Containers *depth* deep, objects and lists in turn, an object outside."""
    value: object = "x"
    for level in range(depth, 0, -1):
        value = {"k": value} if level % 2 else [value]
    return value


@pytest.mark.parametrize(
    ("fits", "too_much"),
    [
        (nested(5), nested(6)),
        ({str(n): n for n in range(100)}, {str(n): n for n in range(101)}),
        ({"list": [{str(n): 0} for n in range(99)]}, {"list": [{str(n): 0} for n in range(100)]}),
        ({"t": "x" * (16 * 1024 - 8)}, {"t": "x" * (16 * 1024 - 7)}),
        ({"t": "ü" * (8 * 1024 - 4)}, {"t": "ü" * (8 * 1024 - 3)}),
    ],
    ids=["depth", "keys", "keys in all", "bytes", "bytes of UTF-8"],
)
def test_the_limits_are_exact(pg_api, fits, too_much):
    """Depth 5, 100 keys in all, 16 KiB as JSON: up to there 200, one more 422, by PUT and by PATCH."""
    person = pg_api.someone()
    assert put(person, fits).status_code == 200

    for answer in (put(person, too_much), patch(pg_api.someone(), too_much)):
        assert (answer.status_code, code_of(answer)) == (422, "validation_failed")
        assert answer.json["errors"]
    assert person.call("GET", PATH).json == fits


def test_a_patch_is_measured_by_what_comes_out(person):
    """Many small ones cannot grow beyond the limit, and a large one may shrink."""
    put(person, {str(n): n for n in range(100)})

    assert patch(person, {"100": 0}).status_code == 422
    assert patch(person, {"0": None, "100": 0}).status_code == 200
    assert patch(person, {str(n): None for n in range(300)}).json == {}


@pytest.mark.parametrize("value", [[], None, "x", 1, {"a": "x\x00"}, {"a\x00": 1}, {"a": [{"b": "\ud800"}]}])
@pytest.mark.parametrize("write", [put, patch])
def test_what_is_no_object_or_cannot_be_stored_is_refused(pg_api, write, value):
    """422."""
    answer = write(pg_api.someone(), value)

    assert (answer.status_code, code_of(answer)) == (422, "validation_failed")


@pytest.mark.parametrize("name", ["__proto__", "constructor", "unknown", "data", "json", "_schema", "", " "])
def test_every_name_is_a_users_to_give(pg_api, name):
    """No member has a meaning here."""
    person = pg_api.someone()

    assert put(person, {name: {"x": 1}}).json == {name: {"x": 1}}
    assert patch(person, {name: None}).json == {}


def test_of_many_writers_none_is_lost(pg_api):
    """48 patches of different keys at once: every key is there; who is told to retry does."""
    person = pg_api.someone()

    def write(number: int) -> int:
        while (answer := patch(person, {f"key {number}": number})).status_code == 503:
            assert answer.headers["Retry-After"]
        return int(answer.status_code)

    assert Counter(at_once(write, range(48))) == {200: 48}
    assert person.call("GET", PATH).json == {f"key {number}": number for number in range(48)}


def test_of_many_conditional_writers_one_wins(pg_api):
    """All saw the same tag: one 200, the rest 412."""
    person = pg_api.someone()
    tag = put(person, {"n": -1}).headers["ETag"]

    answers = at_once(lambda number: put(person, {"n": number}, If_Match=tag), range(32))

    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 31}
    (winner,) = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    assert person.call("GET", PATH).json == {"n": winner}
