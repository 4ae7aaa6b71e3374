"""Generated files of development: one folder under the current directory, made on first start."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DEVELOPMENT_DIR = Path(".authsvc")
KEYS_DIR = DEVELOPMENT_DIR / "keys"

#: The file of each secret.
_SECRETS = {
    "TOKEN_SECRET": "token-secret",
    "PASSWORD_PEPPER": "password-pepper",
    "DATA_KEY": "data-key",
}
_SECRET_BYTES = 48


def ensure_development_files(env: Mapping[str, str]) -> dict[str, str]:
    """
    Make ``.authsvc/`` (0700) and a random secret (0600) for each that *env* lacks.

    Returns the ``<NAME>_FILE`` variables to add to *env*; nothing outside development.  Later
    starts find the same secrets, and several that start at once agree on one.

    Raises:
        OSError: the folder or a file cannot be made.
    """
    if env.get("AUTHSVC_ENV", "").lower() != "development":
        return {}
    DEVELOPMENT_DIR.mkdir(mode=0o700, exist_ok=True)
    files = {f"{name}_FILE": file for name, file in _SECRETS.items() if name not in env}
    return {
        name: str(_ensure_secret(DEVELOPMENT_DIR / file)) for name, file in files.items() if name not in env
    }


def _ensure_secret(path: Path) -> Path:
    """
    Write a random secret to *path* unless a file is there.

    A hard link appears atomically and never replaces a file: the second process finds the complete file of
    the first.
    """
    if path.exists():
        return path
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.name}.") as draft:
        draft.write(secrets.token_urlsafe(_SECRET_BYTES) + "\n")
        draft.flush()
        os.fsync(draft.fileno())
        try:
            os.link(draft.name, path)
        except FileExistsError:
            return path
    return path
