"""Reads variables from a mapping; continues after errors, so that all problems are reported at once."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from authsvc.settings.declaration import sections_of, variables_of
from authsvc.settings.kinds import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from authsvc.settings.declaration import Variable

T = TypeVar("T")

#: A secret longer than this is a mistaken file; it also bounds the read of a device.
MAX_FILE_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem: the variable's *name*; *message* says what is wrong and what is expected."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name} {self.message}"


class SettingsError(Exception):
    """The service must not start; ``problems`` lists all reasons, ``str()`` has one per line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = (f"{len(self.problems)} {noun} in the settings:", *map(str, self.problems))
        super().__init__("\n  ".join(lines))


def available_cores() -> int:
    """The number of cores that this process may use: by its affinity and a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


class Reader:
    """
    Typed values from *env*; ``problems`` collects errors of single variables.

    A wrong variable counts as absent, so that reading always completes; the values are usable only if
    ``problems`` is empty.  *cpu_count* (default: this machine's) sets the workers.
    """

    def __init__(self, env: Mapping[str, str], *, cpu_count: int | None = None) -> None:
        self.env = env
        self.cpu_count = cpu_count or os.cpu_count() or 1
        self.problems: list[Problem] = []
        self.is_development = env.get("AUTHSVC_ENV", "").lower() == "development"
        #: What was read so far, by name: the variable, and its value.
        self.variables: dict[str, Variable[Any]] = {}
        self.read: dict[str, object] = {}

    def section(self, part: type[T]) -> T:
        """Read *part* and the sections in it."""
        values: dict[str, Any] = {name: self.value(variable) for name, variable in variables_of(part)}
        return part(**values, **{name: self.section(inner) for name, inner in sections_of(part)})

    def value(self, variable: Variable[T]) -> T | None:
        """The value of *variable*, or its default; None if it has neither."""
        found = self._found(variable)
        value = found[0] if found else self._default(variable)
        self.variables[variable.name], self.read[variable.name] = variable, value
        return value

    def given(self, *names: str) -> tuple[str, ...]:
        """Those of the variables *names* that the operator set, right or wrong."""
        return tuple(name for name in names if self._is_given(self.variables[name]))

    def is_sound(self, *names: str) -> bool:
        """True unless one of *names* has a problem already: then no further one is derived from it."""
        bad = {problem.name for problem in self.problems}
        return not any(spelling in bad for name in names for spelling in self.variables[name].names)

    def _is_given(self, variable: Variable[Any]) -> bool:
        return any(name in self.env for name in variable.names)

    def _default(self, variable: Variable[T]) -> T | None:
        if variable.computed is not None:
            return variable.computed(self)
        text = variable.default_in(is_development=self.is_development)
        return None if text is None else variable.kind.parse(text)

    def _found(self, variable: Variable[T]) -> tuple[T, ...]:
        """The parsed value, or nothing; errors are added to ``problems``."""
        if not self._is_given(variable):
            if variable.is_required and not self.is_development:
                self._complain(variable.name, f"is missing; expected {variable.kind.expected}")
            return ()
        try:
            return (self._parsed(variable),)
        except InvalidValue as invalid:
            self._complain(variable.name, f"{invalid}; expected {variable.kind.expected}")
            return ()

    def _parsed(self, variable: Variable[T]) -> T:
        text = self._text(variable)
        if text == "" and not variable.may_be_empty:
            raise InvalidValue("is empty")
        if not _is_utf8(text):
            raise InvalidValue("is no UTF-8 text")
        return variable.kind.parse(text)

    def _text(self, variable: Variable[Any]) -> str:
        if not variable.kind.is_secret or variable.file_name not in self.env:
            return self.env[variable.name]
        if variable.name in self.env:
            raise InvalidValue(f"contradicts {variable.file_name}: set one of the two")
        return _file_text(self.env[variable.file_name], variable.file_name)

    def _complain(self, name: str, message: str) -> None:
        self.problems.append(Problem(name=name, message=message))


def _file_text(path: str, name: str) -> str:
    """
    The text of a secret's file, one trailing newline dropped.

    The path is never repeated in a message: if ``X_FILE`` is confused with ``X``, it is the secret.
    """
    if not path:
        raise InvalidValue(f"has no file: {name} is empty")
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidValue(f"cannot be read from the file in {name} ({error.strerror})") from None
    except ValueError:
        raise InvalidValue(f"cannot be read from the file in {name} (it is no path)") from None
    if len(content) > MAX_FILE_BYTES:
        raise InvalidValue(f"is longer than {MAX_FILE_BYTES} bytes in the file in {name}")
    text = content.decode("utf-8", errors="surrogateescape")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
