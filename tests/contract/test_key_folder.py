"""The folder of signing keys, while somebody changes it."""

from __future__ import annotations

import logging
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from authsvc.domain.tokens.keys import generate
from authsvc.store.key_folder import REREAD_S, KeyFolder
from tests.contract.cache_clients import in_threads
from tests.contract.redis_side import Stopwatch

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def path(tmp_path) -> Path:
    """Make a folder with one key, an hour old."""
    folder: Path = tmp_path / "keys"
    folder.mkdir()
    add_key(folder, age_s=3600)
    return folder


@pytest.fixture
def clock() -> Stopwatch:
    """Make the clock by which looks grow old."""
    return Stopwatch()


def add_key(folder: Path, *, age_s: float) -> Path:
    """A new key in *folder*."""
    name, pem = generate("ES256", NOW - timedelta(seconds=age_s))
    file = folder / name
    file.write_bytes(pem)
    return file


def names(keys: KeyFolder) -> list[str]:
    """The files of the ring, newest key first."""
    return [key.file_name for key in keys().keys]


def test_the_folder_is_read_at_the_start(path, clock):
    """Every key in it, and nothing that is not a ``.pem``."""
    (path / "README").write_text("not a key")
    second = add_key(path, age_s=60)

    assert names(KeyFolder(path, clock)) == [second.name, "20261120T110000Z-es256.pem"]


def test_a_rotation_is_seen_after_two_seconds(path, clock):
    """Not before, so that the hot path asks no file system; the old key goes on verifying and signing."""
    keys = KeyFolder(path, clock)
    before = keys()
    new = add_key(path, age_s=0)

    clock.tick(REREAD_S - 0.1)
    assert keys() is before
    clock.tick(0.1)

    assert names(keys) == [new.name, "20261120T110000Z-es256.pem"]
    assert keys().signer(NOW).file_name == "20261120T110000Z-es256.pem"
    assert keys().signer(NOW + timedelta(seconds=300)).file_name == new.name


def test_a_removed_file_takes_its_key_out_of_the_ring(path, clock):
    """And its tokens with it, since nobody else verifies them."""
    retired = add_key(path, age_s=7200)
    keys = KeyFolder(path, clock)
    assert retired.name in names(keys)

    retired.unlink()
    clock.tick(REREAD_S)

    assert names(keys) == ["20261120T110000Z-es256.pem"]


def test_the_ring_stays_the_same_object_while_no_file_changes(path, clock):
    """Whoever remembers signatures remembers them by it."""
    keys = KeyFolder(path, clock)
    before = keys()

    for _ in range(3):
        clock.tick(REREAD_S)
        assert keys() is before


def test_a_replaced_file_is_read_again(path, clock):
    """The same name with another key in it, as a secret that was renewed in place."""
    keys = KeyFolder(path, clock)
    (old,) = keys().keys
    file = path / old.file_name
    file.write_bytes(generate("ES256", NOW)[1])
    os.utime(file, ns=(1, 1))

    clock.tick(REREAD_S)

    (new,) = keys().keys
    assert new.file_name == old.file_name
    assert new.kid != old.kid


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nMIGH"])
def test_a_broken_file_is_left_out_and_the_others_go_on(path, clock, content, caplog):
    """Half written, or no key at all: it is logged by name, without its content."""
    keys = KeyFolder(path, clock)
    broken = path / "20261120T115900Z-es256.pem"
    broken.write_bytes(content)

    with caplog.at_level(logging.ERROR):
        clock.tick(REREAD_S)
        assert names(keys) == ["20261120T110000Z-es256.pem"]

    assert [record.message for record in caplog.records] == ["keys.refused"]
    assert broken.name in caplog.records[0].__dict__["cause"]
    broken.write_bytes(generate("ES256", NOW)[1])
    clock.tick(REREAD_S)
    assert names(keys) == [broken.name, "20261120T110000Z-es256.pem"]


def test_a_file_that_cannot_be_read_is_left_out(path, clock):
    """A folder that is called like a key, or a link into nowhere."""
    keys = KeyFolder(path, clock)
    (path / "20261120T115900Z-es256.pem").mkdir()

    clock.tick(REREAD_S)

    assert names(keys) == ["20261120T110000Z-es256.pem"]


@pytest.mark.parametrize("how", ["gone", "a file", "with a dangling link"])
def test_a_folder_that_cannot_be_listed_leaves_the_ring_as_it_was(path, clock, how, caplog):
    """An unmounted volume must not log everybody out; it is looked at again until it is back."""
    keys = KeyFolder(path, clock)
    before = keys()
    aside = path.with_name("aside")
    shutil.copytree(path, aside, copy_function=shutil.copy2)
    if how == "with a dangling link":
        (path / "new.pem").symlink_to(path / "nowhere")
    else:
        shutil.rmtree(path)
    if how == "a file":
        path.write_text("")

    with caplog.at_level(logging.ERROR):
        clock.tick(REREAD_S)
        assert keys() is before

    assert [record.message for record in caplog.records] == ["keys.unreadable"]
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    aside.rename(path)
    new = add_key(path, age_s=0)
    clock.tick(REREAD_S)
    assert names(keys) == [new.name, "20261120T110000Z-es256.pem"]


def test_a_service_does_not_start_on_a_folder_that_is_not_there(tmp_path, clock):
    """Better no start than one without keys."""
    with pytest.raises(FileNotFoundError):
        KeyFolder(tmp_path / "nowhere", clock)


def test_many_threads_look_again_once(path, clock, caplog):
    """The others go on with what there is, and nobody fails."""
    keys = KeyFolder(path, clock)
    add_key(path, age_s=0)
    clock.tick(REREAD_S)

    with caplog.at_level(logging.INFO):
        rings = in_threads(*[keys] * 16)

    assert {len(ring.keys) for ring in rings} <= {1, 2}
    assert [record.message for record in caplog.records] == ["keys.reread"]
    assert len(keys().keys) == 2
