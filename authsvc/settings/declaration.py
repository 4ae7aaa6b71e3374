"""Declaration of settings: each is a field of its section, with all its properties."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from authsvc.settings.kinds import Kind

T = TypeVar("T")


class ReadSoFar(Protocol):
    """The values that a computed default may depend on."""

    is_development: bool
    cpu_count: int
    #: The values of the variables declared before it, by name.
    read: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable(Generic[T]):
    """One environment variable; the defaults are texts that go through the same parser."""

    name: str
    kind: Kind[T]
    about: str
    default: str | None = None
    #: The default in development, if it differs.
    development: str | None = None
    #: Computes a default that depends on earlier values; ``otherwise`` describes it.
    computed: Callable[[ReadSoFar], T] | None = None
    otherwise: str = ""
    #: True if production requires a value.
    is_required: bool = False

    @property
    def file_name(self) -> str:
        """The variable that names a file with the value, for secrets."""
        return f"{self.name}_FILE"

    @property
    def names(self) -> tuple[str, ...]:
        """All names under which the value may be set."""
        return (self.name, self.file_name) if self.kind.is_secret else (self.name,)

    @property
    def may_be_empty(self) -> bool:
        """True if the empty text is a valid value, not a mistake in a template."""
        return self.default == ""

    def default_in(self, *, is_development: bool) -> str | None:
        """
        The text of the default; a missing required value gets development's, after the problem was recorded.
        """
        if self.default is None or (is_development and self.development is not None):
            return self.development
        return self.default


def setting(name: str, kind: Kind[T], about: str, **more: Any) -> T:  # noqa: ANN401 - the fields of Variable
    """Declare a setting that always has a value; *more* are fields of Variable."""
    return cast("T", field(metadata={Variable: Variable(name=name, kind=kind, about=about, **more)}))


def optional(name: str, kind: Kind[T], about: str, **more: Any) -> T | None:  # noqa: ANN401 - as above
    """Declare a setting that is None by default."""
    return setting(name, kind, about, **more)


def section(of: type[T]) -> T:
    """Declare a part that is its own section."""
    return cast("T", field(metadata={type: of}))


def variables_of(part: type[Any]) -> Iterator[tuple[str, Variable[object]]]:
    """The settings that *part* declares, by field, in order."""
    for each in fields(part):
        if Variable in each.metadata:
            yield each.name, each.metadata[Variable]


def sections_of(part: type[Any]) -> Iterator[tuple[str, type[Any]]]:
    """The sections that *part* declares, by field, in order."""
    for each in fields(part):
        if type in each.metadata:
            yield each.name, each.metadata[type]
