"""Who may use the result of a shared load: those who joined before the proof was made."""

from __future__ import annotations

from authsvc.cache import SingleFlight


def test_who_joins_before_the_proof_shares_and_who_joins_after_it_does_not():
    """The value was proven current after the first had asked; the second may have asked after a change."""
    single_flight = SingleFlight()
    load, leader = single_flight.join("7")
    _, early = single_flight.join("7")
    load.begin_proof()
    _, late = single_flight.join("7")

    load.set_result("value")
    single_flight.finish("7")

    assert leader == 0
    assert load.result_for(early) == ("value",)
    assert load.result_for(late) is None


def test_a_second_proof_covers_who_joined_since():
    """A leader that looks again and again for another's fill begins a proof each time."""
    single_flight = SingleFlight()
    load, _ = single_flight.join("7")
    load.begin_proof()
    _, late = single_flight.join("7")
    load.begin_proof()
    load.set_result(None)

    assert load.result_for(late) == (None,)


def test_without_a_result_everybody_looks_again():
    """What was not proven is shared with nobody."""
    single_flight = SingleFlight()
    load, _ = single_flight.join("7")
    _, number = single_flight.join("7")
    load.begin_proof()
    single_flight.finish("7")

    assert load.finished.is_set()
    assert load.result_for(number) is None


def test_after_the_end_the_next_one_leads():
    """A load is of one key and ends once; keys do not mix."""
    single_flight = SingleFlight()
    single_flight.join("7")
    _, other = single_flight.join("8")
    single_flight.finish("7")

    _, again = single_flight.join("7")

    assert (other, again) == (0, 0)
