"""How a setting is declared: as a field of its section, which carries all that there is to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from authsvc.settings.kinds import Kind

T = TypeVar("T")


class ReadSoFar(Protocol):
    """What a computed default may depend on."""

    is_development: bool
    cpu_count: int
    #: The values of the variables that are declared before it, by name.
    read: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable(Generic[T]):
    """One environment variable; the defaults are texts that go through the same parser."""

    name: str
    kind: Kind[T]
    about: str
    default: str | None = None
    #: Where development differs.
    development: str | None = None
    #: The default where it depends on what was read before; ``otherwise`` says it in words.
    computed: Callable[[ReadSoFar], T] | None = None
    otherwise: str = ""
    #: Missing in production is a problem.
    is_required: bool = False

    @property
    def file_name(self) -> str:
        """The variable that names a file with the value, for secrets."""
        return f"{self.name}_FILE"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the value may come by."""
        return (self.name, self.file_name) if self.kind.is_secret else (self.name,)

    @property
    def may_be_empty(self) -> bool:
        """True where the empty text is a value, not a slip in a template."""
        return self.default == ""

    def default_in(self, *, is_development: bool) -> str | None:
        """The default's text; production takes development's only in place of what it then misses."""
        if self.default is None or (is_development and self.development is not None):
            return self.development
        return self.default


def setting(name: str, kind: Kind[T], about: str, **more: Any) -> T:  # noqa: ANN401 - the fields of Variable
    """Declare a setting that always has a value; *more* are fields of Variable."""
    return cast("T", field(metadata={Variable: Variable(name=name, kind=kind, about=about, **more)}))


def optional(name: str, kind: Kind[T], about: str, **more: Any) -> T | None:  # noqa: ANN401 - as above
    """Declare a setting that is None where nobody sets it."""
    return setting(name, kind, about, **more)


def section(of: type[T]) -> T:
    """Declare a part that is a section of its own."""
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
