"""
Thousands of texts that are not the token they look like.

A few thousand here, the same in every run; ``FUZZ_TOKENS=100000`` looks longer, and elsewhere each time.
"""

from __future__ import annotations

import os
from collections import Counter
from random import Random

import pytest

from authsvc.domain.errors import TokenInvalid
from tests import times
from tests.api.forging import CLAIM_KINDS, HEADER_KINDS, TEXT_KINDS, Forger

COUNT = times("FUZZ_TOKENS", 4_000)
KINDS = (*TEXT_KINDS, *HEADER_KINDS, *CLAIM_KINDS)
SEED = None if "FUZZ_TOKENS" in os.environ else 1
#: With (r, s) also (r, n - s) is a signature of the same text: another spelling of the very same token.
SAME_TOKEN = "other_curve_point"


@pytest.fixture
def forger(pg_api) -> Forger:
    """A forger who has a live token, and our own key."""
    ring = pg_api.services.ring()
    return Forger(pg_api.someone().access, ring.signer(pg_api.clock()), Random(SEED), KINDS)


def is_same_claim_for_claim(text: str, genuine: str) -> bool:
    """True if only the last part differs."""
    return text.rpartition(".")[0] == genuine.rpartition(".")[0]


def test_no_forgery_is_accepted_and_none_raises_anything_else(pg_api, forger):
    """Refused by the one refusal; what is taken is the very token in another spelling, and dies with it."""
    check, spellings, refused = pg_api.services.checks.check, [forger.genuine], Counter[str]()
    assert check(forger.claiming()), "an unchanged forgery is refused: those below would prove nothing"
    for kind, text in forger.forgeries(COUNT):
        try:
            check(text)
        except TokenInvalid:
            refused[kind] += 1
        else:
            assert kind == SAME_TOKEN, (kind, text)
            assert is_same_claim_for_claim(text, forger.genuine), text
            spellings.append(text)

    pg_api.log_out(access=forger.genuine)

    print(f"{sum(refused.values())} refused, {len(spellings) - 1} the same token; {dict(refused)}")  # noqa: T201
    assert sum(refused.values()) + len(spellings) - 1 == COUNT
    assert len(refused) == len(KINDS)
    for text in spellings:
        with pytest.raises(TokenInvalid):
            check(text)
