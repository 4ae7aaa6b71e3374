"""JSON is read strictly, and never takes long to refuse."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.domain.values.jsontext import InvalidJson, canonical, depth, parse

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(['"', "\\", '\\"', "[", "]{", '"}', "\u2028", "é"])
)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
ANY_BYTES = st.binary(max_size=60) | st.text('{}[]",:\\0123456789.eE+-tfn u', max_size=40).map(str.encode)
FORMS = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def nesting(value: object) -> int:
    """How many containers lie in each other."""
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(nesting, value), default=0)
    return 0


def encoded(value: object, form: dict[str, Any]) -> bytes:
    """*value* as one of the ways to write it; what cannot be UTF-8 is escaped."""
    try:
        return json.dumps(value, **form).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


@given(DOCUMENTS, FORMS)
def test_valid_json_is_read_as_everybody_reads_it(document, form):
    """The strict reader agrees with the ordinary one on what both take."""
    data = encoded(document, form)

    assert repr(parse(data)) == repr(json.loads(data))


@given(DOCUMENTS, FORMS)
def test_depth_is_that_of_the_containers(document, form):
    """Brackets and quotes inside strings do not count, however they are escaped."""
    assert depth(encoded(document, form).decode()) == nesting(document)


@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]",:\\0123456789.eE+-tfn u', max_size=40).map(str.encode)
)
def test_nothing_but_its_own_error_leaves_the_reader(data):
    """And what it takes, the ordinary reader takes, too, with the same result."""
    try:
        value = parse(data)
    except InvalidJson:
        return

    assert repr(json.loads(data)) == repr(value)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="unfinished"),
        pytest.param(b"{} {}", id="two values"),
        pytest.param(b'{"a": 1, "a": 1}', id="duplicate names"),
        pytest.param(b'{"a": 1, "\\u0061": 2}', id="duplicate names in two spellings"),
        pytest.param(b'[{"b": {"a": 1, "a": 2}}]', id="duplicate names within"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"[Infinity]", id="Infinity"),
        pytest.param(b"-Infinity", id="-Infinity"),
        pytest.param(b"1e999", id="beyond a float"),
        pytest.param(b"9" * 5000, id="beyond what is converted"),
        pytest.param(b'"\xff"', id="not UTF-8"),
        pytest.param(b'"\xed\xa0\x80"', id="a surrogate in UTF-8"),
        pytest.param("{}".encode("utf-16"), id="UTF-16"),
        pytest.param("{}".encode("utf-16-le"), id="UTF-16 without mark"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
        pytest.param(b"'a'", id="single quotes"),
        pytest.param(b"[1,]", id="trailing comma"),
        pytest.param(b'"\n"', id="bare line feed in a string"),
        pytest.param(b"[" * 100_000, id="100,000 brackets"),
        pytest.param(b'{"a":' * 33 + b"1" + b"}" * 33, id="33 deep"),
    ],
)
def test_what_two_readers_could_take_differently_is_refused(data):
    """One error for all, which repeats nothing of the text."""
    with pytest.raises(InvalidJson) as refusal:
        parse(data)

    assert len(str(refusal.value)) < 40


def test_nesting_is_taken_up_to_the_limit():
    """32 containers are, by default; the limit is the caller's."""
    deepest = b"[" * 32 + b"]" * 32

    assert nesting(parse(deepest)) == 32
    with pytest.raises(InvalidJson):
        parse(deepest, max_depth=31)


@pytest.mark.parametrize("start", [b'"', b"", b'{"a', b"["])
def test_escaped_quotes_without_end_are_refused_at_once(start):
    """64 KiB of them once took a quarter of a minute: each quote began another scan of all the rest."""
    data = start + b'\\"' * 32_000
    began_s = time.perf_counter()

    with pytest.raises(InvalidJson):
        parse(data)

    assert time.perf_counter() - began_s < 5


@given(DOCUMENTS)
def test_the_canonical_text_reads_back(document):
    """It says all there is, in the order of names."""
    assert repr(json.loads(canonical(document))) == repr(json.loads(json.dumps(document, sort_keys=True)))


@given(st.dictionaries(st.text(max_size=4), LEAVES, max_size=5), st.randoms())
def test_the_canonical_text_does_not_know_the_order_of_names(members, random):
    """Equal objects have equal texts."""
    names = list(members)
    random.shuffle(names)

    assert canonical({name: members[name] for name in names}) == canonical(members)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_has_no_canonical_text(number):
    """Better an error than a text that no reader takes."""
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"n": number})
