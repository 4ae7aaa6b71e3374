"""The failure matrix as a table: how each outage is made, and what is answered meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.fault import breaking_redis as redis
from tests.fault import breaking_sql as sql
from tests.servers.proxy import Mode, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from tests.fault.world import World

#: Statuses by what is asked (``World.ask_everything``).
Row = dict[str, frozenset[int]]
_COLUMNS = ("verify", "refresh", "login", "register", "password", "logout", "end", "read", "write")
#: docs/failure-modes.md: where Redis is the cause, and where SQL hangs.
REDIS_S, SQL_S = 1.0, 3.0


def row(*statuses: int, **others: int | tuple[int, ...]) -> Row:
    """One status for each column, or one for all; *others* replace single columns."""
    given = statuses * len(_COLUMNS) if len(statuses) == 1 else statuses
    cells = {name: frozenset({status}) for name, status in zip(_COLUMNS, given, strict=True)}
    return cells | {
        name: frozenset(status if isinstance(status, tuple) else (status,)) for name, status in others.items()
    }


WHOLE = row(200, register=201, password=403, logout=204, end=204)
WITHOUT_REDIS = WHOLE | row(503, verify=200, refresh=200, logout=202, end=202, read=200, write=200)
WITHOUT_SQL = row(503, verify=200, read=200)
WITHOUT_BOTH = row(503)
#: Redis comes and goes: each answer is that of one row or the other.
SOME_REDIS = {name: WHOLE[name] | WITHOUT_REDIS[name] for name in _COLUMNS}
#: SQL comes and goes.
SOME_SQL = {name: WHOLE[name] | WITHOUT_SQL[name] for name in _COLUMNS}

#: What a machine may add that keeps a store which is not broken from answering in time.
SOME_LATE = row(503, logout=(202, 503), end=(202, 503))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """
    One outage.

    *signs* are what shows it: ``log <event>``, or a sample of the metrics that rises.  *impaired* is what
    ready may name, and must name something of; empty: nothing.
    """

    name: str
    breaking: Callable[[World], AbstractContextManager[None]]
    row: Mapping[str, frozenset[int]]
    signs: tuple[str, ...]
    within_s: float = REDIS_S
    ready: int = 200
    impaired: frozenset[str] = frozenset()
    #: Through the proxies of one replica, which is then the one that is asked.
    is_on_the_wire: bool = False
    #: Each breaker opens under a crowd, and refusals are then given at once.
    opens_breaker: bool = False
    #: What is lost is over at once: everything is asked when it works again.
    is_brief: bool = False
    #: Also in the short run.
    is_short: bool = False
    #: Token checks may be refused meanwhile.
    stops_checks: bool = False
    #: What is answered 503 may have been done all the same.
    leaves_doubts: bool = False

    @property
    def spares_redis(self) -> bool:
        """True where SQL alone breaks: a check that Redis does not answer in time is not answered at all."""
        return self.name.startswith("sql")

    @property
    def spares_sql(self) -> bool:
        """True where Redis alone breaks: SQL answers for it."""
        return self.name.startswith("redis")

    @property
    def is_fitful(self) -> bool:
        """True where the store comes and goes."""
        return self.row in (SOME_REDIS, SOME_SQL)

    @property
    def may_lag(self) -> bool:
        """True where Redis may not take what invalidates a copy of a user."""
        return not self.spares_redis


_REDIS = frozenset({"redis", "redis_proof"})
_SQL = frozenset({"database"})


def _errors(reason: str) -> str:
    return f'cache_errors_total{{reason="{reason}"}}'


_FROM_SQL = 'authsvc_token_checks_total{result="active",source="sql"}'
_UNAVAILABLE = 'authsvc_token_checks_total{result="unavailable",source="none"}'

REDIS_FAULTS = (
    Fault(
        name="redis-killed", breaking=redis.killed, row=WITHOUT_REDIS, impaired=_REDIS, is_short=True,
        signs=(_errors("refused"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-hung", breaking=redis.hung, row=WITHOUT_REDIS, impaired=_REDIS, is_short=True,
        signs=(_errors("timeout"), _errors("open"), "log redis.unproven"),
    ),
    Fault(
        name="redis-restarted-empty", breaking=redis.restarted_empty, row=WHOLE, is_brief=True,
        signs=(_FROM_SQL,),
    ),
    Fault(
        name="redis-restored-old", breaking=redis.restored, row=WHOLE, is_brief=True, is_short=True,
        signs=(_FROM_SQL,),
    ),
    Fault(
        name="redis-flushed", breaking=redis.flushed, row=WHOLE, is_brief=True, is_short=True,
        signs=(_FROM_SQL,),
    ),
    Fault(
        name="redis-promoted-replica", breaking=redis.promoted, row=WHOLE, is_brief=True,
        signs=(_FROM_SQL,),
    ),
    Fault(
        name="redis-read-only", breaking=redis.read_only, row=WITHOUT_REDIS, impaired=_REDIS,
        signs=(_errors("readonly"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-loading", breaking=redis.loading, row=WITHOUT_REDIS, impaired=_REDIS,
        signs=(_errors("loading"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-out-of-memory", breaking=redis.configured("maxmemory", "1", "0"), row=WITHOUT_REDIS,
        impaired=_REDIS, is_short=True, signs=(_errors("oom"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-cannot-save", breaking=redis.cannot_save, row=WITHOUT_REDIS, impaired=_REDIS,
        signs=(_errors("misconf"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-no-replicas", breaking=redis.configured("min-replicas-to-write", "1", "0"),
        row=WITHOUT_REDIS, impaired=_REDIS, signs=(_errors("noreplicas"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-busy", breaking=redis.busy, row=WITHOUT_REDIS, impaired=_REDIS,
        signs=(_errors("busy"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-evicting",
        breaking=redis.configured("maxmemory-policy", "allkeys-lru", "noeviction"),
        row=WHOLE, impaired=frozenset({"redis_proof"}), signs=("log redis.evicting", _FROM_SQL),
    ),
    Fault(
        name="redis-wrong-password",
        breaking=redis.user_may(not_any_more="resetpass >another", again="resetpass nopass"),
        row=WITHOUT_REDIS, impaired=_REDIS, signs=(_errors("denied"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-acl-denies-all",
        breaking=redis.user_may(not_any_more="-@all +ping +hello", again="+@all"),
        row=WITHOUT_REDIS, impaired=_REDIS,
        signs=(_errors("denied"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-acl-denies-writes",
        breaking=redis.user_may(not_any_more="-@write -@scripting", again="+@all"),
        row=WITHOUT_REDIS, impaired=_REDIS, signs=(_errors("denied"), _FROM_SQL, "log redis.unproven"),
    ),
    Fault(
        name="redis-replies-lost", breaking=redis.on_the_wire(Rule(mode=Mode.CUT)), row=WITHOUT_REDIS,
        impaired=_REDIS, is_on_the_wire=True, is_short=True, signs=(_errors("refused"), _FROM_SQL),
    ),
    Fault(
        name="redis-replies-cut", breaking=redis.on_the_wire(Rule(mode=Mode.CUT, after_bytes=3)),
        row=WITHOUT_REDIS, impaired=_REDIS, is_on_the_wire=True, signs=(_errors("refused"), _FROM_SQL),
    ),
    Fault(
        name="redis-answers-late", breaking=redis.on_the_wire(Rule(mode=Mode.DELAY, late_s=0.4)),
        row=WITHOUT_REDIS, impaired=_REDIS, is_on_the_wire=True, signs=(_errors("timeout"), _FROM_SQL),
    ),
    Fault(
        name="redis-drips", breaking=redis.on_the_wire(Rule(mode=Mode.DRIP, late_s=0.05)),
        row=WITHOUT_REDIS, impaired=_REDIS, is_on_the_wire=True, is_short=True,
        signs=(_errors("timeout"), _FROM_SQL),
    ),
    Fault(
        name="redis-silent", breaking=redis.on_the_wire(Rule(mode=Mode.SILENT)), row=WITHOUT_REDIS,
        impaired=_REDIS, is_on_the_wire=True, signs=(_errors("timeout"), _FROM_SQL),
    ),
    Fault(
        name="redis-reset", breaking=redis.on_the_wire(Rule(mode=Mode.RESET)), row=WITHOUT_REDIS,
        impaired=_REDIS, is_on_the_wire=True, signs=(_errors("refused"), _FROM_SQL),
    ),
    Fault(
        name="redis-unreachable-for-one", breaking=redis.on_the_wire(Rule(mode=Mode.REFUSE)),
        row=WITHOUT_REDIS, impaired=_REDIS, is_on_the_wire=True, signs=(_errors("refused"), _FROM_SQL),
    ),
    Fault(
        name="redis-refuses-everything",
        breaking=redis.on_the_wire(
            Rule(mode=Mode.ANSWER, answer=b"-ERR max daily request limit exceeded. Limit: 10000\r\n")
        ),
        row=WITHOUT_REDIS, impaired=_REDIS, is_on_the_wire=True, is_short=True,
        signs=(_errors("other"), _FROM_SQL),
    ),
    Fault(
        name="redis-connections-killed", breaking=redis.connections_killed, row=SOME_REDIS,
        impaired=_REDIS, signs=(_FROM_SQL,),
    ),
    Fault(
        name="redis-paused", breaking=redis.paused, row=WITHOUT_REDIS, impaired=_REDIS,
        signs=(_errors("timeout"), _FROM_SQL),
    ),
    Fault(name="redis-scripts-flushed", breaking=redis.scripts_flushed, row=WHOLE, signs=()),
)  # fmt: skip

SQL_FAULTS = (
    Fault(
        name="sql-killed", breaking=sql.killed, row=WITHOUT_SQL, within_s=SQL_S, impaired=_SQL,
        opens_breaker=True, is_short=True, signs=("log request.unavailable",),
    ),
    Fault(
        name="sql-restarted", breaking=sql.restarted, row=WHOLE, within_s=SQL_S, is_brief=True, signs=(),
    ),
    Fault(
        name="sql-hung", breaking=sql.hung, row=WITHOUT_SQL, within_s=SQL_S, impaired=_SQL,
        opens_breaker=True, is_short=True, signs=("log request.unavailable",),
    ),
    Fault(
        name="sql-tables-locked", breaking=sql.locked, row=WITHOUT_SQL, within_s=SQL_S, impaired=_SQL,
        is_short=True, signs=("log request.unavailable",),
    ),
    Fault(
        name="sql-read-only", breaking=sql.read_only, within_s=SQL_S,
        row=WITHOUT_SQL | row(503, verify=200, password=403, read=200),
        signs=("log request.unavailable",),
    ),
    Fault(
        name="sql-no-connections", breaking=sql.no_connections, row=WITHOUT_SQL, within_s=SQL_S,
        impaired=_SQL, opens_breaker=True, signs=("log request.unavailable",),
    ),
    Fault(
        name="sql-connections-ended", breaking=sql.connections_ended, row=WHOLE, within_s=SQL_S, signs=(),
    ),
    Fault(
        name="sql-commit-answer-lost", breaking=sql.on_the_wire(Rule(mode=Mode.CUT, request=b"COMMIT")),
        row=SOME_SQL, within_s=SQL_S, impaired=_SQL, is_on_the_wire=True, is_short=True, leaves_doubts=True,
        signs=("log request.unavailable",),
    ),
    Fault(
        name="sql-commit-lost", breaking=sql.on_the_wire(Rule(mode=Mode.LOSE, request=b"COMMIT")),
        row=SOME_SQL, within_s=SQL_S, impaired=_SQL, is_on_the_wire=True,
        signs=("log request.unavailable",),
    ),
    Fault(
        name="sql-silent-for-one", breaking=sql.on_the_wire(Rule(mode=Mode.SILENT)), row=WITHOUT_SQL,
        within_s=SQL_S, impaired=_SQL, is_on_the_wire=True, opens_breaker=True,
        signs=("log request.unavailable",),
    ),
    Fault(
        name="sql-drips", breaking=sql.on_the_wire(Rule(mode=Mode.DRIP, late_s=0.05)), row=SOME_SQL,
        leaves_doubts=True, within_s=SQL_S, impaired=_SQL, is_on_the_wire=True,
        signs=("log request.unavailable",),
    ),
    Fault(
        name="sql-reset", breaking=sql.on_the_wire(Rule(mode=Mode.RESET)), row=WITHOUT_SQL,
        within_s=SQL_S, impaired=_SQL, is_on_the_wire=True, opens_breaker=True,
        signs=("log request.unavailable",),
    ),
    Fault(
        name="both-killed", breaking=sql.both_killed, row=WITHOUT_BOTH, within_s=SQL_S, ready=503,
        impaired=frozenset({"redis", "database"}), stops_checks=True, is_short=True,
        signs=(_UNAVAILABLE, "log request.unavailable"),
    ),
)  # fmt: skip

FAULTS = (*REDIS_FAULTS, *SQL_FAULTS)
