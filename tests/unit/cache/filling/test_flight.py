"""Who may share what a flight carries: those aboard before the proof was made."""

from __future__ import annotations

from authsvc.cache import SingleFlight


def test_who_boards_before_the_seal_shares_and_who_boards_after_it_does_not():
    """The value was proven current after the first had asked; the second may have asked after a change."""
    flights = SingleFlight()
    flight, leader = flights.board("7")
    _, early = flights.board("7")
    flight.seal()
    _, late = flights.board("7")

    flight.carry("value")
    flights.land("7")

    assert leader == 0
    assert flight.cargo_for(early) == ("value",)
    assert flight.cargo_for(late) is None


def test_a_second_proof_covers_who_boarded_since():
    """A leader that looks again and again for another's fill seals each time."""
    flights = SingleFlight()
    flight, _ = flights.board("7")
    flight.seal()
    _, late = flights.board("7")
    flight.seal()
    flight.carry(None)

    assert flight.cargo_for(late) == (None,)


def test_without_cargo_everybody_looks_again():
    """What was not proven is shared with nobody."""
    flights = SingleFlight()
    flight, _ = flights.board("7")
    _, number = flights.board("7")
    flight.seal()
    flights.land("7")

    assert flight.landed.is_set()
    assert flight.cargo_for(number) is None


def test_after_the_landing_the_next_one_leads():
    """A flight is of one load; keys do not mix."""
    flights = SingleFlight()
    flights.board("7")
    _, other = flights.board("8")
    flights.land("7")

    _, again = flights.board("7")

    assert (other, again) == (0, 0)
