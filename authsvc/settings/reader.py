"""Reads variables from a mapping, and goes on after a wrong one so that all are named at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from authsvc.settings import variables as v
from authsvc.settings.groups import Environment
from authsvc.settings.kinds import Unfit
from authsvc.settings.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from authsvc.settings.variables import Variable

T = TypeVar("T")

#: A secret longer than this is a mistaken file; it also bounds the read of a device.
MAX_FILE_BYTES = 65_536


class Reader:
    """
    Typed values out of *env*; ``problems`` collects what is wrong with single variables.

    A wrong variable reads as if it were absent, so that reading never stops half way; the values
    are of use only while ``problems`` is empty.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.problems: list[Problem] = []
        self.is_development = False
        self.environment = self.value(v.ENVIRONMENT)
        self.is_development = self.environment is Environment.DEVELOPMENT

    def value(self, variable: Variable[T]) -> T:
        """The value of a *variable* that has a default."""
        default = variable.default_in(is_development=self.is_development)
        return self.value_or(variable, variable.kind.parse(default))

    def value_or(self, variable: Variable[T], otherwise: T) -> T:
        """The value of *variable*; *otherwise* when it is absent or wrong."""
        found = self._found(variable)
        return found[0] if found else otherwise

    def optional(self, variable: Variable[T]) -> T | None:
        """The value of *variable*; None when it is absent or wrong."""
        found = self._found(variable)
        return found[0] if found else None

    def given(self, *variables: Variable[object]) -> tuple[str, ...]:
        """The names of those *variables* that the operator set, right or wrong."""
        return tuple(x.name for x in variables if any(name in self.env for name in x.names))

    def is_sound(self, *variables: Variable[object]) -> bool:
        """True unless one of *variables* has a problem already: then no second one is drawn from it."""
        bad = {problem.name for problem in self.problems}
        return not any(name in bad for variable in variables for name in variable.names)

    def _found(self, variable: Variable[T]) -> tuple[T, ...]:
        """The parsed value, or nothing; what is wrong goes on the list."""
        if not self.given(variable):
            if variable.is_required and not self.is_development:
                self._complain(variable.name, f"is missing; expected {variable.kind.expected}")
            return ()
        try:
            return (self._parsed(variable),)
        except Unfit as unfit:
            self._complain(variable.name, f"{unfit}; expected {variable.kind.expected}")
            return ()

    def _parsed(self, variable: Variable[T]) -> T:
        text = self._text(variable)
        if text == "" and not variable.may_be_empty:
            raise Unfit("is empty")
        if not _is_utf8(text):
            raise Unfit("is no UTF-8 text")
        return variable.kind.parse(text)

    def _text(self, variable: Variable[object]) -> str:
        if not variable.kind.is_secret or variable.file_name not in self.env:
            return self.env[variable.name]
        if variable.name in self.env:
            raise Unfit(f"contradicts {variable.file_name}: set one of the two")
        return _file_text(self.env[variable.file_name], variable.file_name)

    def _complain(self, name: str, message: str) -> None:
        self.problems.append(Problem(name=name, message=message))


def _file_text(path: str, name: str) -> str:
    """
    The text of a secret's file, one trailing newline dropped.

    The path is never repeated: who confuses ``X_FILE`` with ``X`` writes the secret there.
    """
    if not path:
        raise Unfit(f"has no file: {name} is empty")
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Unfit(f"cannot be read from the file in {name} ({error.strerror})") from None
    except ValueError:
        raise Unfit(f"cannot be read from the file in {name} (it is no path)") from None
    if len(content) > MAX_FILE_BYTES:
        raise Unfit(f"is longer than {MAX_FILE_BYTES} bytes in the file in {name}")
    text = content.decode("utf-8", errors="surrogateescape")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
