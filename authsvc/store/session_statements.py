"""
The statements about sessions that every refresh and logout executes.

Those for PostgreSQL take many sessions at once, as rows in JSON: the text is the same for any number.  They
skip sessions that are locked, so that no request waits for another one's lock, and two of them cannot
deadlock.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    String,
    any_,
    bindparam,
    case,
    cast,
    column,
    func,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from authsvc.domain.revocations import Revocation
from authsvc.domain.sessions import Ending, Rotation, Session
from authsvc.domain.values.identifiers import SessionId
from authsvc.store.audit import adding_of
from authsvc.store.revocations import HEAD_BEFORE, appending, log_held
from authsvc.store.sql import Database
from authsvc.store.statements import Row, Statement
from authsvc.store.tables import (
    USER_COLUMNS,
    UtcTime,
    audit_events,
    from_entry,
    revocations,
    sessions,
    to_session,
    users,
)

_NOW = bindparam("now", type_=UtcTime())
_LEVEL = (sessions.c.acr, sessions.c.amr, sessions.c.auth_time)


def _is_current(counter: ColumnElement[int]) -> tuple[ColumnElement[bool], ...]:
    """True for a live session whose current refresh token has the number *counter*."""
    return (
        sessions.c.counter == counter,
        sessions.c.revoked_at.is_(None),
        sessions.c.idle_expires_at > _NOW,
        sessions.c.expires_at > _NOW,
    )


def _next(idle_end: ColumnElement[datetime]) -> dict[str, Any]:
    """The values of a session whose refresh token is used now."""
    return {
        "counter": sessions.c.counter + 1,
        "rotated_at": _NOW,
        "last_used_at": _NOW,
        "idle_expires_at": idle_end,
    }


_IDS = postgresql.ARRAY(sessions.c.id.type)
#: True for the sessions in the parameter ``ids``, the text of an array of PostgreSQL.  In a subquery, because
#: the planner does not look into it: otherwise it would make a new plan for each list, in 0.3 to 0.8 ms.
_IS_LISTED = sessions.c.id == any_(
    cast(select(cast(bindparam("ids", type_=String()), _IDS)).scalar_subquery(), _IDS)
)

#: Replaces the refresh token of one session, if it is current.
ROTATE = (
    update(sessions)
    .where(sessions.c.id == bindparam("session"), *_is_current(bindparam("presented")))
    .values(_next(bindparam("idle", type_=UtcTime())))
    .returning(*_LEVEL)
)

#: Ends one session, if it has not ended.
END = (
    update(sessions)
    .where(sessions.c.id == bindparam("session"), sessions.c.revoked_at.is_(None))
    .values(revoked_at=_NOW, reason=bindparam("why"))
    .returning(*sessions.columns)
)
#: Prefixes of the names of the event and of the log entry, beside those of the session.
_OF_EVENT, _OF_ENTRY = "event_", "entry_"
_GIVEN = ("at", "reason", "expires_at", "token_id", "epoch", "email", "row_version")


class Standings:
    """Reads sessions with their users."""

    def __init__(self, database: Database) -> None:
        self._is_postgresql = database.is_postgresql
        columns = (*USER_COLUMNS, *sessions.columns)
        belong = users.c.id == sessions.c.user_id
        if self._is_postgresql:
            # By the index for each session: a join may read the whole table of users.
            user = select(*USER_COLUMNS).where(belong).offset(0).lateral("owner")
            read = select(*user.c, *sessions.columns).join_from(sessions, user, true()).where(_IS_LISTED)
        else:
            few = sessions.c.id.in_(bindparam("ids", expanding=True))
            read = select(*columns).join_from(sessions, users, belong).where(few)
        self._read = Statement(database, read, columns)

    def __call__(self, session_ids: Sequence[SessionId]) -> Sequence[Row]:
        """The rows that there are, in any order."""
        return self._read(ids=_array(session_ids) if self._is_postgresql else session_ids).rows


class RotateFree:
    """Replaces the refresh tokens of sessions that are not locked; for PostgreSQL."""

    def __init__(self, database: Database) -> None:
        asked = _asked(
            Column("id", sessions.c.id.type),
            Column("presented", sessions.c.counter.type),
            Column("idle", UtcTime()),
        )
        free = _free()
        self._rotate = Statement(
            database,
            update(sessions)
            .where(sessions.c.id == asked.c.id, asked.c.id == free.c.id, *_is_current(asked.c.presented))
            .values(_next(asked.c.idle))
            .returning(sessions.c.id, *_LEVEL),
        )

    def __call__(self, rotations: Collection[Rotation]) -> Mapping[SessionId, Row]:
        """The levels of those that were current, by session; no session may be there twice."""
        asked = [
            {"id": one.session.id, "presented": one.session.counter, "idle": one.idle_expires_at}
            for one in rotations
        ]
        ids = _array([one.session.id for one in rotations])
        now = max(one.now for one in rotations)
        return {row[sessions.c.id]: row for row in self._rotate(ids=ids, rows=_json(asked), now=now).rows}


class EndFree:
    """
    Ends sessions that are not locked, stores their events and adds their log entries, in one statement for
    PostgreSQL.

    Each part reads what the part before it returns, so the lock of the log is taken last and before the
    numbers.  A number that is not above the head causes a division by zero, which rolls everything back.
    """

    def __init__(self, database: Database) -> None:
        asked = _asked(
            Column("id", sessions.c.id.type),
            Column("why", sessions.c.reason.type),
            *(Column(_OF_EVENT + one.name, one.type) for one in audit_events.columns),
            # The others of the entry are those of the session.
            *(Column(_OF_ENTRY + name, revocations.c[name].type) for name in _GIVEN),
        )
        free = _free()
        ended = (
            update(sessions)
            .where(sessions.c.id == asked.c.id, asked.c.id == free.c.id, sessions.c.revoked_at.is_(None))
            .values(revoked_at=_NOW, reason=asked.c.why)
            .returning(*sessions.columns)
            .cte("ended")
        )
        noted = adding_of(ended, asked, _OF_EVENT).cte("noted")
        held = log_held(ended, noted).cte("held")
        added = appending(held, asked, _OF_ENTRY).cte("added")
        is_above = 1 // case((added.c.seq > HEAD_BEFORE, 1), else_=0)
        ending = select(*ended.columns, added.c.seq, is_above)
        self._end = Statement(
            database,
            ending.join_from(ended, added, ended.c.id == added.c.session_id),
            (*sessions.columns, revocations.c.seq, is_above),
        )

    def __call__(
        self, endings: Sequence[Ending], entries: Mapping[SessionId, Revocation], *, now: datetime
    ) -> list[tuple[Session, int]]:
        """
        The sessions that have ended now, with the numbers of their *entries*.

        All have an event, and no session may be there twice.
        """
        asked = [_row_of(one, entries[one.session_id]) for one in endings]
        rows = self._end(ids=_array(list(entries)), rows=_json(asked), now=now).rows
        return [(to_session(row), row[revocations.c.seq]) for row in rows]


def _row_of(ending: Ending, entry: Revocation) -> dict[str, object]:
    """What :class:`EndFree` is asked for."""
    row: dict[str, object] = {"id": ending.session_id, "why": ending.reason}
    for name in _GIVEN:
        row[_OF_ENTRY + name] = getattr(entry, name)
    if ending.event is not None:
        for name, value in from_entry(ending.event).items():
            row[_OF_EVENT + name] = value
    return row


def _asked(*columns: Column[Any]) -> CTE:
    """The rows of the parameter ``rows``."""
    rows = func.json_to_recordset(cast(bindparam("rows", type_=String()), postgresql.JSON()))
    table = rows.table_valued(*(column(one.name, one.type) for one in columns), name="given")
    return select(*table.render_derived(with_types=True).c).cte("asked")


def _free() -> CTE:
    """
    The sessions in the parameter ``ids`` that are not locked and have not ended; they are locked from now on.

    For PostgreSQL a list of ids is a few, but rows in JSON are a hundred, for which it would read the table.
    """
    alive = select(sessions.c.id).where(_IS_LISTED, sessions.c.revoked_at.is_(None))
    return alive.with_for_update(skip_locked=True).cte("free")


def _array(session_ids: Sequence[SessionId]) -> str:
    """The text of an array of PostgreSQL."""
    return f"{{{','.join(session_ids)}}}"


def _json(rows: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(rows, default=datetime.isoformat)
