"""What is known to be dead, and when it may be forgotten."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from authsvc.verifier.known import Known, News, Until
from tests.unit.domain.samples import ALICE_ID, SESSION_ID, TOKEN_ID
from tests.unit.verifier.samples import OTHER_ID, claims_of

SOON, LATE = Until(100, 10), Until(200, 110)


def news(kind: str, subject: str, epoch: int = 0, until: Until = SOON) -> News:
    """One item."""
    return News(kind=kind, subject=subject, epoch=epoch, until=until)


def knowing(*items: News) -> Known:
    """Somebody who has heard *items*."""
    known = Known()
    for one in items:
        known.add(one)
    return known


@pytest.mark.parametrize(
    ("item", "is_dead"),
    [
        (news("session", SESSION_ID), True),
        (news("session", OTHER_ID), False),
        (news("token", TOKEN_ID), True),
        (news("token", SESSION_ID), False),
        (news("user", ALICE_ID, 4), True),
        (news("user", ALICE_ID, 3), False),
        (news("user", ALICE_ID, 2), False),
        (news("user", OTHER_ID, 9), False),
    ],
)
def test_a_token_dies_with_its_session_or_its_users_cut_off(item, is_dead):
    """Of a token of epoch 3: a cut-off at its own epoch is what it was issued after."""
    assert knowing(item).is_dead(claims_of()) == is_dead


def test_the_order_of_news_does_not_matter():
    """Repeated or late: the highest epoch and the longest time stay."""
    items = (news("user", ALICE_ID, 4, LATE), news("user", ALICE_ID, 5), news("session", SESSION_ID, 0, LATE))

    heard = [knowing(*order, *order) for order in permutations(items)]

    assert all(known == heard[0] for known in heard)
    assert heard[0].epochs == {ALICE_ID: (5, LATE)}


@pytest.mark.parametrize(("now", "left"), [((99, 9), 3), ((100, 9), 3), ((99, 10), 3), ((100, 10), 0)])
def test_news_is_forgotten_when_both_clocks_have_passed_it(now, left):
    """A wall clock that jumps ahead, and back again, brings no dead token to life."""
    known = knowing(news("session", OTHER_ID), news("token", OTHER_ID), news("user", OTHER_ID, 5))

    known.forget(Until(*now))

    assert len(known) == left


def test_memory_is_bounded_by_time():
    """A steady stream of ends: what is kept is what can still matter, and no more."""
    known = Known()
    sizes: list[Any] = []
    for second in range(300):
        known.add(news("session", f"s{second}", 0, Until(second + 60, second + 60)))
        known.forget(Until(second, second))
        sizes.append(len(known))

    assert max(sizes) == 60


def test_sessions_outlast_a_restored_log_and_cut_offs_do_not():
    """An id is never given twice; a cut-off may be one that the service has forgotten itself."""
    known = knowing(news("session", OTHER_ID), news("token", OTHER_ID), news("user", ALICE_ID, 9))

    kept = known.without_epochs()

    assert known.is_dead(claims_of())
    assert not kept.is_dead(claims_of())
    assert kept.is_dead(claims_of(session_id=OTHER_ID))
    assert kept.is_dead(claims_of(token_id=OTHER_ID))
