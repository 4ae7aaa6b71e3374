"""Second factors, where SECOND_FACTORS is on."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from authsvc.domain.accounts.ceremonies import RelyingParty
from authsvc.domain.accounts.challenges import ChallengeTexts
from authsvc.domain.accounts.codes import RecoveryDigests
from authsvc.domain.accounts.factors import FactorBook, TotpEnrolments
from authsvc.domain.accounts.opening import SessionOpening
from authsvc.domain.accounts.passkeys import PasskeyBook, PasskeyLogin
from authsvc.domain.accounts.second_factor import SecondFactors, SecondLogin
from authsvc.domain.accounts.step_up import Freshness, StepUps
from authsvc.domain.authentication import Authentication
from authsvc.domain.credentials import OwnAccount
from authsvc.domain.tokens.derived import KeyPurpose, derived_key
from authsvc.domain.values.encryption import DataKeys
from authsvc.domain.values.levels import Acr, Requirement
from authsvc.services import PasskeyServices, SecondFactorServices
from authsvc.settings import Settings, revealed
from authsvc.store.accounts.enrolments import SqlEnrolmentStore
from authsvc.store.accounts.factors import SqlFactorStore, SqlTryStore
from authsvc.store.accounts.levels import SqlLevelStore
from authsvc.store.accounts.mails import Notices
from authsvc.store.accounts.passkeys import SqlPasskeyStore
from authsvc.wiring.parts import Parts


def open_second_factors(parts: Parts, opening: SessionOpening, account: OwnAccount) -> SecondFactorServices:
    """All parts of second factors."""
    settings, stores, clock = parts.settings, parts.stores, parts.clock
    notices, store = Notices(are_sent=settings.mail.is_on), _factor_store(parts)
    keys, book, second = data_keys(settings), _book(parts, store), _second(parts, notices)
    challenges = ChallengeTexts(derived_key(revealed(settings.tokens.secret), KeyPurpose.CHALLENGES))
    return SecondFactorServices(
        factors=book,
        enrolments=TotpEnrolments(
            store=SqlEnrolmentStore(stores.database, clock, store),
            factors=book,
            keys=keys,
            clock=clock,
            issuer=urlsplit(settings.tokens.issuer).hostname or settings.tokens.issuer,
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
            rp_id=settings.passkeys.rp_id,
        ),
        challenges=challenges,
        step_ups=StepUps(
            credentials=parts.credentials,
            levels=SqlLevelStore(stores.database, clock, notices),
            account=account,
            second=second,
            opening=opening,
            audit=parts.audit,
        ),
        freshness=Freshness(
            credentials=parts.credentials, max_age_s=settings.second_factors.fresh_s, clock=clock
        ),
        admin_level=_admin_level(settings),
    )


def _book(parts: Parts, store: SqlFactorStore) -> FactorBook:
    return FactorBook(
        store=store,
        credentials=parts.credentials,
        digests=_recovery_digests(parts.settings),
        revocations=parts.revocations,
        audit=parts.audit,
        needs_proven_address=parts.settings.mail.is_on,
    )


def _second(parts: Parts, notices: Notices) -> SecondFactors:
    return SecondFactors(
        tries=SqlTryStore(parts.stores.database, parts.clock, notices),
        keys=data_keys(parts.settings),
        digests=_recovery_digests(parts.settings),
        limits=parts.limits,
        audit=parts.audit,
        clock=parts.clock,
        on_result=parts.metrics.second_factor,
    )


def open_passkeys(
    parts: Parts, second_factors: SecondFactorServices, authentication: Authentication
) -> PasskeyServices | None:
    """All parts of passkeys; None without an RP ID."""
    settings = parts.settings.passkeys
    if settings.rp_id is None:
        return None
    # Import here: a process without passkeys does not load the code that reads them.
    from authsvc.domain.accounts.webauthn import WebAuthn

    name = settings.rp_name or settings.rp_id
    party = RelyingParty(id=settings.rp_id, name=name, origins=settings.origins)
    stores, login = parts.stores, second_factors.login
    book = PasskeyBook(
        ceremonies=WebAuthn(party),
        store=SqlPasskeyStore(stores.database, _factor_store(parts)),
        factors=second_factors.factors,
        challenges=second_factors.challenges,
        revocations=parts.revocations,
        audit=parts.audit,
        clock=parts.clock,
    )
    passkey_login = PasskeyLogin(
        book=book,
        second=second_factors.second,
        credentials=parts.credentials,
        opening=login.opening,
        devices=login.devices,
        audit=parts.audit,
        clock=parts.clock,
        require_proven_address=authentication.require_proven_address,
    )
    return PasskeyServices(book=book, login=passkey_login)


def _factor_store(parts: Parts) -> SqlFactorStore:
    notices = Notices(are_sent=parts.settings.mail.is_on)
    return SqlFactorStore(parts.stores.database, parts.stores.log, parts.clock, notices)


def _admin_level(settings: Settings) -> Requirement:
    """The level that ADMIN_ACR demands of admins; nothing for ``aal1``, which every login has."""
    acr = Acr(settings.second_factors.admin_acr)
    return Requirement(acr=acr if acr is not Acr.AAL1 else None)


def data_keys(settings: Settings) -> DataKeys:
    """The keys that encrypt secrets."""
    factors = settings.second_factors
    previous = (revealed(factors.data_key_previous),) if factors.data_key_previous else ()
    return DataKeys.of(revealed(factors.data_key), *previous)


def _recovery_digests(settings: Settings) -> RecoveryDigests:
    """Keyed with the pepper, which never changes: the codes must outlive other secrets."""
    key = hmac.digest(revealed(settings.passwords.pepper), b"authsvc recovery code key 1", "sha256")
    return RecoveryDigests(key)
