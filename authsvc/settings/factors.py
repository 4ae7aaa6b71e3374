"""Settings of second factors: whether they are on, the keys that encrypt their secrets, and passkeys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast
from urllib.parse import urlsplit

from authsvc.settings import kinds, locations
from authsvc.settings.declaration import ReadSoFar, optional, setting
from authsvc.settings.reader import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authsvc.settings.kinds import Secret
    from authsvc.settings.reader import Reader

DAY_S = 86_400

_STRONG = kinds.hidden(kinds.STRONG_SECRET)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactorSettings:
    """Whether second factors are on, and the keys that encrypt their secrets in SQL."""

    title: ClassVar = "Second factors"

    is_on: bool = setting(
        "SECOND_FACTORS",
        kinds.switch(),
        "Accounts can have a second factor; `off` is refused while anybody has one",
        default="off",
    )
    data_key: Secret | None = optional(
        "DATA_KEY",
        _STRONG,
        "Encrypts the secrets of TOTP in SQL; whoever loses it loses every one of them",
        otherwise="needed for `SECOND_FACTORS=on`; development: made on first start",
    )
    data_key_previous: Secret | None = optional(
        "DATA_KEY_PREVIOUS", _STRONG, "A second key, which decrypts alone, while `DATA_KEY` is changed"
    )
    admin_acr: str = setting(
        "ADMIN_ACR",
        kinds.matching("aal1|aal2|phr", "one of `aal1`, `aal2`, `phr`"),
        "The level that admins need on the routes for admins: with a second factor, or with a passkey",
        default="aal1",
    )
    fresh_s: int = setting(
        "FRESH_AUTH_SECONDS",
        kinds.whole(1, DAY_S),
        "Seconds after a login or a step-up in which nobody has to prove again who they are",
        default="600",
    )


def _rp_id(known: ReadSoFar) -> str | None:
    return cast("str | None", known.read["WEBAUTHN_RP_ID"])


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeySettings:
    """The relying party of passkeys; without an RP ID there are none."""

    title: ClassVar = "Passkeys"

    rp_id: str | None = optional(
        "WEBAUTHN_RP_ID",
        locations.rp_id(),
        "Domain that passkeys belong to; another one makes all passkeys useless. Needs `SECOND_FACTORS=on`",
        otherwise="none: no passkeys",
    )
    rp_name: str | None = optional(
        "WEBAUTHN_RP_NAME",
        kinds.matching(
            r"[A-Za-z0-9][A-Za-z0-9 ._&+'-]{0,63}", "1 to 64 letters, digits, spaces, `. _ & + ' -`"
        ),
        "Name that browsers show beside it",
        otherwise="the RP ID",
        computed=_rp_id,
    )
    origins: tuple[str, ...] = setting(
        "WEBAUTHN_ORIGINS",
        locations.webauthn_origins(),
        "Origins whose pages may use passkeys, compared letter by letter; needed with an RP ID."
        " One at least is within the domain; browsers take others only by `/.well-known/webauthn`",
        otherwise="none",
        computed=lambda _: (),
    )


def passkey_problems(passkeys: PasskeySettings, reader: Reader) -> Iterator[Problem]:
    """Passkeys belong to a domain, and are used by its pages over TLS."""
    names = ("WEBAUTHN_RP_ID", "WEBAUTHN_ORIGINS")
    if not reader.is_sound(*names):
        return
    if passkeys.rp_id is None:
        for name in reader.given("WEBAUTHN_RP_NAME", "WEBAUTHN_ORIGINS"):
            yield Problem(name=name, message="has no meaning without WEBAUTHN_RP_ID; expected both")
        return
    web = [urlsplit(origin) for origin in passkeys.origins if not origin.startswith("android:")]
    hosts = [origin.hostname or "" for origin in web]
    if not any(f".{host}".endswith(f".{passkeys.rp_id}") for host in hosts):
        message = f"has no web origin within {passkeys.rp_id}, the WEBAUTHN_RP_ID; expected one at least"
        yield Problem(name="WEBAUTHN_ORIGINS", message=message)
    local = {"localhost"} if reader.is_development else set()
    if any(origin.scheme != "https" and origin.hostname not in local for origin in web):
        yield Problem(name="WEBAUTHN_ORIGINS", message="has an http:// origin; expected https://")


def passkey_warnings(passkeys: PasskeySettings, factors: SecondFactorSettings) -> Iterator[str]:
    """Settings of passkeys that have no effect."""
    if passkeys.rp_id is not None and not factors.is_on:
        yield "WEBAUTHN_RP_ID has no effect: SECOND_FACTORS is off"


def second_factor_problems(factors: SecondFactorSettings, reader: Reader) -> Iterator[Problem]:
    """Secrets of second factors are stored encrypted or not at all."""
    if not reader.is_sound("SECOND_FACTORS", "DATA_KEY"):
        return
    if factors.is_on and factors.data_key is None:
        yield Problem(name="DATA_KEY", message="is missing; SECOND_FACTORS=on needs it")
    if not factors.is_on and factors.admin_acr != "aal1" and reader.is_sound("ADMIN_ACR"):
        message = f"is {factors.admin_acr}, which nobody could reach; expected SECOND_FACTORS=on, too"
        yield Problem(name="ADMIN_ACR", message=message)
    if factors.data_key is None and reader.given("DATA_KEY_PREVIOUS"):
        yield Problem(name="DATA_KEY_PREVIOUS", message="has no meaning without DATA_KEY; expected both")
