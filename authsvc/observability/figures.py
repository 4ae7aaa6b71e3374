"""
The files that worker processes share their figures by, and what to do when somebody deletes them.

A deleted file stays mapped, so that counting never fails; its figures would only be lost to the scrape.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Protocol

from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

#: Read by prometheus_client itself at many places; any other name for it could only disagree.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: A file may go, or be half made by a starting worker, between being listed and being read.
_UNREADABLE = (OSError, struct.error, ValueError, TypeError, RuntimeError)
_ATTEMPTS = 3


class SharedFigures(Collector):
    """This process's files in *folder*, and the sum over those of all processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._owner = _Owner()
        self._prefixes: set[str] = set()
        self._values: list[_Value] = []
        self._make: Callable[..., _Value] = values.MultiProcessValue(self._owner)  # type: ignore[no-untyped-call]
        # prometheus_client looks at the environment when it is first imported, which may have been earlier.
        values.ValueClass = self._make_value

    def collect(self) -> Iterable[Metric]:
        """Sum up what can be read now; an unreadable file is left out."""
        files = [str(path) for path in self.folder.glob("*.db")]
        for _ in range(_ATTEMPTS):
            try:
                return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
            except _UNREADABLE:
                files = [path for path in files if _is_readable(path)]
        return []

    def heal(self) -> bool:
        """Write the figures into new files where any of the old is gone; True if the files are there."""
        if all(path.exists() for path in self._own_files()):
            return True
        if not _is_usable(self.folder):
            return False
        figures = [(value, value.get()) for value in self._values]
        self._owner.generation += 1
        for value, figure in figures:
            value.set(figure)
        return True

    def _own_files(self) -> Iterator[Path]:
        return (self.folder / f"{prefix}_{self._owner()}.db" for prefix in tuple(self._prefixes))

    def _make_value(self, *args: str, multiprocess_mode: str = "", **kwargs: object) -> _Value:
        value = self._make(*args, multiprocess_mode=multiprocess_mode, **kwargs)
        self._prefixes.add(f"{args[0]}_{multiprocess_mode}" if args[0] == "gauge" else args[0])
        self._values.append(value)
        return value


class _Value(Protocol):
    """One number of prometheus_client's."""

    def get(self) -> float: ...

    def set(self, value: float) -> None: ...


class _Owner:
    """
    Names the files of this process: by its pid, and by how often they have been made anew.

    prometheus_client asks on every count, and opens new files when the name has changed.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._key = (0, 0)
        self._name = ""

    def __call__(self) -> str:
        key = (os.getpid(), self.generation)
        if key != self._key:
            self._key, self._name = key, f"{key[0]}.{key[1]}" if key[1] else f"{key[0]}"
        return self._name


@cache
def shared_figures(folder: Path) -> SharedFigures:
    """Return the figures shared through *folder*, where each metric made in this process from now on is."""
    folder.mkdir(parents=True, exist_ok=True)
    return SharedFigures(folder)


def forget_process(pid: int) -> None:
    """Remove the gauges of a process that has ended; what it counted stays counted."""
    folder = os.environ.get(FOLDER_VARIABLE)
    for owner in (f"{pid}", f"{pid}.*") if folder else ():
        try:
            mark_process_dead(owner, folder)  # type: ignore[no-untyped-call]
        except FileNotFoundError:  # wiped between being listed and being removed
            return


def _is_usable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_readable(path: str) -> bool:
    try:
        MultiProcessCollector.merge([path])  # type: ignore[no-untyped-call]
    except _UNREADABLE:
        return False
    return True
