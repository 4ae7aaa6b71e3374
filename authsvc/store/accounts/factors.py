"""
Second factors in SQL.

Every transaction locks the user's row before other rows of that user. So a login and the first factor exclude
each other, and transactions cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from authsvc.domain.accounts.ceremonies import Passkey
from authsvc.domain.accounts.challenges import Challenge
from authsvc.domain.accounts.factors import (
    MOST_FAILURES,
    AnswerKind,
    Factor,
    FactorId,
    FactorList,
    Kind,
    TotpSecret,
)
from authsvc.domain.accounts.mails import Template
from authsvc.domain.accounts.second_factor import MOST_TRIES, Tried
from authsvc.domain.credentials import UsedUp
from authsvc.domain.errors import CodeInvalid, CounterNotRisen, NotFound
from authsvc.domain.revocations import Committed, Revocation
from authsvc.domain.users import User
from authsvc.domain.values.clocks import Clock
from authsvc.domain.values.encryption import Encrypted
from authsvc.domain.values.identifiers import SessionId, UserId
from authsvc.store.accounts.mails import Notices
from authsvc.store.revocations import SqlRevocationLog
from authsvc.store.sessions import acting_user, end_sessions_of, locked_user
from authsvc.store.sql import Database, insert_into
from authsvc.store.tables import USER_COLUMNS, factors, recovery_codes, spent, to_user, users

_SHARED = ("id", "user_id", "name", "created_at", "confirmed_at", "last_used_at", "locked_at", "rp_id")
_OF_PASSKEYS = ("credential_id", "public_key", "sign_count", "is_backup_eligible", "verified_user")


class SqlFactorStore:
    """Factors and recovery codes as rows; each method is one transaction."""

    def __init__(self, database: Database, log: SqlRevocationLog, clock: Clock, notices: Notices) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._notices = notices

    def of_user(self, user_id: UserId) -> FactorList:
        """The confirmed factors of the user, without enrolments."""
        with self._database.read() as connection:
            return factors_of(connection, user_id)

    def add(
        self,
        user_id: UserId,
        digests: Sequence[bytes],
        write: Callable[[Connection], object],
        *,
        keep: SessionId,
    ) -> Committed[bool]:
        """
        Let *write* store a factor of the user, whose row is locked, in the transaction of what it brings.

        True if it is the first: then recovery codes with these *digests* are stored, and all sessions but
        *keep* end.  Raises TokenInvalid if *keep* has ended, and whatever *write* raises.
        """
        now = self._clock()
        with self._database.transaction() as connection:
            user = acting_user(connection, user_id, keep, now)
            write(connection)
            self._notices.add(connection, Template.FACTOR_ADDED, (user.email,), now)
            is_first = _set_has_factor(connection, user_id, now_has=True)
            if not is_first:
                return Committed(is_first)
            _store_codes(connection, user_id, digests, now)
            entries = end_sessions_of(connection, self._log, user_id, now, "factor_added", keep=keep)
            return Committed(is_first, self._log.append(connection, entries))

    def rename(self, user_id: UserId, factor_id: FactorId, name: str | None) -> Factor:
        """Set the name; raises NotFound."""
        renamed = update(factors).where(_in_force(user_id), factors.c.id == factor_id).values(name=name)
        with self._database.transaction() as connection:
            row = connection.execute(renamed.returning(factors)).mappings().first()
        if row is None:
            raise NotFound
        return to_factor(row)

    def remove(self, user_id: UserId, factor_id: FactorId, *, keep: SessionId) -> Committed[Factor]:
        """Delete it. With the last one, delete the recovery codes, too, and end all sessions but *keep*."""
        now = self._clock()
        removed = delete(factors).where(_in_force(user_id), factors.c.id == factor_id).returning(factors)
        with self._database.transaction() as connection:
            user = acting_user(connection, user_id, keep, now)
            row = connection.execute(removed).mappings().first()
            if row is None:
                raise NotFound
            self._notices.add(connection, Template.FACTOR_REMOVED, (user.email,), now)
            entries: list[Revocation] = []
            if not _has_any(connection, user_id):
                _set_has_factor(connection, user_id, now_has=False)
                connection.execute(delete(recovery_codes).where(recovery_codes.c.user_id == user_id))
                entries = end_sessions_of(connection, self._log, user_id, now, "factor_removed", keep=keep)
            return Committed(to_factor(row), self._log.append(connection, entries))

    def reset(self, user_id: UserId) -> Committed[User]:
        """Delete all factors, end all sessions, raise the epoch and forget the known devices."""
        now = self._clock()
        bare = update(users).where(users.c.id == user_id).values(
            has_factor=False,
            epoch=users.c.epoch + 1,
            version=users.c.version + 1,
            device_version=users.c.device_version + 1,
            updated_at=now,
        )  # fmt: skip
        with self._database.transaction() as connection:
            row = connection.execute(bare.returning(*USER_COLUMNS)).mappings().one_or_none()
            if row is None:
                raise NotFound
            user = to_user(row)
            connection.execute(delete(factors).where(factors.c.user_id == user_id))
            connection.execute(delete(recovery_codes).where(recovery_codes.c.user_id == user_id))
            entries = end_sessions_of(connection, self._log, user_id, now, "factors_reset")
            entries.append(self._log.draft(user, "factors_reset", epoch=user.epoch))
            self._notices.add(connection, Template.FACTORS_RESET, (user.email,), now)
            return Committed(user, self._log.append(connection, entries))

    def renew_codes(self, user_id: UserId, session_id: SessionId, digests: Sequence[bytes]) -> None:
        """Replace the recovery codes; raises NotFound if the user has no factor, TokenInvalid."""
        now = self._clock()
        with self._database.transaction() as connection:
            user = acting_user(connection, user_id, session_id, now)
            if not _has_any(connection, user_id):
                raise NotFound
            connection.execute(delete(recovery_codes).where(recovery_codes.c.user_id == user_id))
            _store_codes(connection, user_id, digests, now)
            self._notices.add(connection, Template.RECOVERY_RENEWED, (user.email,), now)


class SqlTryStore:
    """Counts tries of second factors."""

    def __init__(self, database: Database, clock: Clock, notices: Notices) -> None:
        self._database = database
        self._clock = clock
        self._notices = notices

    def count(self, user_id: UserId, kind: AnswerKind, challenge: Challenge | None) -> Tried | None:
        """Count a try before it is verified; None if the user may not try."""
        counted = (
            update(users)
            .where(users.c.id == user_id, users.c.status == "active", users.c.has_factor.is_(True))
            .values(factor_tries=users.c.factor_tries + 1)
        )
        if challenge is not None:
            least = challenge.round * MOST_TRIES
            counted = counted.where(
                users.c.password_version == challenge.password_version,
                users.c.factor_tries.between(least, least + MOST_TRIES - 1),
            )
        with self._database.transaction() as connection:
            tries = connection.execute(counted.returning(users.c.factor_tries)).scalar_one_or_none()
            if tries is None:
                return None
            totp = _tried_totp(connection, user_id) if kind is AnswerKind.TOTP else None
            return Tried(tries=tries, totp=totp)

    def give_back(self, user_id: UserId, tried: Tried) -> None:
        """Uncount *tried*, which was not verified, or was correct without effect; never below its round."""
        last = tried.before_round + MOST_TRIES
        this_round = and_(users.c.id == user_id, users.c.factor_tries.between(tried.before_round + 1, last))
        fewer = update(users).where(this_round).values(factor_tries=users.c.factor_tries - 1)
        with self._database.transaction() as connection:
            connection.execute(fewer)
            if tried.totp is not None:
                _give_back_failure(connection, user_id, tried.totp.id)

    def failed(self, user_id: UserId, notices: tuple[Template, ...], *, lock: str | None) -> None:
        """Store the consequences of wrong answers: *notices* to the user, and a lock of the factor *lock*."""
        now = self._clock()
        with self._database.transaction() as connection:
            try:
                user = locked_user(connection, user_id)
            except NotFound:
                return
            if lock is not None:
                locked = update(factors).where(factors.c.id == lock, factors.c.locked_at.is_(None))
                connection.execute(locked.values(locked_at=now))
            for notice in notices:
                self._notices.add(connection, notice, (user.email,), now)


def use_up(connection: Connection, used_up: UsedUp, now: datetime, notices: Notices) -> None:
    """
    Mark the parts of a correct answer as used, in the transaction that acts on it.

    Raises CodeInvalid if another request was faster: then the transaction has no effect.
    """
    if used_up.tries is not None:
        # Must come first, because it locks the user's row.
        back = update(users).where(users.c.id == used_up.user_id).values(factor_tries=used_up.tries)
        connection.execute(back)
    for ident, end in used_up.challenges:
        spend(connection, ident, end)
    if used_up.totp is not None:
        _use_step(connection, used_up.user_id, *used_up.totp, now)
    if used_up.recovery_digest is not None:
        _use_recovery_code(connection, used_up.user_id, used_up.recovery_digest, now, notices)
    if used_up.passkey is not None:
        _use_passkey(connection, used_up.user_id, *used_up.passkey, now)


def add_factor(connection: Connection, factor: Factor) -> None:
    """Insert *factor* in the caller's transaction."""
    connection.execute(insert(factors).values(_from_factor(factor)))


def factors_of(connection: Connection, user_id: UserId) -> FactorList:
    """The confirmed factors of a user."""
    rows = connection.execute(
        select(factors).where(_in_force(user_id)).order_by(factors.c.created_at, factors.c.id)
    )
    left = select(func.count()).where(recovery_codes.c.user_id == user_id)
    return FactorList(
        factors=[to_factor(row) for row in rows.mappings()],
        recovery_codes_left=connection.execute(left).scalar_one(),
    )


def to_factor(row: RowMapping) -> Factor:
    """The factor in *row*."""
    fields: dict[str, Any] = {name: row[factors.c[name]] for name in _SHARED}
    if row[factors.c.kind] == Kind.PASSKEY:
        known: dict[str, Any] = {name: row[factors.c[name]] for name in _OF_PASSKEYS}
        return Factor(**fields, passkey=Passkey(**known, transports=tuple(row[factors.c.transports] or ())))
    secret = Encrypted(row[factors.c.key_id], row[factors.c.secret])
    totp = TotpSecret(secret=secret, last_step=row[factors.c.last_step], failures=row[factors.c.failures])
    return Factor(**fields, totp=totp)


def _from_factor(factor: Factor) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(factor, name) for name in _SHARED}
    row |= {"kind": factor.kind.value, "failures": 0}
    if factor.totp is not None:
        secret = factor.totp.secret
        row |= {"key_id": secret.key_id, "secret": secret.text, "last_step": factor.totp.last_step}
    if factor.passkey is not None:
        row |= {name: getattr(factor.passkey, name) for name in _OF_PASSKEYS}
        row["transports"] = list(factor.passkey.transports)
    return row


def _in_force(user_id: UserId) -> ColumnElement[bool]:
    return and_(factors.c.user_id == user_id, factors.c.confirmed_at.is_not(None))


def totp_of(user_id: UserId) -> ColumnElement[bool]:
    """The rows of a user's authenticator apps."""
    return and_(factors.c.user_id == user_id, factors.c.kind == Kind.TOTP.value)


def _has_any(connection: Connection, user_id: UserId) -> bool:
    return bool(connection.execute(select(exists().where(_in_force(user_id)))).scalar_one())


def _set_has_factor(connection: Connection, user_id: UserId, *, now_has: bool) -> bool:
    """Store whether the user has a factor; True if that changed."""
    noted = update(users).where(users.c.id == user_id, users.c.has_factor.is_(not now_has))
    return connection.execute(noted.values(has_factor=now_has)).rowcount == 1


def _store_codes(connection: Connection, user_id: UserId, digests: Sequence[bytes], now: datetime) -> None:
    rows = [{"digest": digest, "user_id": user_id, "created_at": now} for digest in digests]
    connection.execute(insert(recovery_codes), rows)


def _tried_totp(connection: Connection, user_id: UserId) -> Factor | None:
    """
    The confirmed TOTP with one more failure counted, which a correct answer resets; None if it is locked.
    """
    counted = (
        update(factors)
        .where(
            totp_of(user_id),
            factors.c.confirmed_at.is_not(None),
            factors.c.locked_at.is_(None),
            factors.c.failures < MOST_FAILURES,
        )
        .values(failures=factors.c.failures + 1)
        .returning(factors)
    )
    row = connection.execute(counted).mappings().first()
    return to_factor(row) if row else None


def _give_back_failure(connection: Connection, user_id: UserId, factor_id: str) -> None:
    this = and_(totp_of(user_id), factors.c.id == factor_id, factors.c.failures > 0)
    connection.execute(update(factors).where(this).values(failures=factors.c.failures - 1))


def _use_step(connection: Connection, user_id: UserId, factor_id: str, step: int, now: datetime) -> None:
    used = (
        update(factors)
        .where(
            totp_of(user_id),
            factors.c.id == factor_id,
            factors.c.locked_at.is_(None),
            func.coalesce(factors.c.last_step, -1) < step,
        )
        .values(last_step=step, last_used_at=now, failures=0)
    )
    if connection.execute(used).rowcount != 1:
        raise CodeInvalid("this step was used before")


def _use_passkey(connection: Connection, user_id: UserId, factor_id: str, count: int, now: datetime) -> None:
    """Store *count*, which must have risen; authenticators without a counter always send 0."""
    this = and_(factors.c.user_id == user_id, factors.c.id == factor_id, factors.c.locked_at.is_(None))
    has_risen = factors.c.sign_count < count if count else factors.c.sign_count == 0
    used = update(factors).where(this, has_risen).values(sign_count=count, last_used_at=now)
    if connection.execute(used).rowcount == 1:
        return
    if connection.execute(select(factors.c.id).where(this)).first() is None:
        raise CodeInvalid("this passkey was removed or locked")
    raise CounterNotRisen(user_id, factor_id)


def _use_recovery_code(
    connection: Connection, user_id: UserId, digest: bytes, now: datetime, notices: Notices
) -> None:
    used = delete(recovery_codes).where(
        recovery_codes.c.user_id == user_id, recovery_codes.c.digest == digest
    )
    if connection.execute(used).rowcount != 1:
        raise CodeInvalid("no such recovery code")
    email = connection.execute(select(users.c.email).where(users.c.id == user_id)).scalar_one()
    notices.add(connection, Template.RECOVERY_USED, (email,), now)


def spend(connection: Connection, ident: str, end: datetime) -> None:
    """
    Mark the challenge *ident* as used, in the caller's transaction; raises CodeInvalid if it was used before.
    """
    inserting = insert_into(spent, is_postgresql=connection.dialect.name == "postgresql")
    added = inserting.values(id=ident, expires_at=end).on_conflict_do_nothing()
    if connection.execute(added.returning(spent.c.id)).first() is None:
        raise CodeInvalid("this challenge was used before")


def has_factors(database: Database) -> bool:
    """True if any user has a confirmed factor."""
    with database.read() as connection:
        return bool(
            connection.execute(select(exists().where(factors.c.confirmed_at.is_not(None)))).scalar_one()
        )
