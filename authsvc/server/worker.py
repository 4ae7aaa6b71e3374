"""The answering half of the worker: threads that run the application, and the graceful stop."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

from gunicorn.http import wsgi
from gunicorn.http.errors import InvalidHeader, NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser

from authsvc.observability.logs import bind_request
from authsvc.server.arrival import Progress
from authsvc.server.exchange import Answer, Body, ClientLost, ErrorLog, Refusal, length_of, refuse
from authsvc.server.groups import GroupWorker
from authsvc.server.parking import Connection

log = logging.getLogger(__name__)

#: Share of the threads, in eighths, for long requests: all that wait for hashing, and a few more.
GATED_SHARE = 5


class Gate:
    """
    Admits at most *limit* POST requests to *paths* to threads at a time; others wait in the loop, in order.

    A computing thread holds the interpreter's lock, which delays the loop and the other threads. In a login
    storm, most requests are refused, but all threads would compute.
    """

    def __init__(self, limit: int, paths: tuple[str, ...]) -> None:
        any_path = b"|".join(re.escape(path.encode()) for path in paths)
        self._begin = re.compile(rb"(?:\r\n)?POST (?:%b)[? ]" % any_path) if paths else None
        self._free = limit
        self._inside: set[Connection] = set()
        self._waiting: deque[Connection] = deque()

    def admits(self, conn: Connection) -> bool:
        """True if the request of *conn* may run now; else :meth:`leave` returns it later."""
        if self._begin is None or not self._begin.match(conn.arrival.data):
            return True
        if self._free <= 0:
            self._waiting.append(conn)
            return False
        self._free -= 1
        self._inside.add(conn)
        return True

    def leave(self, conn: Connection) -> Connection | None:
        """Called when the thread of *conn* is done; returns the next connection, if one waits."""
        if conn not in self._inside:
            return None
        self._inside.remove(conn)
        if not self._waiting:
            self._free += 1
            return None
        following = self._waiting.popleft()
        self._inside.add(following)
        return following


class Worker(GroupWorker):
    """
    Answers requests, and stops gracefully.

    The application finds in the environ ``authsvc.draining``, a ``threading.Event`` that is set when the
    worker has been told to stop, ``authsvc.is_sampled``, the lane's decision about a trace (None for none),
    and a body whose faults are OSErrors.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.draining = threading.Event()
        self.errors = ErrorLog()
        self.gate = Gate(max(1, self.cfg.threads * GATED_SHARE // 8), self.app.options.lengthy)
        self._refuses_at = 0.0

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - gunicorn's signature
        """
        Start or stop accepting. On a stop, gunicorn's loop calls this at once: the worker is not ready from
        then on. While it has work, it still accepts for a time, to report that to probes.
        """
        if enabled or self.alive:
            super().set_accept_enabled(enabled)
        else:
            self.draining.set()
            self._refuses_at = time.monotonic() + self.timings.notice_s

    def enqueue_req(self, conn: Connection) -> None:
        """Give the request a thread, or let it wait for one."""
        if self.gate.admits(conn):
            super().enqueue_req(conn)

    def finish_request(self, conn: Connection, future: Future[bool]) -> None:
        """Take the connection back, and give its place to a waiting request."""
        following = self.gate.leave(conn)
        if following is not None:
            super().enqueue_req(following)
        super().finish_request(conn, future)

    def murder_pending(self) -> None:
        """End connections that have waited too long, and the accepting while stopping."""
        super().murder_pending()
        if self._accepting and self._refuses_at and time.monotonic() >= self._refuses_at:
            super().set_accept_enabled(enabled=False)
            # Refuse new connections now: otherwise they would wait for an answer that never comes.
            for listener in self.sockets:
                listener.close()

    def handle(self, conn: Connection) -> bool:
        """Answer one request in a pool thread; True if the connection can serve another."""
        bind_request("")
        request = None
        try:
            conn.init()
            request = next(conn.parser)
            return self.handle_request(request, conn) and _is_read(conn.parser)
        except ClientLost as lost:
            log.debug("connection.lost", extra={"reason": str(lost)})
        except (StopIteration, NoMoreData) as error:  # their texts repeat what the client has sent
            log.debug("connection.lost", extra={"reason": type(error).__name__})
        except Exception as error:  # noqa: BLE001 - the edge of the process: whatever it is, it is answered
            self.handle_error(request, conn.sock, conn.client, error)
        return False

    def handle_request(self, request: Request, conn: Connection) -> bool:
        """Run the application; True if the connection stays open."""
        request._expected_100_continue = False  # noqa: SLF001 - the main loop has said so, or wants no body
        answer, environ = wsgi.create(
            request, conn.sock, conn.client, conn.server, self.cfg, Answer, (self.sender,)
        )
        if "HTTP_HOST" not in environ and request.version >= (1, 1):
            raise InvalidHeader("HOST")
        environ["wsgi.multithread"] = True
        environ["wsgi.errors"] = self.errors
        environ["wsgi.input"] = Body(request.body, length_of(environ))
        environ["authsvc.draining"] = self.draining
        environ["authsvc.is_sampled"], conn.is_sampled = conn.is_sampled, None
        if self._is_last() or conn.progress is not Progress.WHOLE:
            answer.force_close()
        try:
            self._answer(answer, environ)
        except ClientLost:
            raise
        except Exception:
            if answer.headers_sent:  # too late for another status: the client must see an incomplete answer
                log.exception("response.broken")
                return False
            raise
        return not answer.should_close()

    def handle_error(
        self, _request: Request, client: socket.socket, address: object, error: BaseException
    ) -> None:
        """Answer an error for a request that the application did not answer."""
        refuse(client, address[0] if isinstance(address, tuple) else "", error)

    def _answer(self, answer: Answer, environ: dict[str, Any]) -> None:
        pieces = self.wsgi(environ, answer.start_response)
        try:
            for piece in pieces:
                answer.write(piece)
            answer.close()
        finally:
            if hasattr(pieces, "close"):
                pieces.close()

    def _is_last(self) -> bool:
        self.nr += 1
        if self.nr >= self.max_requests:
            self.alive = False
        return self.draining.is_set() or not self.alive or len(self.keepalived_conns) >= self.max_keepalived

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)


def _is_read(parser: RequestParser) -> bool:
    """Read the rest of a body that the application did not read; False if its end cannot be found."""
    try:
        return bool(parser.finish_body())
    except (ParseException, NoMoreData, Refusal):
        return False
