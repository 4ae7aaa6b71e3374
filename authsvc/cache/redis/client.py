"""
The client through which all calls to Redis go.

Every call asks the circuit breaker first, takes a connection from a bounded pool, has a deadline and is sent
once. If the connection turns out to be closed, a read is sent again, and so is a request of which certainly
nothing was sent.  Driver errors are raised as :class:`CacheUnavailable` or :class:`CacheMisuse`.

Replies are Redis' own, undecoded: bytes, int, None, lists.  Make a client per process, after the fork.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, NoReturn, TypeVar, cast

from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from authsvc.cache.breaker import CircuitBreaker, Permit, State
from authsvc.cache.errors import (
    CacheError,
    CacheMisuse,
    CacheUnavailable,
    Reason,
    ServerFailed,
    translate,
)
from authsvc.cache.events import CacheEvents
from authsvc.cache.redis.connections import Argument, Pool, Reply
from authsvc.cache.redis.link import Command, Link, Stamped
from authsvc.cache.redis.single import SingleServer

__all__ = ["CacheClient", "CacheEvents", "Command", "Script", "Stamped", "each_server"]

V = TypeVar("V")

#: Commands that change nothing, and may be sent again after their connection broke.
REPEATABLE: Final = frozenset({"GET", "MGET", "EXISTS", "TTL", "PTTL"})

# Error replies that the breaker does not count: the server is up and only refuses writes or this command, so
# reads may go on. (A refused login is DENIED as well, but not a reply.) READONLY is counted: after a failover
# the server may be the wrong one.
_ANSWERED: Final = frozenset(
    {Reason.OOM, Reason.MISCONF, Reason.NOREPLICAS, Reason.DENIED, Reason.UNSUPPORTED}
)
_NO_INFO: Final = frozenset({Reason.DENIED, Reason.UNSUPPORTED})


@dataclass(frozen=True, slots=True)
class Script:
    """An atomic step in Lua.  Sent as text, so that no SCRIPT FLUSH, restart or failover can lose it."""

    text: str

    @classmethod
    def load(cls, package: str, *names: str) -> Script:
        """Read ``<name>.lua`` of *package*; several *names* are joined to one script."""
        folder = files(package)
        return cls("".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names))

    def command(self, keys: Sequence[str], args: Sequence[Argument]) -> Command:
        """Return the command that runs this script; on a cluster all *keys* must share a slot."""
        return ("EVAL", self.text, len(keys), *keys, *args)


class CacheClient:
    """
    See the module's docstring.

    *pool* comes from :func:`~authsvc.cache.redis.connections.bounded_pool`, or is any redis-py pool of
    :func:`~authsvc.cache.redis.connections.stamped` connections.  *clock* is monotonic, in seconds.
    Every method raises CacheUnavailable or CacheMisuse; with *misuse_is_outage* only CacheUnavailable, for a
    service that must answer whatever Redis replies. ``on_operation`` is still called with ``misuse``.
    """

    def __init__(
        self,
        pool: Pool | Link,
        *,
        breaker: CircuitBreaker,
        clock: Callable[[], float],
        events: CacheEvents | None = None,
        misuse_is_outage: bool = False,
    ) -> None:
        self._is_suspended = False
        #: The link to the servers: one or several.
        self.link: Link = _link(pool)
        #: The connections: their generations, renewal and filling of the pool.
        self.connections = self.link.connections
        self._breaker = breaker
        self._clock = clock
        self._on_operation = (events or CacheEvents()).on_operation
        self._misuse_is_outage = misuse_is_outage

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """Return the values of *keys*, None for each that is missing or not a string; one round trip."""
        return self._run("mget", lambda: self.link.mget(keys))

    def pipeline(self, commands: Sequence[Command]) -> Stamped[Reply]:
        """
        Send *commands* in one round trip, in order but not atomically, and return their replies.

        All are executed, even after one that fails; then the first error is raised.  On a cluster the
        order holds among the commands of one slot, and each server is one round trip, all at once.
        """
        repeatable = all(command[0] in REPEATABLE for command in commands)
        return self._run("pipeline", lambda: self.link.exchange(commands, repeatable=repeatable))

    def pipeline_each(self, commands: Sequence[Command]) -> Stamped[Reply | CacheError]:
        """
        Send *commands* in one round trip, in order but not atomically.

        For a command that the server refused, the reply is the error.
        """
        repeatable = all(command[0] in REPEATABLE for command in commands)
        answers, generation = self._run(
            "pipeline", lambda: self.link.exchange_each(commands, repeatable=repeatable)
        )
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            self.connections.suspect()  # after a failover this may be the wrong server
        return Stamped([self._told(answer) for answer in answers], generation)

    def _told(self, answer: Reply | ResponseError) -> Reply | CacheError:
        return self._in_words(answer) if isinstance(answer, ResponseError) else answer

    def at(self, key: str) -> CacheClient:
        """
        Return a client of the server that owns *key* now. It uses no other server, and has its own breaker.
        For a single server it is this client.
        """
        try:
            link = self.link.at(key)
        except RedisError as error:
            raise self._in_words(error) from error
        if link is self.link:
            return self
        return CacheClient(
            link,
            breaker=self._breaker.another(),
            clock=self._clock,
            events=CacheEvents(on_operation=self._on_operation),
            misuse_is_outage=self._misuse_is_outage,
        )

    def call(self, *command: Argument) -> Reply:
        """Send one command and return its reply."""
        name = str(command[0])
        repeatable = name.upper() in REPEATABLE
        return self._run(name.lower(), lambda: self.link.exchange((command,), repeatable=repeatable)).values[
            0
        ]

    @property
    def state(self) -> State:
        """
        Return the breaker's state; also open while suspended, or while the breaker of some server is open.
        """
        return State.OPEN if self._is_suspended or not self.link.is_closed else self._breaker.state

    @property
    def may_ask(self) -> bool:
        """True unless calls to all servers are refused; the breaker of a single server may be open."""
        return not self._is_suspended and self._breaker.state is State.CLOSED

    @property
    def is_steady(self) -> bool:
        """False after recent failures: a caller that can do without Redis should not try it now."""
        return self._breaker.is_steady and self.link.is_steady

    def ping(self) -> None:
        """Return once Redis has answered."""
        self.call("PING")

    def info(self, section: str) -> dict[str, str] | None:
        """Return INFO's fields of *section*; None if an ACL denies it or the server has no INFO."""
        try:
            text = self.call("INFO", section)
        except CacheUnavailable as error:
            if error.reason in _NO_INFO:
                return None
            raise
        return _fields(text) if isinstance(text, bytes) else None

    def suspend(self) -> None:
        """Send nothing until :meth:`resume`, whatever the breaker's state, and close all connections."""
        self._is_suspended = True
        self._breaker.open()
        self.connections.suspect()

    def resume(self) -> None:
        """Allow calls again; the breaker probes first, as after an outage."""
        self._is_suspended = False

    def close(self) -> None:
        """Close idle connections now and those in use when they come back."""
        self.connections.close()

    def _run(self, name: str, exchange: Callable[[], Stamped[V]]) -> Stamped[V]:
        permit = None if self._is_suspended else self._breaker.permit()
        if permit is None:
            self._on_operation(name, 0.0, Reason.OPEN)
            raise CacheUnavailable(Reason.OPEN)
        started_s = self._clock()
        try:
            answer = exchange()
        except RedisError as error:
            self._refuse(permit, name, self._clock() - started_s, error)
        except BaseException:
            self._breaker.withdrawn(permit)
            raise
        self._breaker.succeeded(permit)
        self._on_operation(name, self._clock() - started_s, "ok")
        return answer

    def _refuse(self, permit: Permit, name: str, took_s: float, error: RedisError) -> NoReturn:
        refusal = translate(error)
        self._judge(permit, refusal, error)
        outcome = refusal.reason if isinstance(refusal, CacheUnavailable) else "misuse"
        self._on_operation(name, took_s, outcome)
        raise self._in_words(error) from error

    def _in_words(self, error: RedisError) -> CacheError:
        refusal = translate(error)
        is_misuse = isinstance(refusal, CacheMisuse)
        return CacheUnavailable(Reason.OTHER) if is_misuse and self._misuse_is_outage else refusal

    def _judge(self, permit: Permit, refusal: CacheError, error: RedisError) -> None:
        if isinstance(error, ServerFailed):  # counted by the breaker of that server
            self._breaker.withdrawn(permit)
            return
        reason = refusal.reason if isinstance(refusal, CacheUnavailable) else None
        if reason is Reason.EXHAUSTED:
            self._breaker.withdrawn(permit)
            return
        if reason is None or (reason in _ANSWERED and isinstance(error, ResponseError)):
            self._breaker.succeeded(permit)
            return
        self._breaker.failed(permit)
        # Idle connections may be broken, like those whose failures opened the breaker, and READONLY suggests
        # a failover: remake each before its next use.
        if reason is Reason.READONLY or self._breaker.state is State.OPEN:
            self.connections.suspect()


def _link(pool: Pool | Link) -> Link:
    return cast("Link", pool) if hasattr(pool, "exchange") else SingleServer(pool)


def each_server(client: CacheClient) -> list[CacheClient]:
    """Return a client for each server behind *client* that holds keys; all share its breaker."""
    clients: list[CacheClient] = []
    for link in client.link.servers():
        clients.append(copy(client))
        clients[-1].link = link
    return clients


def _fields(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
