"""Background work on a few threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock

from authsvc.cache.events import ignore


class Refresher:
    """
    Runs at most *threads* jobs at a time; at most *pending* jobs wait or run.

    *on_error(key, error)* is called for each that failed.  Make one per process, after the fork.
    """

    def __init__(
        self,
        *,
        threads: int = 2,
        pending: int = 100,
        on_error: Callable[[str, BaseException], None] = ignore,
    ) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="cache-refresh")
        self._pending = pending
        self._on_error = on_error
        self._keys: set[str] = set()
        self._lock = Lock()
        self._is_closed = False

    def submit(self, key: str, work: Callable[[], None]) -> bool:
        """
        Run *work* soon; False if there is a job for *key*, if the queue is full, or after :meth:`close`.
        """
        with self._lock:
            if self._is_closed or key in self._keys or len(self._keys) >= self._pending:
                return False
            self._keys.add(key)
            running = self._threads.submit(work)
        running.add_done_callback(partial(self._done, key))
        return True

    def close(self) -> None:
        """Finish running jobs, discard waiting ones, accept no more."""
        with self._lock:
            self._is_closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _done(self, key: str, ended: Future[None]) -> None:
        with self._lock:
            self._keys.discard(key)
        error = None if ended.cancelled() else ended.exception()
        if error is not None:
            self._on_error(key, error)
