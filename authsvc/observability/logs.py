"""
Structured logs: one line a record, rendered and written by a thread of its own.

A request hands its record over and goes on (1.5 µs); a reader that stops reading costs records, which
are counted, and never a request.  A record is an event, ``noun.verb``, and fields.  Rooms that must not
know this one use the standard library: ``logging.getLogger(__name__).warning("noun.verb", extra={…})``.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import select
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from authsvc.observability.lines import Record, Render, console_line, json_line, plain
from authsvc.observability.redaction import email_digest

# Where rich is installed structlog imports it, for a renderer that is not used here: 0.28 s of start-up.
_HIDES_RICH = "rich" not in sys.modules
if _HIDES_RICH:
    sys.modules["rich"] = None  # type: ignore[assignment]  # the documented way to say "not installed"
import structlog  # noqa: E402 - once rich is hidden

if _HIDES_RICH:
    del sys.modules["rich"]

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

__all__ = ["LogPipe", "bind_request", "configure", "email_digest", "get_logger"]

CAPACITY = 10_000
FLUSH_TIMEOUT_S = 1.0
#: At most one ``log.dropped`` line in this time, or a slow reader would read of nothing else.
DROP_REPORT_PERIOD_S = 1.0

_PLAIN = frozenset((str, int, float, bool, type(None)))
_EVENT = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}

_request: ContextVar[tuple[str, str]] = ContextVar("request", default=("", ""))


def get_logger() -> FilteringBoundLogger:
    """Return a logger; hot paths keep ``get_logger().bind()``, which saves 2 µs a line."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def bind_request(request_id: str, trace_id: str = "") -> None:
    """Name the request, and its trace, that this thread works for in all its records; empty for none."""
    _request.set((request_id, trace_id))


class LogPipe:
    """
    A bounded queue and the daemon thread that empties it into a file descriptor.

    A full queue drops the new record and counts it; the thread tells how many in a ``log.dropped`` line
    as soon as it can write again.  After a fork the child starts with an empty queue and its own thread.
    """

    def __init__(self, fd: int, render: Render, *, capacity: int = CAPACITY) -> None:
        self.fd = fd
        self.render = render
        self.capacity = capacity
        #: Called for each dropped record by the thread that logged it; counts it in the metrics.
        self.on_drop: Callable[[], None] = _nothing
        self._writer: threading.Thread | None
        self.start_afresh()
        # A method of this very object would keep it for ever: what is registered here cannot be taken back.
        os.register_at_fork(after_in_child=partial(_start_afresh, weakref.ref(self)))

    def put(self, record: Record) -> None:
        """Queue *record*; never blocks."""
        if self._records.qsize() >= self.capacity:
            self._drop()
            return
        self._records.put(record)
        if self._writer is None:
            self._start_writer()

    @property
    def dropped(self) -> int:
        """Records lost in this process so far."""
        return self._dropped

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> bool:
        """Wait until all that was logged is written, *timeout_s* seconds at most; True if it is."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is None:
            return True
        self._records.put(None)
        writer.join(timeout_s)
        return not writer.is_alive()

    def start_afresh(self) -> None:
        """Forget queue, thread and counts: they belong to the process that this one was forked from."""
        self._records: SimpleQueue[Record | None] = SimpleQueue()
        self._writer = None
        self._lock = threading.Lock()
        self._dropped = 0
        self._reported = 0
        self._report_due_s = 0.0

    def _start_writer(self) -> None:
        with self._lock:
            if self._writer is None:
                self._writer = threading.Thread(target=self._run, name="log-writer", daemon=True)
                self._writer.start()

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1
        self.on_drop()

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            self._write(record)
            if self._dropped > self._reported and time.monotonic() >= self._report_due_s:
                self._report_drops(record.created_s)

    def _report_drops(self, created_s: float) -> None:
        lost, self._reported = self._dropped - self._reported, self._dropped
        self._report_due_s = time.monotonic() + DROP_REPORT_PERIOD_S
        self._write(Record(created_s, "warning", "log.dropped", ("", ""), {"count": lost}))

    def _write(self, record: Record) -> None:
        rest = memoryview(self.render(record))
        while rest:
            try:
                rest = rest[os.write(self.fd, rest) :]
            except BlockingIOError:
                select.select([], [self.fd], [])
            except OSError:  # nobody reads any more, or the disk is full: the service goes on
                self._drop()
                return


class ForeignRecords(logging.Handler):
    """Brings what libraries, and the rooms below, log through the standard library into the same pipe."""

    def __init__(self, pipe: LogPipe) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Queue *record*, its arguments already merged: they may change before it is written."""
        fields = {k: plain(v) for k, v in vars(record).items() if k not in _OWN_ATTRIBUTES}
        message = _message(record)
        event = message if _EVENT.fullmatch(message) else "library.logged"
        if event != message:
            fields |= {"logger": record.name, "message": message}
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = _traceback_of(record.exc_info[1])
        level = record.levelname.lower()
        self.pipe.put(Record(record.created, level, event, _request.get(), fields))


def configure(level: str, log_format: str, *, fd: int = 1, now: Callable[[], float] = time.time) -> LogPipe:
    """
    Send all logging of this process to *fd* (standard output); may be called again to change it.

    *level* is the least severe that is written, *log_format* ``json`` or ``console``; *now* gives
    seconds since the epoch.  What is queued at the end of the process is written in 1 s at most.
    """
    pipe = LogPipe(fd, console_line if log_format == "console" else json_line)
    _replace_root_handler(ForeignRecords(pipe), level.upper())
    structlog.configure(
        processors=[_Capture(now)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Direct(pipe),
        cache_logger_on_first_use=False,
    )
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_thread_failure
    atexit.register(pipe.flush)
    return pipe


class _Capture:
    """The only processor: makes the record in the caller, where the request and the error are known."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now

    def __call__(
        self, _: object, level: str, fields: MutableMapping[str, object]
    ) -> tuple[tuple[Record], dict[str, object]]:
        event = str(fields.pop("event"))
        error = _current_error(fields.pop("exc_info", None))
        for name, value in fields.items():
            if type(value) not in _PLAIN:
                fields[name] = plain(value)
        if error is not None:
            fields["exception"] = _traceback_of(error)
        return (Record(self.now(), level, event, _request.get(), fields),), {}


class _Direct:
    """What structlog calls in the end: every level is the same way into the pipe."""

    def __init__(self, pipe: LogPipe) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = pipe.put


def _replace_root_handler(handler: ForeignRecords, level: str) -> None:
    root = logging.getLogger()
    for previous in [h for h in root.handlers if isinstance(h, ForeignRecords)]:
        root.removeHandler(previous)
        atexit.unregister(previous.pipe.flush)
        previous.pipe.flush()
    root.addHandler(handler)
    root.setLevel(level)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (KeyError, TypeError, ValueError):  # arguments that do not fit; the library's bug is not ours
        return str(record.msg)


def _current_error(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _traceback_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _log_thread_failure(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else ""
        get_logger().error("thread.failed", thread=name, exc_info=args.exc_value)


def _start_afresh(pipe: weakref.ref[LogPipe]) -> None:
    if (living := pipe()) is not None:
        living.start_afresh()


def _nothing() -> None:
    """Stand in for a callback that nobody has set."""
