"""Signing keys: fetched when needed, never in a storm, and never used beyond their age."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from authsvc.verifier.errors import KeysUnknown
from authsvc.verifier.keys import KeySet, parse_keys
from authsvc.verifier.transport import Answer, TransportError
from tests.processes import wait_until
from tests.unit.domain.samples import signing_key
from tests.unit.verifier.samples import Hands, jwks

OLD, NEW = signing_key("ES256"), signing_key("EdDSA")


class Publisher:
    """Answers for the key set, counts how often, and can be away or slow."""

    def __init__(self) -> None:
        self.keys = (OLD,)
        self.cache_control = "public, max-age=300"
        self.asked = 0
        self.is_away = False
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self) -> Answer:
        self.asked += 1
        self.gate.wait(60)
        if self.is_away:
            raise TransportError("gone")
        return Answer(200, {"cache-control": self.cache_control}, jwks(*self.keys))


@pytest.fixture
def publisher() -> Publisher:
    """One that publishes the old key."""
    return Publisher()


@pytest.fixture
def hands() -> Hands:
    """A clock that tests move."""
    return Hands()


@pytest.fixture
def keys(publisher, hands) -> KeySet:
    """Its keys, fetched for unknown ids every ten seconds at most."""
    return KeySet(publisher, hands.clocks.monotonic_s, refetch_s=10)


def test_keys_are_fetched_once_and_kept(keys, publisher, hands):
    """Nothing before the first use; from then on no request for a key that is known and young."""
    assert publisher.asked == 0

    for _ in range(20):
        found = keys.find(OLD.kid)
        hands.tick(10)

    assert found is not None
    assert (found.algorithm, publisher.asked) == ("ES256", 1)


def test_a_new_key_is_seen_at_its_first_token(keys, publisher, hands):
    """An unknown id is a reason to look."""
    keys.find(OLD.kid)
    hands.tick(10)
    publisher.keys = (OLD, NEW)

    found = keys.find(NEW.kid)

    assert found is not None
    assert found.algorithm == "EdDSA"
    assert publisher.asked == 2


def test_a_storm_of_unknown_ids_is_one_request_a_second(keys, publisher, hands):
    """Whatever the load and however many ids: counted exactly, over half a minute and ten threads."""
    keys.find(OLD.kid)
    for second in range(30):
        hands.tick(1)
        with ThreadPoolExecutor(10) as threads:
            found = list(threads.map(keys.find, [f"made-up-{second}-{number}" for number in range(30)]))
        assert found == [None] * 30

    assert publisher.asked == 1 + 30
    assert keys.find(OLD.kid) is not None


def test_an_id_that_is_known_to_be_no_key_is_one_request_in_ten_seconds(keys, publisher, hands):
    """A client that goes on showing a token of a key that was removed costs next to nothing."""
    keys.find(OLD.kid)
    for _ in range(30):
        hands.tick(1)
        assert [keys.find("removed") for _ in range(30)] == [None] * 30

    assert publisher.asked == 1 + 3


def test_a_new_key_is_not_taken_for_a_forged_one_while_the_publisher_is_away(keys, publisher, hands):
    """Nobody can say that it is none: unknown, not invalid; found a second after the publisher is back."""
    keys.find(OLD.kid)
    hands.tick(10)
    publisher.keys, publisher.is_away = (OLD, NEW), True

    for _ in range(20):
        with pytest.raises(KeysUnknown):
            keys.find(NEW.kid)
        assert keys.find(OLD.kid) is not None
        hands.tick(0.5)
    publisher.is_away = False
    hands.tick(0.5)

    assert keys.find(NEW.kid) is not None
    assert publisher.asked == 1 + 10 + 1


def test_forged_ids_delay_a_new_key_by_a_second_at_most(keys, publisher, hands):
    """Each had the keys fetched a moment ago; that one second later is enough, whatever comes in between."""
    keys.find(OLD.kid)
    hands.tick(10)
    assert keys.find("forged") is None
    publisher.keys = (OLD, NEW)
    hands.tick(0.5)

    assert keys.find("also forged") is None
    assert keys.find(NEW.kid) is None
    hands.tick(0.5)

    assert keys.find("also forged") is None
    assert keys.find(NEW.kid) is not None


def test_an_answer_that_took_long_refuses_nobody_who_came_later(keys, publisher, hands):
    """The key may have been published while it was on its way: unknown, not invalid."""
    keys.find(OLD.kid)
    hands.tick(10)
    publisher.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        forged = threads.submit(keys.find, "forged")
        wait_until(lambda: publisher.asked == 2)
        hands.tick(1.5)
        late = threads.submit(keys.find, NEW.kid)
        publisher.gate.set()

        assert forged.result() is None
        assert isinstance(late.exception(), KeysUnknown)


def test_who_comes_while_keys_are_fetched_waits_for_that_answer(keys, publisher):
    """One request for all of them, and a key for each."""
    publisher.gate.clear()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(keys.find, OLD.kid) for _ in range(8)]
        wait_until(lambda: publisher.asked == 1)
        publisher.gate.set()

        assert all(found.result() is not None for found in waiting)

    assert publisher.asked == 1


def test_keys_are_renewed_aside_before_they_are_too_old(keys, publisher, hands):
    """Requests go on with the old ones meanwhile; a removed key is gone with the answer."""
    keys.find(OLD.kid)
    publisher.keys = (NEW,)
    publisher.gate.clear()
    hands.tick(240)

    assert all(keys.find(OLD.kid) is not None for _ in range(5))
    wait_until(lambda: publisher.asked == 2)
    publisher.gate.set()

    def is_gone() -> bool:
        return keys.find(OLD.kid) is None

    wait_until(is_gone)
    assert publisher.asked == 2


@pytest.mark.parametrize(
    ("cache_control", "life_s"),
    [
        ("public, max-age=300", 300),
        ("max-age=60", 60),
        ("max-age=1", 30),
        ("max-age=999999", 3600),
        ("no-store", 300),
        ("s-max-age=50", 300),
        ("", 300),
    ],
)
def test_keys_live_as_long_as_their_publisher_says(publisher, hands, keys, cache_control, life_s):
    """Within bounds; from then on nothing is known, for whoever removed a key meant it."""
    publisher.cache_control = cache_control
    keys.find(OLD.kid)
    publisher.is_away = True
    hands.tick(life_s - 0.1)

    assert keys.find(OLD.kid) is not None
    hands.tick(0.2)
    with pytest.raises(KeysUnknown):
        keys.find(OLD.kid)


def test_a_publisher_that_is_away_is_asked_once_a_second(keys, publisher, hands):
    """And found again when it is back, without anybody's doing."""
    publisher.is_away = True
    for _ in range(30):
        with pytest.raises(KeysUnknown):
            keys.find(OLD.kid)
        hands.tick(0.1)
    asked = publisher.asked
    publisher.is_away = False
    hands.tick(1)

    assert keys.find(OLD.kid) is not None
    assert asked == 3


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, {}, jwks(OLD)),
        Answer(302, {"location": "https://elsewhere.example.com"}, b""),
        Answer(200, {}, b""),
        Answer(200, {}, b"<html>"),
        Answer(200, {}, b"[]"),
        Answer(200, {}, b'{"keys": {}}'),
        Answer(200, {}, b'{"keys": []}'),
        Answer(200, {}, b'{"keys": [1, null, {}]}'),
        Answer(200, {}, b"\xff"),
    ],
    ids=range(9),
)
def test_what_is_no_key_set_changes_nothing(hands, answer):
    """The keys that there are stay."""
    answers = [Answer(200, {}, jwks(OLD)), answer]
    keys = KeySet(lambda: answers.pop(0), hands.clocks.monotonic_s, refetch_s=10)
    keys.find(OLD.kid)
    hands.tick(20)

    with pytest.raises(KeysUnknown):
        keys.find("unknown")
    assert not answers
    assert keys.find(OLD.kid) is not None


def weakened(**changes: Any) -> bytes:
    """The key set with one good key, and another one that is changed."""
    return json.dumps({"keys": [NEW.jwk, OLD.jwk | changes]}).encode()


_P384 = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
_SHORT = jwt.algorithms.RSAAlgorithm.to_jwk(
    rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(), as_dict=True
)


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "new"},
        {"kid": 5},
        {"d": "AAAA"},
        {"x": "!"},
        _P384,
        {**_SHORT, "kty": "RSA", "alg": "RS256"},
    ],
)
def test_only_keys_for_these_signatures_are_taken(changes):
    """Not secrets, not private or weak ones, not those for anything else; the others are not harmed."""
    assert set(parse_keys(weakened(**changes))) == {NEW.kid}


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.text(max_size=3), st.lists).map(json.dumps).map(str.encode)
)
def test_any_answer_is_keys_or_a_value_error(body):
    """Nothing else leaves the parser."""
    try:
        parse_keys(body)
    except ValueError:
        return
    pytest.fail("nothing of this kind is a key set")
