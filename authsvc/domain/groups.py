"""
Runs one use case for several requests at once, so that they share the round trips to SQL and Redis.

Such a use case is a generator.  It yields the calls that others of its group may make at the same time, and
gets their results; everything between is its own.  What only one of them has to wait for must not delay the
others: it leaves the group (:func:`by_itself`), and is run again alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

#: Makes one call for many: a result for each argument, or the error of this one.
Many: TypeAlias = Callable[[Sequence[A]], Sequence[R | Exception]]
#: Calls a function within the context of one request (``contextvars``).
Within: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Call(Generic[A, R]):
    """A call that a use case waits for."""

    many: Many[A, R]
    argument: A


#: A use case that returns a value of the type.
Steps: TypeAlias = Generator[Call[Any, Any], Any, T]


def call(many: Many[A, R], argument: A) -> Steps[R]:
    """Use ``yield from`` on this: the result of *many* for *argument*; raises its error."""
    return cast("R", (yield Call(many, argument)))


class Postponed(Exception):
    """A use case that has changed nothing yet, and has to be run alone."""


def by_itself() -> Steps[None]:
    """
    Use ``yield from`` on this before waiting for something that the others of a group do not wait for.

    Raises Postponed in a group: undo what was done, and pass it on.
    """
    return (yield from call(_stay, None))


def _stay(many: Sequence[None]) -> Sequence[None]:
    return many


def _leave(many: Sequence[None]) -> Sequence[Exception]:
    return [Postponed() for _ in many]


def alone(steps: Steps[T]) -> T:
    """Run one use case by itself."""
    (outcome,) = _run([_Member(_here, steps)], _stay)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def together(group: Sequence[tuple[Within, Steps[T]]]) -> list[T | Exception]:
    """
    Run all use cases of *group*, each in its own context; returns what each returned or raised.

    Equal calls that wait at the same time are made as one. If one fails as a whole, all who wait for it get
    its error.
    """
    return _run([_Member(within, steps) for within, steps in group], _leave)


def _run(members: Sequence[_Member[T]], on_own_wait: Many[None, None]) -> list[T | Exception]:
    for member in members:
        member.go_on(None)
    while waiting := [member for member in members if member.waits_for is not None]:
        for many, some in _by_call(waiting):
            results = _results(on_own_wait if many is _stay else many, some)
            for member, result in zip(some, results, strict=True):
                member.go_on(result)
    return [member.outcome for member in members]


class _Member(Generic[T]):
    """One use case of a group."""

    __slots__ = ("outcome", "steps", "waits_for", "within")

    def __init__(self, within: Within, steps: Steps[T]) -> None:
        self.within = within
        self.steps = steps
        self.waits_for: Call[Any, Any] | None = None
        self.outcome: T | Exception

    def go_on(self, result: object) -> None:
        """Run it with the *result* that it waits for, up to its next call or its end."""
        resume = self.steps.throw if isinstance(result, Exception) else self.steps.send
        try:
            self.waits_for = self.within(resume, result)
        except StopIteration as end:
            self.waits_for, self.outcome = None, end.value
        except Exception as error:  # noqa: BLE001 - the outcome of this member; the others go on
            self.waits_for, self.outcome = None, error


def _by_call(waiting: Sequence[_Member[T]]) -> list[tuple[Many[Any, Any], list[_Member[T]]]]:
    """The members that wait, by what they wait for."""
    found: dict[Many[Any, Any], list[_Member[T]]] = {}
    for member in waiting:
        found.setdefault(cast("Call[Any, Any]", member.waits_for).many, []).append(member)
    return list(found.items())


def _results(many: Many[Any, Any], members: Sequence[_Member[T]]) -> Sequence[object]:
    arguments = [cast("Call[Any, Any]", member.waits_for).argument for member in members]
    # What is logged for one request alone has its request id.
    within = members[0].within if len(members) == 1 else _here
    try:
        return cast("Sequence[object]", within(many, arguments))
    except Exception as error:  # noqa: BLE001 - raised in each member
        return [error] * len(members)


def _here(function: Callable[..., R], *args: object) -> R:
    return function(*args)
