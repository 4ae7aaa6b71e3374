"""Passkeys in SQL: found by credential id; adding the first factor also stores recovery codes."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from authsvc.domain.accounts.challenges import Challenge
from authsvc.domain.accounts.factors import Factor, Kind
from authsvc.domain.accounts.passkeys import MOST_PASSKEYS
from authsvc.domain.errors import PasskeyKnown, StoreUnavailable, TooMany
from authsvc.domain.revocations import Committed
from authsvc.domain.values.identifiers import SessionId
from authsvc.store.accounts.factors import SqlFactorStore, add_factor, spend, to_factor
from authsvc.store.sql import Database, is_taken
from authsvc.store.tables import factors


class SqlPasskeyStore:
    """Passkeys as rows of the table of factors; each method is one transaction."""

    def __init__(self, database: Database, of_factors: SqlFactorStore) -> None:
        self._database = database
        self._of_factors = of_factors

    def of_credential(self, credential_id: bytes) -> Factor | None:
        """The passkey with that id, even if it is locked."""
        found = select(factors).where(factors.c.credential_id == credential_id)
        with self._database.read() as connection:
            row = connection.execute(found).mappings().first()
        return to_factor(row) if row else None

    def add(
        self, factor: Factor, challenge: Challenge, digests: Sequence[bytes], *, keep: SessionId
    ) -> Committed[bool]:
        """Add *factor* and mark *challenge* as used; True if it is the first factor of its user."""
        theirs = select(func.count()).where(
            factors.c.user_id == factor.user_id, factors.c.kind == Kind.PASSKEY.value
        )

        def insert(connection: Connection) -> None:
            spend(connection, challenge.id, challenge.expires_at)
            # The row lock makes concurrent registrations count one after the other.
            if connection.execute(theirs).scalar_one() >= MOST_PASSKEYS:
                raise TooMany
            add_factor(connection, factor)

        try:
            return self._of_factors.add(factor.user_id, digests, insert, keep=keep)
        except StoreUnavailable as error:
            if is_taken(error, factors.c.credential_id):
                raise PasskeyKnown from error
            raise


def orphaned_passkeys(database: Database, rp_id: str) -> int:
    """Number of passkeys of another RP ID: browsers do not use them here."""
    others = select(func.count()).where(factors.c.kind == Kind.PASSKEY.value, factors.c.rp_id != rp_id)
    with database.read() as connection:
        return connection.execute(others).scalar_one()
