"""Second factors: whether accounts can have them, and the keys that protect their secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from authsvc.settings import kinds
from authsvc.settings.declaration import optional, setting
from authsvc.settings.reader import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authsvc.settings.kinds import Secret
    from authsvc.settings.reader import Reader

_STRONG = kinds.hidden(kinds.STRONG_SECRET)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactorSettings:
    """Whether there are second factors, and the keys of what they keep in SQL."""

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


def second_factor_problems(factors: SecondFactorSettings, reader: Reader) -> Iterator[Problem]:
    """Secrets of second factors are stored encrypted or not at all."""
    if not reader.is_sound("SECOND_FACTORS", "DATA_KEY"):
        return
    if factors.is_on and factors.data_key is None:
        yield Problem(name="DATA_KEY", message="is missing; SECOND_FACTORS=on needs it")
    if factors.data_key is None and reader.given("DATA_KEY_PREVIOUS"):
        yield Problem(name="DATA_KEY_PREVIOUS", message="has no meaning without DATA_KEY; expected both")
