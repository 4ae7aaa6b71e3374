"""Following the feed: what is asked, what an answer proves, what a failure does not."""

from __future__ import annotations

import json
import math
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from authsvc.verifier.feed import Feed
from authsvc.verifier.transport import Answer, TransportError
from tests.processes import wait_until
from tests.unit.domain.samples import ALICE_ID, SESSION_ID
from tests.unit.verifier.samples import NOW_S, OTHER_ID, Hands, claims_of, item, page

if TYPE_CHECKING:
    from collections.abc import Callable


class Script:
    """A connection whose answers were written down before; each may move the clocks, or fail."""

    def __init__(self, hands: Hands) -> None:
        self.hands = hands
        self.answers: list[Answer | Exception | Callable[[], Answer]] = []
        self.asked: list[dict[str, str]] = []
        self.deadlines_s: list[float] = []
        self.takes_s = 0.0
        self.is_aborted = threading.Event()

    def request(self, method: str, path: str, *, deadline_s: float) -> Answer:
        assert (method, urlsplit(path).path) == ("GET", "/v1/revocations")
        self.asked.append({name: values[0] for name, values in parse_qs(urlsplit(path).query).items()})
        self.deadlines_s.append(deadline_s)
        self.hands.tick(self.takes_s)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def abort(self) -> None:
        self.is_aborted.set()

    def close(self) -> None:
        pass


@pytest.fixture
def hands() -> Hands:
    """Clocks that tests move."""
    return Hands()


@pytest.fixture
def script(hands) -> Script:
    """A connection without a word on it yet."""
    return Script(hands)


def feed_on(script: Any, **options: Any) -> Feed:
    """A feed that is turned by hand."""
    return Feed(script, script.hands.clocks, **{"wait_s": 3.0} | options)


def after(script: Script, *answers: Any, **options: Any) -> Feed:
    """A feed that has had *answers*."""
    feed = feed_on(script, **options)
    script.answers += answers
    for _ in answers:
        feed.turn()
    return feed


def knows(feed: Feed, **changes: Any) -> bool:
    """Whether a check would find the sample token, changed, to be dead."""
    return feed.view is not None and feed.view.known.is_dead(claims_of(**changes))


def test_nothing_is_known_before_all_of_it_is(script):
    """Not after the first page, only after the last; until then nothing waits."""
    feed = feed_on(script)
    script.answers = [
        page(item("session", OTHER_ID), cursor="1", has_more=True),
        page(item("session", SESSION_ID), cursor="2"),
        page(cursor="3"),
    ]

    feed.turn()
    early = (feed.view, feed.age_s, feed.caught_up.is_set())
    feed.turn()
    feed.turn()

    assert early == (None, math.inf, False)
    assert feed.caught_up.is_set()
    assert knows(feed)
    assert [asked.get("after") for asked in script.asked] == [None, "1", "2"]
    assert [asked["wait"] for asked in script.asked] == ["0.000", "0.000", "3.000"]
    assert script.deadlines_s == [2, 2, 5]


def test_an_answer_proves_what_was_so_when_the_service_looked(script, hands):
    """Counted from when it was asked, by this clock alone: what the way took does not make it younger."""
    lags: list[float] = []
    script.takes_s = 3.0

    feed = after(script, page(waited_ms=2500), on_lag=lags.append)

    assert feed.age_s == pytest.approx(0.5)
    assert lags == [pytest.approx(0.5)]
    hands.tick(4)
    assert feed.age_s == pytest.approx(4.5)


def test_a_look_from_before_the_question_makes_it_older(script):
    """A shared look may have been made before this reader asked."""
    feed = after(script, page(waited_ms=-150))

    assert feed.age_s == pytest.approx(0.15)


def test_knowledge_never_gets_older_by_an_answer(script, hands):
    """Another worker may have looked earlier; what was proven stays so."""
    feed = after(script, page(), page(waited_ms=-5000))

    assert feed.age_s == 0


def test_a_part_of_the_news_proves_nothing(script, hands):
    """With more to come, the age goes on."""
    feed = after(script, page())
    hands.tick(2)
    script.answers = [page(item("session", SESSION_ID), has_more=True)]

    feed.turn()

    assert knows(feed)
    assert feed.age_s == pytest.approx(2)


_BROKEN = [
    TransportError("gone"),
    Answer(503, {}, b""),
    Answer(401, {}, b""),
    Answer(302, {"location": "/"}, b""),
    Answer(200, {}, b""),
    Answer(200, {}, b"null"),
    Answer(200, {}, b"{}"),
    Answer(200, {}, b"\xff"),
    page(item("session", "no id")),
    page({"kind": "session"}),
    page({"kind": "planet", "planet_id": OTHER_ID, "until": "2026-11-20T12:00:00+00:00"}),
    page(item("session", OTHER_ID) | {"until": "soon"}),
    page(item("session", OTHER_ID) | {"until": 5}),
    page(item("user", OTHER_ID) | {"epoch": "5"}),
    page(item("user", OTHER_ID) | {"epoch": True}),
    page(cursor=5),  # type: ignore[arg-type]
    page(waited_ms="1"),
    page(waited_ms=1.5),
    page(reset=0),
    page(has_more=None),
    page(retry_after_ms="1"),
    RuntimeError("nobody thought of this"),
]


@pytest.mark.parametrize("failure", _BROKEN, ids=[f"{place}" for place in range(len(_BROKEN))])
def test_what_is_not_understood_is_no_heartbeat(script, hands, failure):
    """The age goes on, and the same is asked again: nothing is passed over."""
    feed = after(script, page(cursor="good"))
    hands.tick(1)
    script.answers = [failure, page(item("session", SESSION_ID), cursor="next")]

    pause_s = feed.turn()
    age_s = feed.age_s
    feed.turn()

    assert 0.05 <= pause_s <= 0.1
    assert age_s == pytest.approx(1)
    assert [asked["after"] for asked in script.asked[1:]] == ["good", "good"]
    assert knows(feed)


def test_failures_are_spaced_and_scattered(script):
    """Doubling to two seconds, each shortened at random; one success and it begins anew."""
    feed = feed_on(script)
    script.answers = [TransportError("gone")] * 12

    pauses = [feed.turn() for _ in range(12)]

    most = [0.1, 0.2, 0.4, 0.8, 1.6, *[2.0] * 7]
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, most, strict=True))
    assert len(set(pauses[5:])) > 1
    script.answers = [page(cursor="x"), TransportError("gone")]
    assert feed.turn() < 0.2
    assert feed.turn() <= 0.1


def test_a_reset_reads_anew_and_keeps_what_cannot_be_wrong(script, hands):
    """Until the new log is read whole, what was known goes on counting, and goes on getting older."""
    feed = after(script, page(item("session", SESSION_ID), item("user", OTHER_ID, epoch=9), cursor="old"))
    hands.tick(1)
    script.answers = [page(item("user", ALICE_ID, epoch=4), cursor="new1", reset=True, has_more=True)]
    feed.turn()
    during = (
        knows(feed),
        knows(feed, session_id=OTHER_ID),
        knows(feed, user_id=OTHER_ID, session_id=OTHER_ID),
    )
    age_s = feed.age_s
    script.answers = [page(cursor="new2")]

    feed.turn()

    assert during == (True, False, True)
    assert age_s == pytest.approx(1)
    assert feed.age_s == 0
    assert knows(feed)
    assert knows(feed, session_id=OTHER_ID)
    assert not knows(feed, user_id=OTHER_ID, session_id=OTHER_ID)
    assert script.asked[-1]["wait"] == "0.000"


def test_a_cursor_that_is_refused_is_given_up(script):
    """Another version of the service may have made it."""
    feed = after(script, page(cursor="old"), Answer(422, {}, b""), page(item("session", SESSION_ID)))

    assert [asked.get("after") for asked in script.asked] == [None, "old", None]
    assert knows(feed)


def test_who_may_not_wait_does_not_ask_in_a_circle(script):
    """As long as the service says, and a little even if it says nothing."""
    feed = after(script, page())
    script.answers = [page(retry_after_ms=500), page(), page(item("session", SESSION_ID))]

    assert [feed.turn(), feed.turn(), feed.turn()] == [0.5, 0.1, 0]


def test_what_is_over_is_forgotten(script, hands):
    """Once a minute, by both clocks."""
    feed = after(script, page(item("session", SESSION_ID, until_s=NOW_S + 30)))
    hands.tick(59)
    script.answers = [page()]
    feed.turn()
    assert knows(feed)
    hands.tick(2)
    script.answers = [page()]

    feed.turn()

    assert not knows(feed)


def test_a_thread_follows_until_it_is_closed(script, hands):
    """Closing ends a wait at once; a closed feed does not begin again."""
    feed = feed_on(script)
    asked = threading.Event()

    def hang() -> Answer:
        asked.set()
        script.is_aborted.wait(60)
        raise TransportError("aborted")

    script.answers = [page(), hang]
    feed.start()
    feed.start()
    assert asked.wait(60)
    names = [thread.name for thread in threading.enumerate()]

    feed.close()
    feed.start()

    assert names.count("verifier-feed") == 1
    wait_until(lambda: "verifier-feed" not in [thread.name for thread in threading.enumerate()])
    assert json.dumps(script.asked[0])
