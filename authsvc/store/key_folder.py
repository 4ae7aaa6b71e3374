"""The folder of signing keys, read again while the service runs."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

from authsvc.domain.tokens.keys import KeyRefused, KeyRing, SigningKey
from authsvc.domain.values.clocks import Monotonic

#: How long a look at the folder is good for.
REREAD_S = 2.0

log = logging.getLogger(__name__)


class KeyFolder:
    """
    The key ring in *path*; looked at again when the last look is older than REREAD_S.

    A file that cannot be read as a key is left out and logged: the others go on.  A folder that cannot
    be listed leaves the ring as it was.
    """

    def __init__(self, path: Path, monotonic: Monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looked_at_s = monotonic()
        self._seen = _listing(path)
        self._ring = read_keys(path)

    def __call__(self) -> KeyRing:
        """The ring as of at most REREAD_S ago; the same object as long as no file changed."""
        if self._monotonic() - self._looked_at_s >= REREAD_S and self._lock.acquire(blocking=False):
            try:
                self._look_again()
            finally:
                self._lock.release()
        return self._ring

    def _look_again(self) -> None:
        self._looked_at_s = self._monotonic()
        try:
            listing = _listing(self._path)
            if listing != self._seen:
                self._ring, self._seen = read_keys(self._path), listing
                log.info("keys.reread", extra={"count": len(self._ring.keys)})
        except OSError as error:
            log.error("keys.unreadable", extra={"cause": error.strerror})  # noqa: TRY400 - the cause says it all


def read_keys(path: Path) -> KeyRing:
    """Every key in the ``.pem`` files of *path*; the unusable ones are logged."""
    keys = []
    for file in sorted(_key_files(path)):
        try:
            keys.append(read_key(file))
        except (KeyRefused, OSError) as error:
            log.error("keys.refused", extra={"cause": str(error)})  # noqa: TRY400 - the same
    return KeyRing.of(keys)


def read_key(file: Path) -> SigningKey:
    """The key in *file*; raises KeyRefused, OSError."""
    modified_at = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    return SigningKey.from_pem(file.read_bytes(), file_name=file.name, modified_at=modified_at)


def _listing(path: Path) -> frozenset[tuple[str, int, int]]:
    """Names, times and sizes: different when a key came, went or was replaced."""
    return frozenset(
        (file.name, (stat := file.stat()).st_mtime_ns, stat.st_size) for file in _key_files(path)
    )


def _key_files(path: Path) -> list[Path]:
    """The ``.pem`` files of *path*; raises OSError, where ``glob`` would take a missing folder for empty."""
    return [file for file in path.iterdir() if file.suffix == ".pem"]
