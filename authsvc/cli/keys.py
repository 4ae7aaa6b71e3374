"""Commands for signing keys: generate, list."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from authsvc.domain.tokens.keys import Algorithm, SigningKey, generate
from authsvc.settings.development import KEYS_DIR
from authsvc.store.key_folder import read_key, read_keys
from authsvc.wiring import now


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    actions = commands.add_parser("keys", help="make and list signing keys").add_subparsers(
        required=True, metavar="ACTION"
    )
    making = actions.add_parser(
        "generate", help="make a key; it signs when it is 5 minutes old, or at once if it is alone"
    )
    making.add_argument("--dir", type=Path, required=True, help="the folder that JWT_KEYS_DIR names")
    making.add_argument("--alg", choices=("ES256", "EdDSA", "RS256"), default="ES256", help="default: ES256")
    making.set_defaults(run=run_generate)
    listing = actions.add_parser("list", help="list the keys and which of them signs")
    listing.add_argument("--dir", type=Path, help="default: JWT_KEYS_DIR, else that of `authsvc dev`")
    listing.set_defaults(run=run_list)


def run_generate(options: argparse.Namespace, _env: Mapping[str, str]) -> int:
    """Make a key; prints what ``keys list`` says of it."""
    key = generate_key(options.dir, options.alg)
    ring = read_keys(options.dir)
    print(json.dumps(_described(key, signs=ring.signer(now()).kid == key.kid)))
    return 0


def run_list(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """List the keys, newest first."""
    folder = options.dir or Path(env.get("JWT_KEYS_DIR", KEYS_DIR))
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name it with --dir DIR, or JWT_KEYS_DIR")
    ring = read_keys(folder)
    signer = ring.signer(now()).kid if ring.keys else None
    print(json.dumps({"keys": [_described(key, signs=key.kid == signer) for key in ring.keys]}))
    return 0


def generate_key(folder: Path, algorithm: Algorithm) -> SigningKey:
    """Write a new key into *folder*, for its owner alone; a key of the same second is not replaced."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name, pem = generate(algorithm, now())
    path = folder / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    return read_key(path)


def _described(key: SigningKey, *, signs: bool) -> dict[str, str]:
    return {
        "kid": key.kid,
        "alg": key.algorithm,
        "file": key.file_name,
        "created_at": key.created_at.isoformat(),
        "state": "signing" if signs else "published",
    }
