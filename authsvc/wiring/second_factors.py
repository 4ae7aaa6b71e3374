"""Second factors, where SECOND_FACTORS is on."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from authsvc.domain.accounts.challenges import ChallengeTexts
from authsvc.domain.accounts.codes import RecoveryDigests
from authsvc.domain.accounts.factors import FactorBook
from authsvc.domain.accounts.opening import SessionOpening
from authsvc.domain.accounts.second_factor import SecondFactors, SecondLogin
from authsvc.domain.tokens.derived import KeyPurpose, derived_key
from authsvc.domain.values.encryption import DataKeys
from authsvc.services import SecondFactorServices
from authsvc.settings import Settings, revealed
from authsvc.store.accounts.factors import SqlFactorStore, SqlTryStore
from authsvc.store.accounts.mails import Notices
from authsvc.wiring.parts import Parts


def open_second_factors(parts: Parts, opening: SessionOpening) -> SecondFactorServices:
    """Everything that has to do with them."""
    settings, stores, clock = parts.settings, parts.stores, parts.clock
    notices = Notices(are_sent=settings.mail.is_on)
    store = SqlFactorStore(stores.database, stores.log, clock, notices)
    keys, digests = data_keys(settings), _recovery_digests(settings)
    second = SecondFactors(
        tries=SqlTryStore(stores.database, clock, notices),
        keys=keys,
        digests=digests,
        limits=parts.limits,
        audit=parts.audit,
        clock=clock,
        on_result=parts.metrics.second_factor,
    )
    challenges = ChallengeTexts(derived_key(revealed(settings.tokens.secret), KeyPurpose.CHALLENGES))
    return SecondFactorServices(
        factors=FactorBook(
            store=store,
            credentials=parts.credentials,
            keys=keys,
            digests=digests,
            revocations=parts.revocations,
            audit=parts.audit,
            clock=clock,
            issuer=urlsplit(settings.tokens.issuer).hostname or settings.tokens.issuer,
            needs_proven_address=settings.mail.is_on,
        ),
        second=second,
        login=SecondLogin(
            factors=store,
            second=second,
            challenges=challenges,
            credentials=parts.credentials,
            opening=opening,
            devices=opening.devices,
            clock=clock,
        ),
        challenges=challenges,
    )


def data_keys(settings: Settings) -> DataKeys:
    """The keys that secrets are encrypted under."""
    factors = settings.second_factors
    previous = (revealed(factors.data_key_previous),) if factors.data_key_previous else ()
    return DataKeys.of(revealed(factors.data_key), *previous)


def _recovery_digests(settings: Settings) -> RecoveryDigests:
    """Under the pepper, which is never changed: the codes outlive other secrets."""
    key = hmac.digest(revealed(settings.passwords.pepper), b"authsvc recovery code key 1", "sha256")
    return RecoveryDigests(key)
