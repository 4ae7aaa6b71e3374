"""Merge patch, entity tags and limits of preferences."""

from __future__ import annotations

import copy
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authsvc.domain.errors import Invalid, PreconditionFailed
from authsvc.domain.preferences import Condition, PreferenceBook, checked, entity_tag, merge
from authsvc.domain.revocations import Committed, Proof, Revocations
from authsvc.domain.users import User, UserStore
from authsvc.domain.values.jsontext import Json, canonical
from authsvc.domain.values.shards import Sharded
from tests.unit.domain.samples import ALICE_ID, user

NAMES = st.sampled_from(["a", "b", "c"])
LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=2)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=3)


@pytest.mark.parametrize(
    ("original", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_does_what_the_standard_says(original, patch, result):
    """The test cases of RFC 7396, appendix A, whose patch is an object."""
    assert merge(original, patch) == result


@settings(max_examples=40)
@given(OBJECTS, OBJECTS)
def test_patching_twice_is_patching_once(target, patch):
    """A client may repeat a request whose answer was lost."""
    once = merge(target, patch)

    assert merge(once, patch) == once


@settings(max_examples=40)
@given(OBJECTS)
def test_an_empty_patch_changes_nothing(target):
    """And a patch of an empty object is its content without the nulls."""
    assert merge(target, {}) == target


@settings(max_examples=40)
@given(OBJECTS, OBJECTS)
def test_the_result_has_what_the_patch_says_and_the_rest_of_the_target(target, patch):
    """Member by member: null removes, an object merges, all else replaces, the unnamed stays."""
    merged = merge(target, patch)

    assert {name: value for name, value in merged.items() if name not in patch} == {
        name: value for name, value in target.items() if name not in patch
    }
    for name, value in patch.items():
        if value is None:
            assert name not in merged
        elif isinstance(value, dict):
            assert merged[name] == merge(target.get(name), value)
        else:
            assert merged[name] == value


@settings(max_examples=40)
@given(OBJECTS, OBJECTS)
def test_neither_target_nor_patch_is_changed(target, patch):
    """The stored object is replaced by another one, never written to."""
    before = copy.deepcopy((target, patch))

    merge(target, patch)

    assert (target, patch) == before


@settings(max_examples=40)
@given(OBJECTS, OBJECTS)
def test_entity_tags_are_equal_where_the_objects_are(one, other):
    """Equal as JSON: ``1`` and ``true`` are two values, whatever Python thinks."""
    assert (entity_tag(one) == entity_tag(other)) is (canonical(one) == canonical(other))
    assert entity_tag(dict(reversed(one.items()))) == entity_tag(one)


def test_an_entity_tag_is_strong_and_quoted():
    """As RFC 9110 §8.8.3 writes it."""
    tag = entity_tag({})

    assert tag[0] == tag[-1] == '"'
    assert tag[1:-1].isalnum()


def nested(depth: int) -> dict[str, Json]:
    """An object of *depth* containers."""
    return {"a": nested(depth - 1)} if depth > 1 else {}


def sized(size_bytes: int) -> dict[str, Json]:
    """An object whose JSON has *size_bytes* bytes."""
    return {"a": "x" * (size_bytes - len('{"a":""}'))}


@pytest.mark.parametrize(
    "preferences",
    [
        pytest.param({}, id="empty"),
        pytest.param(nested(5), id="5 deep"),
        pytest.param({"a": [[[[1, 2, 3]]]]}, id="5 deep by lists"),
        pytest.param({str(number): 0 for number in range(100)}, id="100 keys"),
        pytest.param({"a": [{str(number): 0} for number in range(99)]}, id="100 keys at any depth"),
        pytest.param(sized(16 * 1024), id="16 KiB"),
    ],
)
def test_what_is_within_the_limits_is_taken(preferences):
    """Up to the very last key, level and byte."""
    assert checked(preferences) is preferences


@pytest.mark.parametrize(
    ("preferences", "messages"),
    [
        pytest.param(nested(6), 1, id="6 deep"),
        pytest.param({"a": [[[[[]]]]]}, 1, id="6 deep by lists"),
        pytest.param({str(number): 0 for number in range(101)}, 1, id="101 keys"),
        pytest.param({"a": [{str(number): 0} for number in range(100)]}, 1, id="101 keys at any depth"),
        pytest.param(sized(16 * 1024 + 1), 1, id="one byte too many"),
        pytest.param({"a": "é" * 8 * 1024}, 1, id="too many bytes in fewer characters"),
        pytest.param({"b": nested(6), **{"n" * 200 + str(n): 0 for n in range(101)}}, 3, id="all at once"),
    ],
)
def test_what_is_beyond_a_limit_is_refused_with_every_reason(preferences, messages):
    """The messages say the limits and nothing of the values."""
    with pytest.raises(Invalid) as refusal:
        checked(preferences)

    assert list(refusal.value.errors) == ["preferences"]
    assert len(refusal.value.errors["preferences"]) == messages


@pytest.mark.parametrize(
    ("tags", "holds"),
    [
        (None, True),
        ({"*"}, True),
        ({entity_tag({"a": 1})}, True),
        ({entity_tag({}), entity_tag({"a": 1})}, True),
        ({entity_tag({})}, False),
        (set(), False),
        ({"W/" + entity_tag({"a": 1})}, False),
    ],
)
def test_a_condition_holds_for_one_of_its_tags(tags, holds):
    """None is no condition, ``*`` is any state, a weak tag never matches strongly."""
    condition = Condition(frozenset(tags) if tags is not None else None)

    assert condition.holds({"a": 1}) is holds


class OneUser:
    """A store of one user, changed in place."""

    def __init__(self, stored: User) -> None:
        self.stored = stored

    def get(self, _user_id):
        """The one."""
        return self.stored

    def change(self, _user_id, rule):
        """Apply the rule."""
        self.stored = rule(self.stored)
        return Committed(self.stored)


class NoIndex:
    """Never reached: nothing was committed to the log."""

    def write(self, entries: object) -> None:
        """Fail."""
        raise AssertionError(entries)


def book(**preferences) -> PreferenceBook:
    """The use case over a user with *preferences*."""
    store = cast("UserStore", OneUser(user(preferences=preferences)))
    return PreferenceBook(store, Revocations(NoIndex(), Sharded((Proof(300),))))


def test_a_put_replaces_and_a_patch_merges():
    """Both answer with what is stored now."""
    preferences = book(a=1, b=2)

    patched = preferences.patch(ALICE_ID, {"b": None, "c": 3}, if_match=Condition())
    assert patched.value.preferences == preferences.get(ALICE_ID) == {"a": 1, "c": 3}

    replaced = preferences.replace(ALICE_ID, {"d": 4}, if_match=Condition())
    assert replaced.value.preferences == preferences.get(ALICE_ID) == {"d": 4}


def test_a_write_for_another_version_is_refused():
    """Nothing is stored."""
    preferences = book(a=1)

    with pytest.raises(PreconditionFailed):
        preferences.replace(ALICE_ID, {}, if_match=Condition(frozenset({entity_tag({})})))

    assert preferences.get(ALICE_ID) == {"a": 1}


def test_a_patch_is_judged_by_its_result():
    """A small patch of a full object can be too much; what grows too large is not stored."""
    full = {str(number): 0 for number in range(100)}
    preferences = book(**full)

    with pytest.raises(Invalid):
        preferences.patch(ALICE_ID, {"one": "more"}, if_match=Condition())
    preferences.patch(ALICE_ID, {"one": "more", "0": None}, if_match=Condition())

    assert len(preferences.get(ALICE_ID)) == 100
