"""
Verifies access tokens of authsvc in other services, without a request per token, including revocations.

An independent library: the standard library, PyJWT with cryptography, and the service's reader of tokens.
``authsvc.verifier.flask`` and ``authsvc.verifier.asgi`` are for web frameworks.
"""

from authsvc.verifier.claims import Acr, Claims, Level, MachineClaims
from authsvc.verifier.core import Verifier, presented
from authsvc.verifier.errors import (
    FeedStale,
    KeysUnknown,
    RoleMissing,
    ScopeMissing,
    StepUpRequired,
    TokenInvalid,
    TokenMissing,
    Unavailable,
    VerifierError,
    WrongKind,
)
from authsvc.verifier.options import Options, WhenStale
from authsvc.verifier.refusals import Refusal, refusal

__all__ = [
    "Acr",
    "Claims",
    "FeedStale",
    "KeysUnknown",
    "Level",
    "MachineClaims",
    "Options",
    "Refusal",
    "RoleMissing",
    "ScopeMissing",
    "StepUpRequired",
    "TokenInvalid",
    "TokenMissing",
    "Unavailable",
    "Verifier",
    "VerifierError",
    "WhenStale",
    "WrongKind",
    "presented",
    "refusal",
]
