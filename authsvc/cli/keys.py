"""Commands for keys: generate, list and retire those that sign; move data to another data key."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import cast

from authsvc.domain.tokens.keys import (
    PUBLISHED_FIRST_S,
    Algorithm,
    KeyInUse,
    KeyRing,
    SigningKey,
    generate,
    stamp,
)
from authsvc.domain.values.clocks import rfc3339
from authsvc.settings import VARIABLES, SettingsError
from authsvc.settings.development import KEYS_DIR
from authsvc.settings.reader import Reader
from authsvc.store.key_folder import read_folder
from authsvc.wiring import now

#: The symbolic link in the mount of a Secret; other files there change only with the Secret.
SECRET_LINK = "..data"  # noqa: S105 - the name of a link


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of ``keys``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    making = actions.add_parser(
        "generate", help="make a key; it signs when it is 5 minutes old, or at once if it is alone"
    )
    making.add_argument("--dir", type=Path, required=True, help="the folder that JWT_KEYS_DIR names")
    making.add_argument("--alg", choices=("ES256", "EdDSA", "RS256"), default="ES256", help="default: ES256")
    making.set_defaults(run=run_generate)
    listing = actions.add_parser("list", help="list the keys and which of them signs")
    listing.set_defaults(run=run_list)
    retiring = actions.add_parser(
        "retire", help="remove a key that no living token needs; what is left of its tokens dies"
    )
    retiring.add_argument("key", metavar="KID", help="the key's kid, or the name of its file")
    retiring.add_argument("--force", action="store_true", help="also if that ends living tokens")
    retiring.set_defaults(run=run_retire)
    moving = actions.add_parser(
        "reencrypt", help="encrypt under DATA_KEY what DATA_KEY_PREVIOUS encrypted, while the service runs"
    )
    moving.set_defaults(run=run_reencrypt)
    for action in (listing, retiring):
        action.add_argument("--dir", type=Path, help="default: JWT_KEYS_DIR, else that of `authsvc dev`")


def run_generate(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Generate a key; prints the same as ``keys list`` for it, and on stderr what happens next."""
    lifetime_s = _lifetime_s(env)
    key = generate_key(options.dir, options.alg)
    ring = read_ring(options.dir)
    print(json.dumps(_described(key, signs=ring.signer(now()).kid == key.kid)))
    _tell(_what_comes(ring, ring.by_id[key.kid], lifetime_s))
    return 0


def run_list(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """List the keys, newest first; on stderr the period in which each signs."""
    lifetime_s = _lifetime_s(env)
    ring = read_ring(_folder(options, env))
    signer = ring.signer(now()).kid if ring.keys else None
    print(json.dumps({"keys": [_described(key, signs=key.kid == signer) for key in ring.keys]}))
    _tell(f"{key.file_name} {_validity(ring, key, lifetime_s)}" for key in ring.keys)
    return 0


def run_retire(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Remove a key's file; refuses if one of its tokens may be valid, unless forced."""
    lifetime_s, folder = _lifetime_s(env), _folder(options, env)
    ring = read_ring(folder)
    found = {key.kid: key for key in ring.keys if options.key in {key.kid, key.file_name}}
    if not found:
        raise ValueError(f"no key in {folder} has the kid or the file name {options.key}")
    (key,) = found.values()
    if not options.force:
        _require_unused(ring, key, lifetime_s)
    _remove(folder, [each.file_name for each in ring.keys if each.kid == key.kid])
    print(json.dumps(_described(key, signs=False) | {"state": "retired"}))
    _tell(_what_is_left(KeyRing.of(each for each in ring.keys if each.kid != key.kid)))
    return 0


def run_reencrypt(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Encrypt the secrets of second factors with the current key, in small steps."""
    from authsvc.cli.admin import migrated
    from authsvc.store.accounts.enrolments import reencrypt
    from authsvc.wiring.second_factors import data_keys
    from authsvc.wiring.stores import open_database

    settings = migrated(options, env)
    if not settings.second_factors.is_on:
        raise ValueError("there are no second factors: SECOND_FACTORS is off")
    keys = data_keys(settings)
    with closing(open_database(settings, options.timings)) as database:
        moved = sum(reencrypt(database, keys))
    print(json.dumps({"reencrypted": moved, "key_id": keys.current}))
    return 0


def generate_key(folder: Path, algorithm: Algorithm) -> SigningKey:
    """Write a new key into *folder*, readable only by the folder's owner; raises KeyInUse, OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_secret(folder):
        raise KeyInUse(
            f"{folder} is a Kubernetes Secret, and a file beside it would be lost with the pod:"
            " generate the key elsewhere and add it to the Secret (docs/key-rotation.md)"
        )
    name, pem = generate(algorithm, read_ring(folder).born_next(now()))
    _write(folder, name, pem)
    return SigningKey.from_pem(pem, file_name=name, modified_at=now())


def read_ring(folder: Path) -> KeyRing:
    """The keys in *folder*; names files that are not keys on stderr."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name it with --dir DIR, or JWT_KEYS_DIR")
    contents = read_folder(folder)
    _tell(f"left out: {cause}" for cause in contents.refused.values())
    return contents.ring


def _write(folder: Path, name: str, pem: bytes) -> None:
    """Write the file atomically, with the folder's owner; never replaces a file."""
    unfinished = folder / f".{name}.{os.getpid()}"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            _give_to_owner(folder, descriptor)
            os.fsync(descriptor)
        os.link(unfinished, folder / name)
    finally:
        unfinished.unlink()
    _sync(folder)


def _give_to_owner(folder: Path, descriptor: int) -> None:
    """Give a file made by root to the folder's owner: the service's user could not read it otherwise."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _remove(folder: Path, names: list[str]) -> None:
    """Delete the files *names* of one key; raises OSError with the name of the file."""
    if _is_secret(folder):
        patch = json.dumps([{"op": "remove", "path": f"/data/{name}"} for name in names])
        raise ValueError(
            f"{folder} is a Kubernetes Secret, which is changed from outside:\n"
            f"  kubectl --namespace authsvc patch secret authsvc-keys --type json --patch '{patch}'"
        )
    for name in names:
        (folder / name).unlink()
    _sync(folder)


def _sync(folder: Path) -> None:
    """Sync the folder to disk: a removed key must not come back after a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_secret(folder: Path) -> bool:
    return (folder / SECRET_LINK).is_symlink()


def _folder(options: argparse.Namespace, env: Mapping[str, str]) -> Path:
    folder: Path = options.dir or Path(env.get("JWT_KEYS_DIR", KEYS_DIR))
    return folder


def _lifetime_s(env: Mapping[str, str]) -> int:
    """The longest lifetime of an access token, in seconds, by the settings in the environment."""
    reader = Reader(env)
    # Even if MACHINES is off: tokens issued before the switch may still be valid.
    lives_s = [reader.value(VARIABLES[name]) for name in ("REDIS_AUTH_TOKEN_TTL", "MACHINE_TOKEN_TTL")]
    if reader.problems:
        raise SettingsError(reader.problems)
    return max(cast("list[int]", lives_s))


def _require_unused(ring: KeyRing, key: SigningKey, lifetime_s: int) -> None:
    try:
        ring.require_unused(key.kid, now=now(), lifetime_s=lifetime_s)
    except KeyInUse as refusal:
        raise KeyInUse(
            f"{key.file_name} stays: {refusal} (tokens live {lifetime_s} s); --force removes it all the same"
        ) from refusal


def _what_comes(ring: KeyRing, key: SigningKey, lifetime_s: int) -> Iterator[str]:
    """The message for operators about a new *key*."""
    yield f"{key.file_name} {_validity(ring, key, lifetime_s)}"
    signer = ring.signer(now())
    if signer.kid == key.kid:
        return
    yield f"{signer.file_name} {_validity(ring, signer, lifetime_s)}"
    if signer.algorithm != key.algorithm:
        yield f"whoever verifies tokens has to accept {key.algorithm} beside {signer.algorithm} before that"


def _validity(ring: KeyRing, key: SigningKey, lifetime_s: int) -> str:
    """The period in which *key* signs, and when it can be removed; by the times in the names."""
    tenure, moment = ring.tenure(key), now()
    if ring.signer(moment).kid == key.kid:
        text = "signs"
    elif tenure.begins > moment:
        text = f"will sign from {stamp(tenure.begins)} on"
    else:
        text = "signed"
    free_at = tenure.free_at(lifetime_s)
    if tenure.ends is None or free_at is None:
        return text
    return f"{text} until {stamp(tenure.ends)}; it can go from {stamp(free_at)} on"


def _what_is_left(ring: KeyRing) -> Iterator[str]:
    """The message for operators after a key was removed."""
    yield "every worker that reads this folder refuses its tokens within 5 seconds"
    if not ring.keys:
        yield "no key is left: nobody can log in or refresh until there is one"
        return
    moment = now()
    signer = ring.signer(moment)
    yield f"{signer.file_name} signs"
    if (moment - signer.created_at).total_seconds() < PUBLISHED_FIRST_S:
        fetched_at = signer.created_at + timedelta(seconds=PUBLISHED_FIRST_S)
        yield f"whoever fetched the keys before it was there may refuse its tokens until {stamp(fetched_at)}"


def _described(key: SigningKey, *, signs: bool) -> dict[str, str]:
    return {
        "kid": key.kid,
        "alg": key.algorithm,
        "file": key.file_name,
        "created_at": rfc3339(key.created_at),
        "state": "signing" if signs else "published",
    }


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)
