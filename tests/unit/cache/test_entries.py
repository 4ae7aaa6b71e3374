"""Cached records as JSON."""

from __future__ import annotations

import json
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.cache import Entry, Flaw
from authsvc.cache.entry import decode, encode, pack, unpack

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
FIELDS = st.dictionaries(
    st.text().filter(lambda name: name not in {"_v", "_s", "_t", "_n", "id"}), JSON, max_size=5
)


def stored(**fields):
    """Return *fields* as stored for user 7 in schema 3 at row version 5, with changes."""
    return json.dumps({"id": "7", "_v": 5, "_s": 3} | fields).encode()


def read(raw):
    """Read *raw* as user 7 in schema 3."""
    return decode(raw, schema=3, id_field="id", id_value="7")


@given(FIELDS, st.integers(min_value=0))
def test_what_is_stored_is_what_is_read(fields, row_version):
    """Every JSON value survives, falsy ones and nested ones too."""
    entry = Entry({"id": "7"} | fields, row_version)

    assert read(encode(entry, schema=3)) == entry


def test_a_person_can_read_it():
    """The record's fields stand at the top, beside the two versions."""
    text = encode(Entry({"id": "7", "name": "Zoë"}, 5), schema=3)

    assert text.decode() == '{"id":"7","name":"Zoë","_v":5,"_s":3}'


@pytest.mark.parametrize(
    "fields", [{"_v": 1}, {"_s": 1}, {"x": float("nan")}, {"x": float("inf")}, {"x": "\ud800"}]
)
def test_what_json_cannot_say_is_refused(fields):
    """A record that would not come back as it was is not stored."""
    with pytest.raises(ValueError, match=r"."):
        encode(Entry(fields, 1), schema=3)


@pytest.mark.parametrize(
    ("raw", "flaw"),
    [
        (b"", Flaw.UNDECODABLE),
        (b"{", Flaw.UNDECODABLE),
        (b"\xff", Flaw.UNDECODABLE),
        (b"[" * 100_000, Flaw.UNDECODABLE),
        (b'["_v", "_s"]', Flaw.UNDECODABLE),
        (b"\x80\x04K\x07.", Flaw.UNDECODABLE),
        (stored(name=float("nan")), Flaw.UNDECODABLE),
        (stored(_v=None), Flaw.UNDECODABLE),
        (stored(_v="5"), Flaw.UNDECODABLE),
        (stored(_v=True), Flaw.UNDECODABLE),
        (stored(_v=5.0), Flaw.UNDECODABLE),
        (stored(_s=2), Flaw.OTHER_SCHEMA),
        (stored(_s=None), Flaw.OTHER_SCHEMA),
        (stored(id="8"), Flaw.OTHER_ID),
        (stored(id=7), Flaw.OTHER_ID),
    ],
)
def test_what_is_not_the_record_asked_for_is_not_believed(raw, flaw):
    """Damage, another shape and another's record each have a name."""
    assert read(raw) is flaw


@given(st.binary(max_size=200))
def test_no_bytes_raise(raw):
    """Whatever lies in Redis, reading it gives an entry or a flaw."""
    assert isinstance(read(raw), Entry | Flaw)


@pytest.mark.parametrize("text", [b"{}", b"x" * 2000, "é\u0000".encode() * 1000])
def test_what_is_packed_comes_back(text):
    """Whatever its bytes; what would not become shorter stays as it is."""
    packed = pack(text, row_version=7, over_bytes=100)

    assert (packed if packed[:1] != b"z" else unpack(packed)) == text
    assert len(packed) <= len(text)


def test_a_packed_text_may_not_be_longer_than_it_says():
    """100 MB behind a header of ten bytes: refused, and never unfolded."""
    bomb = b"z1:10:" + zlib.compress(bytes(100 << 20))
    tracemalloc.start()
    unpacked = unpack(bomb)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert unpacked is None
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize(
    "broken",
    [
        b"z",
        b"z1:3:",
        b"z1:3:abc",
        b"z1:4:" + zlib.compress(b"abc"),
        b"z1:3:" + zlib.compress(b"abc")[:-2],
        b"z1:99999999:" + zlib.compress(b"abc"),
        b"z:3:" + zlib.compress(b"abc"),
        b"zx:3:" + zlib.compress(b"abc"),
    ],
)
def test_a_broken_packing_is_undecodable(broken):
    """Cut off, lying about its length, or no packing at all."""
    assert unpack(broken) is None
    assert decode(broken, schema=1, id_field="id", id_value="7") is Flaw.UNDECODABLE
