"""The folder of signing keys, while somebody changes it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from authsvc.domain.audit import NOWHERE, Action
from authsvc.domain.tokens.keys import generate
from authsvc.store.key_folder import FolderTimings, KeyFolder, read_key
from tests.contract.cache.clients import in_threads
from tests.contract.copies.redis_side import Stopwatch
from tests.contract.store.key_files import HOUR_OLD, NOW, Audit, add_key, names
from tests.timings import UNHURRIED

REREAD_S = FolderTimings().reread_s


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


@pytest.fixture
def audit() -> Audit:
    """Keep the security events."""
    return Audit()


@pytest.fixture
def opened(path, clock, audit) -> Callable[[], KeyFolder]:
    """Open the folder, as a process does at its start."""
    return lambda: KeyFolder(path, clock, audit, UNHURRIED.keys)


def test_the_folder_is_read_at_the_start(opened, path, clock):
    """Every key in it, and nothing that is not a ``.pem``."""
    (path / "README").write_text("not a key")
    second = add_key(path, age_s=60)

    assert names(opened()) == [second.name, HOUR_OLD]


def test_a_rotation_is_seen_after_two_seconds(opened, path, clock):
    """Not before, so that the hot path asks no file system; the old key goes on verifying and signing."""
    keys = opened()
    before = keys()
    new = add_key(path, age_s=0)

    clock.tick(REREAD_S - 0.1)
    assert keys() is before
    clock.tick(0.1)

    assert names(keys) == [new.name, HOUR_OLD]
    assert keys().signer(NOW).file_name == HOUR_OLD
    assert keys().signer(NOW + timedelta(seconds=300)).file_name == new.name


def test_a_removed_file_takes_its_key_out_of_the_ring(opened, path, clock):
    """And its tokens with it, since nobody else verifies them."""
    retired = add_key(path, age_s=7200)
    keys = opened()
    assert retired.name in names(keys)

    retired.unlink()
    clock.tick(REREAD_S)

    assert names(keys) == [HOUR_OLD]


def test_the_ring_stays_the_same_object_while_no_file_changes(opened, path, clock):
    """Whoever remembers signatures remembers them by it."""
    keys = opened()
    before = keys()

    for _ in range(3):
        clock.tick(REREAD_S)
        assert keys() is before


def test_a_replaced_file_is_read_again(opened, path, clock):
    """The same name with another key in it, as a secret that was renewed in place."""
    keys = opened()
    (old,) = keys().keys
    file = path / old.file_name
    file.write_bytes(generate("ES256", NOW)[1])
    os.utime(file, ns=(1, 1))

    clock.tick(REREAD_S)

    (new,) = keys().keys
    assert new.file_name == old.file_name
    assert new.kid != old.kid


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nMIGH"])
def test_a_broken_file_is_left_out_and_the_others_go_on(opened, path, clock, content, caplog):
    """Half written, or no key at all: it is logged by name, without its content."""
    keys = opened()
    broken = path / "20261120T115900Z-es256.pem"
    broken.write_bytes(content)

    with caplog.at_level(logging.ERROR):
        clock.tick(REREAD_S)
        assert names(keys) == [HOUR_OLD]

    assert [record.message for record in caplog.records] == ["keys.refused"]
    assert broken.name in caplog.records[0].__dict__["cause"]
    broken.write_bytes(generate("ES256", NOW)[1])
    clock.tick(REREAD_S)
    assert names(keys) == [broken.name, HOUR_OLD]


def make_pipe(file: Path) -> None:
    """A pipe that nobody writes into."""
    os.mkfifo(file)


def make_dangling(file: Path) -> None:
    """A link into nowhere."""
    file.symlink_to(file.with_name("nowhere"))


def make_loop(file: Path) -> None:
    """A link to itself."""
    file.symlink_to(file)


@pytest.mark.parametrize("make", [Path.mkdir, make_pipe, make_dangling, make_loop])
def test_what_is_no_file_is_left_out_and_hides_no_later_change(opened, path, clock, make, caplog):
    """Nobody waits for it, it is logged once and not at every look, and a removal is seen all the same."""
    keys = opened()
    second = add_key(path, age_s=7200)
    make(path / "20261120T115900Z-es256.pem")

    for _ in range(3):
        clock.tick(REREAD_S)
        assert names(keys) == [HOUR_OLD, second.name]
    second.unlink()
    clock.tick(REREAD_S)

    assert names(keys) == [HOUR_OLD]
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "keys.refused"
    ]


def test_a_change_that_keeps_size_and_time_is_noticed(opened, path, clock):
    """As new rights do, and copies that keep the time."""
    keys = opened()
    new = add_key(path, age_s=0)
    content, times = new.read_bytes(), new.stat()
    new.write_bytes(b"x" * len(content))
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    clock.tick(REREAD_S)
    assert names(keys) == [HOUR_OLD]

    new.write_bytes(content)
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    clock.tick(REREAD_S)

    assert names(keys) == [new.name, HOUR_OLD]


@pytest.mark.parametrize("how", ["gone", "a file"])
def test_a_folder_that_cannot_be_listed_leaves_the_ring_as_it_was(opened, path, clock, how, caplog):
    """An unmounted volume must not log everybody out; it is looked at again until it is back."""
    keys = opened()
    before = keys()
    aside = path.with_name("aside")
    shutil.copytree(path, aside, copy_function=shutil.copy2)
    shutil.rmtree(path)
    if how == "a file":
        path.write_text("")

    with caplog.at_level(logging.ERROR):
        clock.tick(REREAD_S)
        assert keys() is before

    assert [record.message for record in caplog.records] == ["keys.unreadable"]
    path.unlink(missing_ok=True)
    aside.rename(path)
    new = add_key(path, age_s=0)
    clock.tick(REREAD_S)
    assert names(keys) == [new.name, HOUR_OLD]


def test_a_service_does_not_start_on_a_folder_that_is_not_there(tmp_path, clock, audit):
    """Better no start than one without keys."""
    with pytest.raises(FileNotFoundError):
        KeyFolder(tmp_path / "nowhere", clock, audit, UNHURRIED.keys)


def test_an_emptied_folder_is_an_empty_ring_until_it_is_filled_again(opened, path, clock):
    """An accident that heals without a restart."""
    keys = opened()
    file = path / HOUR_OLD
    content = file.read_bytes()

    file.unlink()
    clock.tick(REREAD_S)
    emptied = names(keys)
    file.write_bytes(content)
    clock.tick(REREAD_S)

    assert (emptied, names(keys)) == ([], [HOUR_OLD])


def test_changes_are_security_events_and_the_start_names_its_keys(opened, path, clock, audit):
    """One event for each key, of nobody's request, and the same for every process that sees it."""
    keys = opened()
    (old,) = keys().keys
    keys.start()
    add_key(path, age_s=0)
    (path / HOUR_OLD).unlink()

    clock.tick(REREAD_S)
    (new,) = keys().keys

    assert audit.said() == [
        (Action.KEY_ADDED, f"{old.kid} ES256 start"),
        (Action.KEY_ADDED, f"{new.kid} ES256 reread"),
        (Action.KEY_REMOVED, f"{old.kid} ES256 reread"),
    ]
    assert [event.once for event in audit.events] == [old.kid, new.kid, old.kid]
    assert {event.origin for event in audit.events} == {NOWHERE}


def test_a_process_that_starts_long_after_the_folder_was_read_has_the_keys_of_now(opened, path, audit):
    """The process that forks the workers reads the folder once; its workers may start days later."""
    keys = opened()
    (path / HOUR_OLD).unlink()
    new = read_key(add_key(path, age_s=0))

    keys.start()

    assert [key.kid for key in keys().keys] == [new.kid]
    assert audit.said() == [(Action.KEY_ADDED, f"{new.kid} ES256 start")]


def test_a_process_does_not_start_with_keys_of_long_ago(opened, path):
    """Without the folder it would verify tokens by keys that may be gone."""
    keys = opened()
    path.rename(path.with_name("away"))

    with pytest.raises(FileNotFoundError):
        keys.start()


def test_many_threads_look_again_once(opened, path, clock, caplog):
    """The others wait for it, and all go on with what it found."""
    keys = opened()
    add_key(path, age_s=0)
    clock.tick(REREAD_S)

    with caplog.at_level(logging.INFO):
        rings = in_threads(*[keys] * 16)

    assert [len(ring.keys) for ring in rings] == [2] * 16
    assert [record.message for record in caplog.records] == ["keys.reread"]
    assert len(keys().keys) == 2
