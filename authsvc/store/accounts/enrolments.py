"""Authenticator apps in SQL: enrolment, confirmation, and re-encryption of their secrets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, delete, func, select, update

from authsvc.domain.accounts.factors import Factor, FactorId, totp_owner
from authsvc.domain.errors import CodeInvalid
from authsvc.domain.revocations import Committed
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.encryption import DataKeys
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.store.accounts.factors import SqlFactorStore, add_factor, to_factor, totp_of
from authsvc.store.revocations import NOBODY
from authsvc.store.sessions import locked_user
from authsvc.store.sql import Database
from authsvc.store.tables import factors

#: Rows changed by one step of a re-encryption, which takes a fraction of a second.
STEP = 200


class SqlEnrolmentStore:
    """Enrolments as rows; each method is one transaction."""

    def __init__(self, database: Database, clock: Clock, of_factors: SqlFactorStore) -> None:
        self._database = database
        self._clock = clock
        self._of_factors = of_factors

    def enrol(self, factor: Factor) -> None:
        """Store an enrolment of a TOTP and drop any earlier one; raises NotFound."""
        with self._database.transaction() as connection:
            locked_user(connection, factor.user_id)
            others = and_(totp_of(factor.user_id), factors.c.confirmed_at.is_(None))
            connection.execute(delete(factors).where(others))
            add_factor(connection, factor)

    def enrolment(self, user_id: UserId, factor_id: FactorId, *, since: datetime) -> Factor | None:
        """The unconfirmed enrolment of that user, if it was made after *since*."""
        statement = select(factors).where(
            totp_of(user_id),
            factors.c.id == factor_id,
            factors.c.confirmed_at.is_(None),
            factors.c.created_at > since,
        )
        with self._database.read() as connection:
            row = connection.execute(statement).mappings().first()
        return to_factor(row) if row else None

    def confirm(
        self, enrolment: Factor, step: int, digests: Sequence[bytes], *, keep: SessionId
    ) -> Committed[bool]:
        """Confirm *enrolment*, which replaces any other TOTP; True if it is the first factor."""
        confirmed = (
            update(factors)
            .where(factors.c.id == enrolment.id, factors.c.confirmed_at.is_(None))
            .values(confirmed_at=self._clock(), last_step=step)
        )
        in_force = and_(totp_of(enrolment.user_id), factors.c.confirmed_at.is_not(None))
        replaced = delete(factors).where(in_force, factors.c.id != enrolment.id)

        def replace(connection: Connection) -> None:
            connection.execute(replaced)
            if connection.execute(confirmed).rowcount != 1:
                raise CodeInvalid("confirmed, replaced or gone meanwhile")

        return self._of_factors.add(enrolment.user_id, digests, replace, keep=keep)


def reencrypt(database: Database, keys: DataKeys) -> Iterator[int]:
    """
    Encrypt secrets of other keys with the current key; yields the number of rows that each step changed.

    A row that changes meanwhile is left to the next step.  Raises Undecryptable for a row of an unknown key.
    """
    after = NOBODY
    while True:
        page = (
            select(factors)
            .where(factors.c.key_id != keys.current, factors.c.id > after)
            .order_by(factors.c.id)
            .limit(STEP)
        )
        with database.read() as connection:
            found = [to_factor(row) for row in connection.execute(page).mappings()]
        if not found:
            return
        after = found[-1].id
        with database.transaction() as connection:
            yield sum(_reencrypt_one(connection, factor, keys) for factor in found)


def _reencrypt_one(connection: Connection, factor: Factor, keys: DataKeys) -> int:
    if factor.totp is None:
        return 0
    owner = totp_owner(factor.user_id, factor.id)
    fresh = keys.encrypt(keys.decrypt(factor.totp.secret, owner), owner)
    moved = (
        update(factors)
        .where(factors.c.id == factor.id, factors.c.key_id == factor.totp.secret.key_id)
        .values(key_id=fresh.key_id, secret=fresh.text)
    )
    return connection.execute(moved).rowcount


def key_ids_in_use(database: Database) -> dict[str, int]:
    """How many secrets each key encrypted, by the key's id."""
    statement = (
        select(factors.c.key_id, func.count()).where(factors.c.key_id.is_not(None)).group_by(factors.c.key_id)
    )
    with database.read() as connection:
        rows = connection.execute(statement).all()
    return {row[0]: row[1] for row in rows}
