"""
What authsvc's worker relies on inside gunicorn, beyond what gunicorn documents (decision 0014).

A version that changed it is read before it is used: then what is listed here is renewed.
"""

from __future__ import annotations

import hashlib
import inspect
from importlib import import_module
from typing import Any

import pytest
from gunicorn import config
from gunicorn.workers.gthread import TConn, ThreadWorker

#: The digests of what is overridden, or runs around what is ours.
TEXTS = {
    "gunicorn.workers.gthread:ThreadWorker.run": "f92c7394d85715a4",
    "gunicorn.workers.gthread:ThreadWorker.wait_for_and_dispatch_events": "ea969b352482bd5c",
    "gunicorn.workers.gthread:ThreadWorker.set_accept_enabled": "140150ebfd3cae34",
    "gunicorn.workers.gthread:ThreadWorker.enqueue_req": "c9f428953d24acef",
    "gunicorn.workers.gthread:ThreadWorker.finish_request": "616e7bb15a009ff7",
    "gunicorn.workers.gthread:ThreadWorker.murder_keepalived": "4459960c4ccc36d4",
    "gunicorn.workers.gthread:ThreadWorker.murder_pending": "7bf11f46454296e1",
    "gunicorn.workers.gthread:ThreadWorker._cap_keepalive": "745c8ac37108c74d",
    "gunicorn.workers.gthread:PollableMethodQueue.defer": "4d722900967b8ad2",
    "gunicorn.workers.gthread:PollableMethodQueue.run_callbacks": "2583376785b0c53c",
    "gunicorn.workers.base:Worker.notify": "7f509bc4046b0e97",
    "gunicorn.workers.base:Worker.load_wsgi": "18b02fc35e964f2b",
    "gunicorn.http.message:Message.parse_headers": "fe09a6b5e706bd64",
    "gunicorn.http.message:Message.set_body_reader": "e3ba33f5ac7ca542",
    "gunicorn.http.message:Message.should_close": "37c454bfb3e36316",
    "gunicorn.http.message:HeaderPolicy._apply_header_policy": "ac812cc2fe6b529c",
    "gunicorn.http.message:Request._parse_python": "ed07ffec51784055",
    "gunicorn.http.message:Request.parse_request_line": "77187ebabb46addb",
    "gunicorn.http.parser:Parser.finish_body": "54c5d0d28c2626ea",
    "gunicorn.http.parser:Parser.__next__": "b8536520e95854d6",
    "gunicorn.http.unreader:Unreader.take_buffered": "89cef5e60e6f09e1",
    "gunicorn.http.wsgi:create": "2c35d4a2dc629ede",
    "gunicorn.http.wsgi:Response.start_response": "59799d9ff13635c1",
    "gunicorn.http.wsgi:Response.should_close": "3888d47a96e289b3",
    "gunicorn.http.wsgi:Response.write": "a13659ff072c00e1",
}
#: What the worker and its connections have from gunicorn; all of it is set when they are made.
OF_A_WORKER = {
    "keepalived_conns", "max_keepalived", "method_queue", "nr_conns", "pending_conns", "poller", "tpool",
    "worker_connections", "_accepting",
}  # fmt: skip
OF_A_CONNECTION = {"cfg", "client", "parser", "server", "sock", "timeout"}


def found(name: str) -> Any:
    """What *name* (module:path) is in the installed version."""
    module, _, path = name.partition(":")
    thing: Any = import_module(module)
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


def digest(name: str) -> str:
    """Of its text."""
    return hashlib.sha256(inspect.getsource(found(name)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_extended_is_what_was_read(name):
    """Its code is the one that authsvc.server was written around."""
    assert digest(name) == TEXTS[name], f"read it again, and authsvc.server with it: {name} is another one"


def test_a_worker_keeps_its_books_where_ours_looks():
    """The attributes that authsvc.server reads or replaces are set by gunicorn's own constructor."""
    settings = config.Config()
    worker = ThreadWorker(1, 1, [], None, 1, settings, None)
    worker.tmp.close()
    connection = TConn(settings, _Socket(), ("127.0.0.1", 1), ("127.0.0.1", 2))

    assert vars(worker).keys() >= OF_A_WORKER
    assert vars(connection).keys() >= OF_A_CONNECTION


class _Socket:
    def setblocking(self, flag: object) -> None:
        """Take it."""
