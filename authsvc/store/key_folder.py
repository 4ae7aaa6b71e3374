"""The folder of signing keys, read again while the service runs."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from authsvc.domain.audit import NOWHERE, Action, AuditLog, Event
from authsvc.domain.tokens.keys import KeyRefused, KeyRing, SigningKey
from authsvc.domain.values.clocks import Monotonic
from authsvc.settings import Problem

#: Attempts to read a folder that is being changed, with pauses of SETTLE_S (seconds).
READINGS = 3
SETTLE_S = 0.05
#: No key is longer; also bounds the read of a file that is in the folder by mistake.
MAX_FILE_BYTES = 65_536

#: Errors of a single file: deleted, a broken link, or no permission.  All other errors are attributed to the
#: disk.
ABSENT = frozenset({errno.ENOENT, errno.ELOOP})
DENIED = frozenset({errno.EACCES, errno.EPERM})

#: The name, and data that changes when the file is replaced; empty for a broken link.
Listing = frozenset[tuple[str, int, int, int, int]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderTimings:
    """Intervals and time limits of reading the folder (seconds)."""

    #: How long the result of a read is used.
    reread_s: float = 2.0
    #: How long a thread waits while another one reads the folder: a file system may hang for ever.
    wait_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Contents:
    """The content of a folder at one moment."""

    ring: KeyRing
    #: Files that are not usable keys, by name, each with the cause.
    refused: Mapping[str, str]
    listing: Listing


class KeyFolder:
    """
    The key ring in *path*; read again when the last read is older than ``reread_s`` of *timings*.

    The thread that finds the last read too old reads before it goes on; threads that come meanwhile wait for
    it. So a removed key verifies nothing after that time, even in a process that was idle.  A file that is
    not a readable key is left out and logged; the others are used. If the folder cannot be listed, or does
    not answer, the ring stays as it was.
    """

    def __init__(
        self, path: Path, monotonic: Monotonic, audit: AuditLog, timings: FolderTimings | None = None
    ) -> None:
        self._path = path
        self._timings = timings or FolderTimings()
        self._monotonic = monotonic
        self._audit = audit
        self._lock = threading.Lock()
        self._is_stuck = False
        self._looked_at_s = monotonic()
        self._contents = read_folder(path)
        _log_refused(self._contents.refused)

    def __call__(self) -> KeyRing:
        """The ring, read at most ``reread_s`` ago; the same object as long as no file changed."""
        if self._is_old(self._timings.reread_s):
            for event in self._look_again(self._timings.reread_s):
                self._audit.record(event)
        return self._contents.ring

    def recent(self) -> KeyRing | None:
        """The ring, if it is recent enough to be used without reading the folder; never blocks."""
        return None if self._is_old(self._timings.reread_s) else self._contents.ring

    def refresh(self) -> None:
        """Read the folder again if the last read will soon be too old."""
        soon_s = self._timings.reread_s / 2
        if self._is_old(soon_s):
            for event in self._look_again(soon_s):
                self._audit.record(event)

    def start(self) -> None:
        """
        Read the folder again, and record the keys that this process starts with; raises OSError.

        Another process may have read it before it forked this one, maybe days ago.
        """
        before, self._looked_at_s = self._contents, self._monotonic()
        self._contents = read_folder(self._path)
        _log_newly_refused(before, self._contents)
        for key in self._contents.ring.keys:
            self._audit.record(_event(Action.KEY_ADDED, key, "start"))

    def _is_old(self, than_s: float) -> bool:
        return self._monotonic() - self._looked_at_s >= than_s

    def _look_again(self, than_s: float) -> list[Event]:
        """Read the folder, or wait for the thread that does, unless that hangs; returns what changed."""
        if not self._lock.acquire(timeout=0 if self._is_stuck else self._timings.wait_s):
            if not self._is_stuck:
                self._is_stuck = True
                log.error("keys.unreadable", extra={"cause": "no answer"})
            return []
        try:
            return self._look() if self._is_old(than_s) else []
        finally:
            self._is_stuck = False
            self._lock.release()

    def _look(self) -> list[Event]:
        began_s, before = self._monotonic(), self._contents
        try:
            if _listing(self._path) != before.listing:
                self._contents = read_folder(self._path)
        except OSError as error:
            log.error("keys.unreadable", extra={"cause": error.strerror})  # noqa: TRY400 - the cause says it all
        # Set last: a thread that sees this time must also see these contents.
        self._looked_at_s = began_s
        return _changes(before, self._contents)


def read_folder(path: Path) -> Contents:
    """
    The ``.pem`` files of *path*; raises OSError where the folder, or the disk below a file, does not answer.

    Reads again if the folder changed meanwhile, or if a file is not a key: it may be half written.
    """
    for pause_s in (SETTLE_S,) * (READINGS - 1):
        contents = _read(path)
        if not contents.refused and contents.listing == _listing(path):
            return contents
        # Another program is writing a file, and nothing signals that it has finished: read again.
        time.sleep(pause_s)
    return _read(path)


def read_key(file: Path) -> SigningKey:
    """The key in *file*; raises KeyRefused, OSError."""
    # Reading from a pipe could block for ever.
    if not file.is_file() and file.exists():
        raise KeyRefused(f"{file.name}: not a file")
    modified_at = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    with file.open("rb") as opened:
        pem = opened.read(MAX_FILE_BYTES)
    return SigningKey.from_pem(pem, file_name=file.name, modified_at=modified_at)


def key_problems(folder: Path) -> Iterator[Problem]:
    """Problems that keep the service from signing with the keys in *folder*."""
    files = sorted(folder.glob("*.pem"))
    if not files:
        yield Problem(
            name="JWT_KEYS_DIR", message="holds no .pem file: make one with `authsvc keys generate`"
        )
    for file in files:
        try:
            read_key(file)
        except (KeyRefused, OSError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            yield Problem(name="JWT_KEYS_DIR", message=f"{file.name}: {cause}")


def _read(path: Path) -> Contents:
    """Read the folder once; later changes make the listing differ, so the next read sees them."""
    listing = _listing(path)
    keys, refused = [], {}
    for name in sorted(entry[0] for entry in listing):
        try:
            keys.append(read_key(path / name))
        except KeyRefused as error:
            refused[name] = str(error)
        except OSError as error:
            if error.errno not in ABSENT | DENIED:
                raise
            refused[name] = f"{name}: {error.strerror}"
    return Contents(KeyRing.of(keys), refused, listing)


def _listing(path: Path) -> Listing:
    """
    The state of all files; it differs if a key was added, removed, replaced, or became readable.

    Follows links, so that a folder of Kubernetes differs when its ``..data`` changes.
    """
    # iterdir: ``glob`` would take a missing folder for an empty one.
    return frozenset(_entry(file) for file in path.iterdir() if file.suffix == ".pem")


def _entry(file: Path) -> tuple[str, int, int, int, int]:
    try:
        found = file.stat()
    except OSError as error:
        if error.errno in ABSENT:
            return file.name, 0, 0, 0, 0
        raise
    return file.name, found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size


def _changes(before: Contents, after: Contents) -> list[Event]:
    """The audit events of added and removed keys; other changes are only logged."""
    if after is before:
        return []
    log.info("keys.reread", extra={"count": len(after.ring.keys)})
    _log_newly_refused(before, after)
    old, new = before.ring.by_id, after.ring.by_id
    added = [_event(Action.KEY_ADDED, new[kid], "reread") for kid in new.keys() - old.keys()]
    return added + [_event(Action.KEY_REMOVED, old[kid], "reread") for kid in old.keys() - new.keys()]


def _log_newly_refused(before: Contents, after: Contents) -> None:
    _log_refused({name: cause for name, cause in after.refused.items() if before.refused.get(name) != cause})


def _log_refused(refused: Mapping[str, str]) -> None:
    for cause in refused.values():
        log.error("keys.refused", extra={"cause": cause})


def _event(action: Action, key: SigningKey, occasion: str) -> Event:
    """
    One event for each key, even if several processes notice it; not attributed to the request that noticed
    it.
    """
    return Event(action, detail=f"{key.kid} {key.algorithm} {occasion}", once=key.kid, origin=NOWHERE)
