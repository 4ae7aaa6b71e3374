"""Removes secrets from log fields, by name of the field and by form of the value."""

from __future__ import annotations

import hashlib
import hmac
import re
from functools import lru_cache

MASK = "[redacted]"
#: Hexadecimal characters of an e-mail's digest: enough to follow one address in the log.
DIGEST_CHARS = 16

_SECRET_LAST_WORDS = frozenset(
    {
        *("authorization", "cookie", "credential", "credentials", "pepper", "secret", "secrets"),
        *("passphrase", "passwd", "password", "passwords", "pwd", "hash", "hashes"),
        *("jti", "token", "tokens", "dsn", "uri", "url", "urls", "email", "emails", "mail"),
    }
)
_SECRET_NAMES = frozenset({"api_key", "private_key", "secret_key", "signing_key"})
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

#: Each pattern with its replacement; the order matters where matches overlap.
_SECRET_TEXTS = (
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        MASK,
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {MASK}"),
    (re.compile(r"\be[wy][A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_=-]*)?"), MASK),
    (re.compile(r"\$[A-Za-z0-9-]{1,32}\$[^\s'\",;)]{20,}"), MASK),
    # A password in a DSN may contain "@" or "/": mask everything up to the last "@" of the word.
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{1,32}://)[^\s'\"<>]*@"), rf"\1{MASK}@"),
    (
        re.compile(
            r"(?i)(\b(?:[a-z0-9]+[_-])*(?:password|passwd|passphrase|pwd|secret|token|pepper|authorization)"
            r"[\"']?\s*(?:=|(?<=[\"'])\s*:)\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,;&)}\]]+)"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"[^\s@<>\"'(),:;=\[\]{}/]+@[^\s@<>\"'(),:;=\[\]{}/]+"), "[email]"),
)
#: A text without any of these matches no pattern; most texts have none.
_HINT = re.compile(r"[@$=]|-----b|\be[wy]|bearer|basic|[\"']\s*:")


def email_digest(key: bytes, email: str) -> str:
    """Return what a log may carry of *email*: 16 hexadecimal characters of its HMAC-SHA-256 under *key*."""
    address = email.encode("utf-8", "surrogatepass")
    return hmac.new(key, address, hashlib.sha256).hexdigest()[:DIGEST_CHARS]


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """True if a field of this name (in any case and spelling) is secret."""
    words = _HUMP.sub("_", name).lower().replace("-", "_")
    return words in _SECRET_NAMES or words.rpartition("_")[2] in _SECRET_LAST_WORDS


def scrub_text(text: str) -> str:
    """Return *text* with every token, password, hash, key, e-mail and DSN password masked."""
    if _HINT.search(text.lower()) is None:
        return text
    for pattern, replacement in _SECRET_TEXTS:
        text = pattern.sub(replacement, text)
    return text


def scrub(name: str, value: object) -> object:
    """Return *value* as the field *name* may be logged; walks dicts and lists."""
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name):
        return MASK
    if isinstance(value, str):
        return scrub_text(value)
    if isinstance(value, dict):
        return {scrub_text(key): scrub(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [scrub(name, item) for item in value]
    return value
