"""
Structured logs: one line per record, rendered and written by a separate thread.

All code logs through the standard library: ``log.warning("noun.verb", extra={…})``, an event and its fields.
The thread that logs only queues the record.  If nobody reads the output, records are dropped and counted;
a request never waits.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import select
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue

from authsvc.observability.lines import Record, Render, console_line, json_line, plain
from authsvc.observability.redaction import email_digest

__all__ = ["LogPipe", "bind_request", "configure", "count_drops", "email_digest"]

CAPACITY = 10_000
FLUSH_TIMEOUT_S = 1.0
#: At most one ``log.dropped`` line in this time, so that a slow reader also gets other lines.
DROP_REPORT_PERIOD_S = 1.0

_EVENT = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}

log = logging.getLogger(__name__)

_request: ContextVar[tuple[str, str]] = ContextVar("request", default=("", ""))


def bind_request(request_id: str, trace_id: str = "") -> None:
    """Set the ids of request and trace for all records of this thread; "" for none."""
    _request.set((request_id, trace_id))


class LogPipe:
    """
    A bounded queue and the daemon thread that empties it into a file descriptor.

    If the queue is full, the new record is dropped and counted; the thread logs the number as ``log.dropped``
    once it can write again.  After a fork the child starts with an empty queue and its own thread.
    """

    def __init__(self, fd: int, render: Render, *, capacity: int = CAPACITY) -> None:
        self.fd = fd
        self.render = render
        self.capacity = capacity
        #: Called for each dropped record by the thread that logged it; counts it in the metrics.
        self.on_drop: Callable[[], None] | None = None
        self._writer: threading.Thread | None
        self.start_afresh()
        # Not a method of this object: the registration cannot be undone and would keep the object for ever.
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
        """Wait at most *timeout_s* seconds until all queued records are written; True if they are."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is None:
            return True
        self._records.put(None)
        writer.join(timeout_s)
        return not writer.is_alive()

    def start_afresh(self) -> None:
        """Reset queue, thread and counts: those of the parent process do not apply after a fork."""
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
        if self.on_drop is not None:
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
            except OSError:  # the reader is gone, or the disk is full: the service goes on
                self._drop()
                return


class PipeHandler(logging.Handler):
    """Queues every record of the standard library in *pipe*; a text that is not an event becomes a field."""

    def __init__(self, pipe: LogPipe) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Queue *record* with its arguments merged now, because they may change before it is written."""
        fields = {k: plain(v) for k, v in vars(record).items() if k not in _OWN_ATTRIBUTES}
        message = _message(record)
        event = message if _EVENT.fullmatch(message) else "library.logged"
        if event != message:
            fields |= {"logger": record.name, "message": message}
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = _traceback_of(record.exc_info[1])
        level = record.levelname.lower()
        self.pipe.put(Record(record.created, level, event, _request.get(), fields))


def configure(level: str, log_format: str, *, fd: int = 1) -> LogPipe:
    """
    Send all logging of this process to *fd* (standard output); may be called again to change it.

    *level* is the least severe that is written, *log_format* ``json`` or ``console``.  At the end of the
    process, what is still queued is written for at most 1 s.
    """
    pipe = LogPipe(fd, console_line if log_format == "console" else json_line)
    _replace_root_handler(PipeHandler(pipe), level.upper())
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_thread_failure
    atexit.register(pipe.flush)
    return pipe


def count_drops(on_drop: Callable[[], None]) -> None:
    """Have *on_drop* called for each record that is dropped from now on; nothing without a pipe."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PipeHandler):
            handler.pipe.on_drop = on_drop


def _replace_root_handler(handler: PipeHandler, level: str) -> None:
    root = logging.getLogger()
    for previous in [h for h in root.handlers if isinstance(h, PipeHandler)]:
        root.removeHandler(previous)
        atexit.unregister(previous.pipe.flush)
        previous.pipe.flush()
    root.addHandler(handler)
    root.setLevel(level)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (
        KeyError,
        TypeError,
        ValueError,
    ):  # arguments that do not match the message: a bug of a library must not raise here
        return str(record.msg)


def _traceback_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _log_thread_failure(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else ""
        log.error("thread.failed", extra={"thread_name": name}, exc_info=args.exc_value)


def _start_afresh(pipe: weakref.ref[LogPipe]) -> None:
    if (living := pipe()) is not None:
        living.start_afresh()
