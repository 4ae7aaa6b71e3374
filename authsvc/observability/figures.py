"""
The files in which worker processes share their metrics, and what happens if they are deleted or the disk is
full.

A deleted file stays mapped, so that counting never fails; but a scrape would not see its values.
prometheus_client's files are sparse: on a full file system the first write to a new page would kill the
process (SIGBUS).  So their blocks are reserved first; if that fails, the value is kept in memory.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar, Protocol

from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

#: prometheus_client reads this variable itself, in many places.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: Between listing and reading, a file may vanish, or be incomplete because a worker is starting.
_UNREADABLE = (OSError, struct.error, ValueError, TypeError, RuntimeError)
_ATTEMPTS = 3
#: The names of prometheus_client's files, including the generation of :class:`_Owner`.
_FILE_NAME = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_[0-9]+(\.[0-9]+)?\.db")
#: prometheus_client's initial size, and the largest size of an entry without its key.
_FIRST_BYTES = 1 << 16
_ENTRY_BYTES = 40

log = logging.getLogger(__name__)


class SharedFigures(Collector):
    """This process's files in *folder*, and the sum over those of all processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: True once a value had to be kept in memory: then the files are not complete for this process any
        #: more.
        self.is_in_memory = False
        self._owner = _Owner()
        self._prefixes: set[str] = set()
        self._values: list[_Value] = []
        self._make: Callable[..., _Value] = values.MultiProcessValue(self._owner)  # type: ignore[no-untyped-call]
        # prometheus_client reads the environment when it is first imported, which may have happened already.
        values.ValueClass = self._make_value
        values.MmapedDict = _ReservedFile  # type: ignore[attr-defined]

    def start(self) -> None:
        """Store the values in files of this process, if another one made them before it forked this one."""
        if self._owner.is_another and not self.heal():
            self._keep_in_memory("no new files")

    def collect(self) -> Iterable[Metric]:
        """Sum up the readable files; an unreadable one is left out."""
        files = [str(path) for path in figure_files(self.folder)]
        for _ in range(_ATTEMPTS):
            try:
                return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
            except _UNREADABLE:
                files = [path for path in files if _is_readable(path)]
        return []

    def heal(self) -> bool:
        """Write the values to new files if any of the old ones was deleted; True if all files exist."""
        if not self._owner.is_another and all(path.exists() for path in self._own_files()):
            return True
        if not _is_usable(self.folder) or not self._reserve_anew():
            return False
        figures = [(value, value.get()) for value in self._values]
        self._owner.rename()
        for value, figure in figures:
            value.set(figure)
        return True

    def _own_files(self) -> Iterator[Path]:
        return (self.folder / f"{prefix}_{self._owner.name}.db" for prefix in tuple(self._prefixes))

    def _reserve_anew(self) -> bool:
        """Make the files of the next generation, in the size that the values need."""
        paths = [self.folder / f"{prefix}_{self._owner.following}.db" for prefix in self._prefixes]
        try:
            for path in paths:
                _reserve(path, _ReservedFile.sizes.get(_prefix_of(path), _FIRST_BYTES))
        except OSError:
            for path in paths:
                path.unlink(missing_ok=True)
            return False
        return True

    def _keep_in_memory(self, cause: str | None) -> None:
        log.warning("metrics.in_memory", extra={"cause": cause, "folder": str(self.folder)})
        self.is_in_memory = True

    def _make_value(self, *args: str, multiprocess_mode: str = "", **kwargs: object) -> _Value:
        if self.is_in_memory:
            return values.MutexValue(*args, **kwargs)  # type: ignore[no-untyped-call]
        try:
            value = self._make(*args, multiprocess_mode=multiprocess_mode, **kwargs)
        except OSError as error:
            self._keep_in_memory(error.strerror)
            return values.MutexValue(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._prefixes.add(f"{args[0]}_{multiprocess_mode}" if args[0] == "gauge" else args[0])
        self._values.append(value)
        return value


class _ReservedFile(MmapedDict):
    """
    A file of metrics whose blocks are reserved before it is written to; raises OSError if there are none.
    """

    #: Current size of the files of each prefix in this process.
    sizes: ClassVar[dict[str, int]] = {}

    def __init__(self, filename: str, read_mode: bool = False) -> None:  # noqa: FBT001, FBT002 its own signature
        path = Path(filename)
        self._prefix = _prefix_of(path)
        self.sizes[self._prefix] = _reserve(path, _FIRST_BYTES)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + _ENTRY_BYTES > self.sizes[self._prefix]:
            size = 2 * self.sizes[self._prefix]
            os.posix_fallocate(self._f.fileno(), 0, size)  # not by its name: it may be deleted
            self.sizes[self._prefix] = size
        super()._init_value(key)  # type: ignore[no-untyped-call]


class _Value(Protocol):
    """One number of prometheus_client's."""

    def get(self) -> float: ...

    def set(self, value: float) -> None: ...


class _Owner:
    """
    Names the files of this process by its pid and a generation, which rises when they are replaced.

    prometheus_client asks on every count, and opens new files when the name has changed.
    """

    def __init__(self) -> None:
        self._pid, self._generation = os.getpid(), 0
        self.name = str(self._pid)

    def __call__(self) -> str:
        return self.name

    @property
    def is_another(self) -> bool:
        """True in a process that was forked since the last :meth:`rename`."""
        return self._pid != os.getpid()

    @property
    def following(self) -> str:
        """The next name."""
        return f"{os.getpid()}" if self.is_another else f"{self._pid}.{self._generation + 1}"

    def rename(self) -> None:
        """Take the next name."""
        self.name, self._generation = self.following, 0 if self.is_another else self._generation + 1
        self._pid = os.getpid()


@cache
def shared_figures(folder: Path) -> SharedFigures:
    """Return the metrics shared through *folder*, which has all metrics made in this process from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    return SharedFigures(folder)


def figure_files(folder: Path) -> Iterator[Path]:
    """Return the files of prometheus_client in *folder*; no other file is read or deleted."""
    return (path for path in folder.glob("*.db") if _FILE_NAME.fullmatch(path.name))


def forget_figures(folder: Path) -> None:
    """Remove the files of all processes."""
    for path in figure_files(folder):
        path.unlink(missing_ok=True)


def forget_process(pid: int) -> None:
    """Remove the gauges of a process that has ended; its counters stay."""
    folder = os.environ.get(FOLDER_VARIABLE)
    for owner in (f"{pid}", f"{pid}.*") if folder else ():
        try:
            mark_process_dead(owner, folder)  # type: ignore[no-untyped-call]
        except FileNotFoundError:  # deleted after it was listed
            return


def _prefix_of(path: Path) -> str:
    return path.name.rpartition("_")[0]


def _reserve(path: Path, size: int) -> int:
    """Make *path* at least *size* bytes long, all of them on the file system, and return its size."""
    is_new = not path.exists()
    try:
        with path.open("ab") as file:
            size = max(size, os.fstat(file.fileno()).st_size)
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        if is_new:
            path.unlink(missing_ok=True)
        raise
    return size


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
