"""``authsvc keys``: what it prints, what it refuses, and what it leaves in the folder."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from authsvc.cli import keys, main
from authsvc.domain.tokens.keys import Algorithm, generate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
DAY_S = 86_400


class Done(NamedTuple):
    """How a command ended."""

    status: int
    out: Any
    err: str


@pytest.fixture
def folder(tmp_path) -> Path:
    """Make an empty folder of keys."""
    made: Path = tmp_path / "keys"
    made.mkdir()
    return made


@pytest.fixture
def command(folder, monkeypatch, capsys) -> Callable[..., Done]:
    """Run ``authsvc keys …`` at NOW, with the folder in the environment."""
    for name in ("REDIS_AUTH_TOKEN_TTL", "MACHINES", "MACHINE_TOKEN_TTL", "AUTHSVC_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JWT_KEYS_DIR", str(folder))
    monkeypatch.setattr(keys, "now", lambda: NOW)

    def run(*arguments: str) -> Done:
        status = main(["keys", *arguments])
        printed = capsys.readouterr()
        return Done(status, json.loads(printed.out) if printed.out else None, printed.err)

    return run


def add_key(folder: Path, *, age_s: float, algorithm: Algorithm = "EdDSA") -> str:
    """A key of this age; its file name."""
    name, pem = generate(algorithm, NOW - timedelta(seconds=age_s))
    (folder / name).write_bytes(pem)
    return name


def files(folder: Path) -> set[str]:
    """Everything that lies in *folder*."""
    return {file.name for file in folder.iterdir()}


def test_the_first_key_signs_at_once(command, folder):
    """There is nobody to wait for; the file is whole, its owner's alone, and there is nothing beside it."""
    made = command("generate", "--dir", str(folder))

    assert (made.status, made.out["state"], made.out["file"]) == (0, "signing", "20261120T120000Z-es256.pem")
    assert made.out.keys() == {"kid", "alg", "file", "created_at", "state"}
    assert made.err == "20261120T120000Z-es256.pem signs\n"
    assert files(folder) == {made.out["file"]}
    assert (folder / made.out["file"]).stat().st_mode & 0o777 == 0o600


def test_the_next_key_is_announced_with_its_times(command, folder):
    """When it signs, when the old one may go, and that verifiers have to know its algorithm."""
    old = add_key(folder, age_s=DAY_S)

    made = command("generate", "--dir", str(folder), "--alg", "ES256")

    assert (made.status, made.out["state"]) == (0, "published")
    assert made.err.splitlines() == [
        f"{made.out['file']} will sign from 2026-11-20T12:05:00Z on",
        f"{old} signs until 2026-11-20T12:05:00Z; it can go from 2026-11-20T13:10:00Z on",
        "whoever verifies tokens has to accept ES256 beside EdDSA before that",
    ]


def test_the_life_of_a_token_is_that_of_the_service(command, folder, monkeypatch):
    """From the environment; a wrong one is refused before anything is made."""
    old = add_key(folder, age_s=DAY_S)
    monkeypatch.setenv("REDIS_AUTH_TOKEN_TTL", "60")
    listed = command("list")
    monkeypatch.setenv("REDIS_AUTH_TOKEN_TTL", "an hour")
    wrong = command("generate", "--dir", str(folder))

    assert listed.err == f"{old} signs\n"
    assert (wrong.status, wrong.out) == (1, None)
    assert "REDIS_AUTH_TOKEN_TTL" in wrong.err
    assert files(folder) == {old}


@pytest.mark.parametrize("machines", ["on", "off"])
def test_the_longer_life_counts_also_after_services_got_tokens(command, folder, monkeypatch, machines):
    """A key that goes too early would take their tokens along, which outlive the switch."""
    add_key(folder, age_s=DAY_S)
    monkeypatch.setenv("REDIS_AUTH_TOKEN_TTL", "60")
    monkeypatch.setenv("MACHINE_TOKEN_TTL", "6900")
    monkeypatch.setenv("MACHINES", machines)

    made = command("generate", "--dir", str(folder))

    assert "it can go from 2026-11-20T14:05:00Z on" in made.err


def test_keys_of_one_second_are_dated_one_after_the_other(command, folder):
    """Else the name would decide which of them signs."""
    made = [
        command("generate", "--dir", str(folder), "--alg", alg).out for alg in ("ES256", "EdDSA", "EdDSA")
    ]

    assert [(key["alg"], key["state"]) for key in made] == [
        ("ES256", "signing"),
        ("EdDSA", "published"),
        ("EdDSA", "published"),
    ]
    assert [key["file"][:16] for key in made] == [f"20261120T12000{second}Z" for second in range(3)]
    assert [key["kid"] for key in command("list").out["keys"]] == [key["kid"] for key in reversed(made)]


def test_a_key_that_would_sign_unpublished_is_not_made(command, folder):
    """A machine whose clock is far behind."""
    ahead = add_key(folder, age_s=-DAY_S)

    refused = command("generate", "--dir", str(folder))

    assert (refused.status, refused.out) == (1, None)
    assert "dated after 2026-11-20T12:00:00Z" in refused.err
    assert files(folder) == {ahead}


def test_the_list_says_more_on_stderr(command, folder):
    """Newest first; a file that is no key is named there, too."""
    names = [add_key(folder, age_s=age_s) for age_s in (60, 7200, DAY_S)]
    (folder / "broken.pem").write_text("no key")

    listed = command("list")

    assert (listed.status, listed.out.keys()) == (0, {"keys"})
    assert [(key["file"], key["state"]) for key in listed.out["keys"]] == [
        (names[0], "published"),
        (names[1], "signing"),
        (names[2], "published"),
    ]
    assert listed.err.splitlines() == [
        "left out: broken.pem: not an unencrypted private key in PEM form",
        f"{names[0]} will sign from 2026-11-20T12:04:00Z on",
        f"{names[1]} signs until 2026-11-20T12:04:00Z; it can go from 2026-11-20T13:09:00Z on",
        f"{names[2]} signed until 2026-11-20T10:05:00Z; it can go from 2026-11-20T11:10:00Z on",
    ]


@pytest.mark.parametrize("by", ["kid", "file"])
def test_a_key_whose_tokens_are_over_is_retired(command, folder, by):
    """By its kid or its file; the folder is listed as before, without it."""
    old, new = add_key(folder, age_s=DAY_S), add_key(folder, age_s=7200)
    (described,) = [key for key in command("list").out["keys"] if key["file"] == old]

    # A kid may begin with a dash.
    retired = command("retire", "--", described[by])

    assert (retired.status, retired.out) == (0, described | {"state": "retired"})
    assert retired.err.splitlines()[1:] == [f"{new} signs"]
    assert files(folder) == {new}


def test_a_key_with_living_tokens_stays_unless_forced(command, folder):
    """It stopped signing ten minutes ago; the refusal says when it can go, and what a force leads to."""
    old, new = add_key(folder, age_s=DAY_S), add_key(folder, age_s=900)

    refused = command("retire", old)
    forced = command("retire", old, "--force")

    assert (refused.status, refused.out, forced.status) == (1, None, 0)
    assert re.search(rf"{old} stays: .*from 2026-11-20T12:55:00Z on .*3600 s.*--force", refused.err)
    assert "refuses its tokens within 5 seconds" in forced.err
    assert files(folder) == {new}


def test_the_signing_key_stays_unless_forced(command, folder):
    """Forced out, it leaves the signing to one that not everybody has fetched."""
    leaked, new = add_key(folder, age_s=DAY_S), add_key(folder, age_s=60)

    refused = command("retire", leaked)
    forced = command("retire", leaked, "--force")

    assert (refused.status, forced.status) == (1, 0)
    assert "it signs until" in refused.err
    assert forced.err.splitlines()[1:] == [
        f"{new} signs",
        "whoever fetched the keys before it was there may refuse its tokens until 2026-11-20T12:04:00Z",
    ]


def test_the_last_key_stays_unless_forced(command, folder):
    """Without one nobody can log in."""
    last = add_key(folder, age_s=DAY_S)

    refused = command("retire", last)
    forced = command("retire", last, "--force")

    assert (refused.status, forced.status, files(folder)) == (1, 0, set())
    assert "last key" in refused.err
    assert "no key is left" in forced.err


def test_every_copy_of_a_retired_key_goes(command, folder):
    """Else its tokens would go on."""
    leaked, new = add_key(folder, age_s=DAY_S), add_key(folder, age_s=7200)
    (folder / "copy.pem").write_bytes((folder / leaked).read_bytes())
    os.utime(folder / "copy.pem", (NOW.timestamp() - DAY_S, NOW.timestamp() - DAY_S))

    assert command("retire", leaked).status == 0

    assert files(folder) == {new}


@pytest.mark.parametrize("arguments", [("retire", "nobody"), ("retire", "nobody", "--force")])
def test_a_key_that_is_not_there_is_an_error(command, folder, arguments):
    """Nothing else goes in its place."""
    name = add_key(folder, age_s=DAY_S)

    done = command(*arguments)

    assert (done.status, done.out, files(folder)) == (1, None, {name})
    assert "nobody" in done.err


def test_a_secret_of_kubernetes_is_left_alone(command, folder):
    """A file beside it would be lost with the pod, and what is removed would be back: it says what to do."""
    shown = folder / "..1"
    shown.mkdir()
    old, new = add_key(shown, age_s=DAY_S), add_key(shown, age_s=7200)
    (folder / "..data").symlink_to("..1")
    for name in (old, new):
        (folder / name).symlink_to(f"..data/{name}")
    before = files(folder)

    made, retired = command("generate", "--dir", str(folder)), command("retire", old)

    assert (made.status, retired.status, files(folder), files(shown)) == (1, 1, before, {old, new})
    assert "add it to the Secret" in made.err
    assert f'[{{"op": "remove", "path": "/data/{old}"}}]' in retired.err
    assert [key["file"] for key in command("list").out["keys"]] == [new, old]
