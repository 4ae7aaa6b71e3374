"""
The one gateway to Redis.

Every call asks the circuit breaker first, takes a connection from a bounded pool, has a deadline and
is sent once; only reads that change nothing are sent a second time, and only where the connection
turned out to be closed.  Driver errors leave as :class:`CacheUnavailable` or :class:`CacheMisuse`.

Replies are Redis' own, undecoded: bytes, int, None, lists.  Make a client per process, after the fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Generic, NamedTuple, NoReturn, TypeAlias, TypeVar

from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import RedisError, ResponseError

from authsvc.cache.breaker import CircuitBreaker, Permit, State
from authsvc.cache.connections import Argument, Connections, Pool, Reply, Wire
from authsvc.cache.errors import CacheError, CacheMisuse, CacheUnavailable, Reason, translate

Command: TypeAlias = "tuple[Argument, ...]"
V = TypeVar("V")

#: Commands that change nothing and may be sent again when the connection broke under them.
REPEATABLE: Final = frozenset({"GET", "MGET", "EXISTS", "TTL", "PTTL"})

# As replies to a command: the server is up and answers at once, it only refuses writes, or this one
# command, which is no reason to stop reading from it.  (A refused log-in is DENIED too, and no reply.)
# READONLY counts against the server, since after a failover it may be the wrong one.
_ANSWERED: Final = frozenset({Reason.OOM, Reason.MISCONF, Reason.NOREPLICAS, Reason.DENIED})


def _ignore(*_: object) -> None:
    """Let nobody know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEvents:
    """
    Callbacks for whoever counts; called inline, so quick.  All words are short and finite.

    ``on_operation(name, seconds, outcome)``: name a command in lower case, ``mget`` or ``pipeline``;
    outcome ``ok``, ``misuse`` or a :class:`Reason`.  ``on_lookup(space, outcome)`` and
    ``on_fill(space, outcome)``: see :mod:`authsvc.cache.aside`.
    """

    on_operation: Callable[[str, float, str], None] = _ignore
    on_lookup: Callable[[str, str], None] = _ignore
    on_fill: Callable[[str, str], None] = _ignore


class Stamped(NamedTuple, Generic[V]):
    """Values read in one round trip, and the generation of the very connection they came over."""

    values: list[V]
    generation: int


@dataclass(frozen=True, slots=True)
class Script:
    """An atomic step in Lua.  Sent as text, so that no SCRIPT FLUSH, restart or failover can lose it."""

    text: str

    @classmethod
    def load(cls, package: str, name: str) -> Script:
        """Read ``scripts/<name>.lua`` of *package*."""
        return cls((files(package) / "scripts" / f"{name}.lua").read_text(encoding="utf-8"))

    def command(self, keys: Sequence[str], args: Sequence[Argument]) -> Command:
        """Return the command that runs this script; on a cluster all *keys* must share a slot."""
        return ("EVAL", self.text, len(keys), *keys, *args)


class CacheClient:
    """
    See the module's docstring.

    *pool* comes from :func:`~authsvc.cache.connections.bounded_pool`, or is any redis-py pool of
    :func:`~authsvc.cache.connections.stamped` connections.  *clock* is monotonic, in seconds.
    Every method raises CacheUnavailable or CacheMisuse.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        breaker: CircuitBreaker,
        clock: Callable[[], float],
        events: CacheEvents | None = None,
    ) -> None:
        #: Generations, suspicion and filling of the pool.
        self.connections = Connections(pool)
        self._breaker = breaker
        self._clock = clock
        self._on_operation = (events or CacheEvents()).on_operation

    def mget(self, keys: Sequence[str]) -> Stamped[bytes | None]:
        """Return the values of *keys*, None for each that is missing or not a string; one round trip."""

        def talk(wire: Wire) -> list[bytes | None]:
            wire.send_command("MGET", *keys)
            return wire.read_response()  # type: ignore[return-value]  # what MGET replies

        return self._run("mget", talk, repeatable=True)

    def pipeline(self, commands: Sequence[Command]) -> Stamped[Reply]:
        """
        Send *commands* in one round trip, in order but not atomically, and return their replies.

        All are carried out, also behind one that fails; then the first error is raised.
        """
        return self._run("pipeline", lambda wire: _converse(wire, commands), repeatable=False)

    def call(self, *command: Argument) -> Reply:
        """Send one command and return its reply."""
        name = str(command[0])

        def talk(wire: Wire) -> list[Reply]:
            wire.send_command(*command)
            return [wire.read_response()]

        return self._run(name.lower(), talk, repeatable=name.upper() in REPEATABLE).values[0]

    @property
    def state(self) -> State:
        """Return the breaker's state."""
        return self._breaker.state

    def ping(self) -> None:
        """Return if Redis answers."""
        self.call("PING")

    def info(self, section: str) -> dict[str, str] | None:
        """Return INFO's fields of *section*; None where an ACL denies it or the server has no INFO."""
        try:
            text = self.call("INFO", section)
        except CacheMisuse:
            return None
        except CacheUnavailable as error:
            if error.reason is Reason.DENIED:
                return None
            raise
        return _fields(text) if isinstance(text, bytes) else None

    def close(self) -> None:
        """Close idle connections now and those in use when they come back."""
        self.connections.close()

    def _run(self, name: str, talk: Callable[[Wire], list[V]], *, repeatable: bool) -> Stamped[V]:
        permit = self._breaker.permit()
        if permit is None:
            self._on_operation(name, 0.0, Reason.OPEN)
            raise CacheUnavailable(Reason.OPEN)
        started_s = self._clock()
        try:
            answer = self._attempt(talk, repeatable=repeatable)
        except RedisError as error:
            self._refuse(permit, name, self._clock() - started_s, error)
        except BaseException:
            self._breaker.withdrawn(permit)
            raise
        self._breaker.succeeded(permit)
        self._on_operation(name, self._clock() - started_s, "ok")
        return answer

    def _attempt(self, talk: Callable[[Wire], list[V]], *, repeatable: bool) -> Stamped[V]:
        wire = self.connections.acquire()
        try:
            return self._once(wire, talk)
        except DriverConnectionError as error:
            if type(error) is not DriverConnectionError:  # a refusal, not a broken connection
                raise
            # What closed this one has closed the others: remake them all, instead of having each
            # fail once and open the breaker.
            self.connections.suspect()
            if not repeatable:
                raise
        return self._once(self.connections.acquire(), talk)

    def _once(self, wire: Wire, talk: Callable[[Wire], list[V]]) -> Stamped[V]:
        try:
            return Stamped(talk(wire), wire.generation)
        except ResponseError:  # an answer, read to its end: the connection is as good as before
            raise
        except BaseException:
            wire.disconnect()
            raise
        finally:
            self.connections.release(wire)

    def _refuse(self, permit: Permit, name: str, took_s: float, error: RedisError) -> NoReturn:
        refusal = translate(error)
        self._judge(permit, refusal, error)
        outcome = refusal.reason if isinstance(refusal, CacheUnavailable) else "misuse"
        self._on_operation(name, took_s, outcome)
        raise refusal from error

    def _judge(self, permit: Permit, refusal: CacheError, error: RedisError) -> None:
        reason = refusal.reason if isinstance(refusal, CacheUnavailable) else None
        if reason is Reason.EXHAUSTED:
            self._breaker.withdrawn(permit)
            return
        if reason is None or (reason in _ANSWERED and isinstance(error, ResponseError)):
            self._breaker.succeeded(permit)
            return
        self._breaker.failed(permit)
        # Behind an open breaker wait connections that may be as dead as those that opened it, and
        # READONLY smells of a failover: the next use of each starts anew.
        if reason is Reason.READONLY or self._breaker.state is State.OPEN:
            self.connections.suspect()


def _converse(wire: Wire, commands: Iterable[Command]) -> list[Reply]:
    sent = list(commands)
    wire.send_packed_command(wire.pack_commands(sent))
    replies: list[Reply] = []
    refusals: list[ResponseError] = []
    for _ in sent:
        try:
            replies.append(wire.read_response())
        except ResponseError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    return replies


def _fields(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
