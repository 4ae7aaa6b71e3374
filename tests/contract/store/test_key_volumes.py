"""The folder of signing keys on what a container sees: a Secret that is swapped, a disk that is slow."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from authsvc.domain.tokens.keys import KeyRing, generate
from authsvc.store.key_folder import FolderTimings, KeyFolder
from tests.contract.copies.redis_side import Stopwatch
from tests.contract.store.key_files import HOUR_OLD, NOW, Audit, add_key, names
from tests.timings import UNHURRIED

REREAD_S = FolderTimings().reread_s


@pytest.fixture
def clock() -> Stopwatch:
    """Make the clock by which looks grow old."""
    return Stopwatch()


@pytest.fixture
def audit() -> Audit:
    """Keep the security events."""
    return Audit()


class SecretVolume:
    """A folder as the kubelet shows a Secret: links through ``..data`` to a folder that is swapped whole."""

    def __init__(self, path: Path, files: dict[str, bytes]) -> None:
        self.path = path
        self.version = 0
        path.mkdir()
        self.show(files)

    def show(self, files: dict[str, bytes]) -> None:
        """Swap in *files*, all of them at once; then come the links of new ones, and those of old ones go."""
        self.version += 1
        made = self.path / f"..{self.version}"
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        (self.path / "..data_tmp").symlink_to(made.name)
        (self.path / "..data_tmp").rename(self.path / "..data")
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        for link in self.path.glob("*.pem"):
            if link.name not in files:
                link.unlink()
        shutil.rmtree(self.path / f"..{self.version - 1}", ignore_errors=True)


def test_a_changed_kubernetes_secret_is_noticed(tmp_path, clock, audit):
    """Added, replaced under the same name, removed: the links stay the same, what they lead to does not."""
    (first, one), (second, two) = generate("ES256", NOW - timedelta(hours=1)), generate("EdDSA", NOW)
    volume = SecretVolume(tmp_path / "secret", {first: one})
    keys = KeyFolder(volume.path, clock, audit, UNHURRIED.keys)

    seen = [names(keys)]
    for files in ({first: one, second: two}, {first: two}, {first: one}, {second: two}):
        volume.show(files)
        clock.tick(REREAD_S)
        seen.append([key.file_name + key.algorithm for key in keys().keys])

    assert seen == [
        [first],
        [f"{second}EdDSA", f"{first}ES256"],
        [f"{first}EdDSA"],
        [f"{first}ES256"],
        [f"{second}EdDSA"],
    ]


def test_a_secret_that_is_swapped_all_the_time_never_loses_a_key_that_stays(tmp_path, clock, audit):
    """However a look and a swap fall together, the key that every version has is in the ring."""
    (first, one), (second, two) = generate("ES256", NOW - timedelta(hours=1)), generate("EdDSA", NOW)
    volume = SecretVolume(tmp_path / "secret", {first: one})
    keys = KeyFolder(volume.path, clock, audit, UNHURRIED.keys)
    is_over = threading.Event()

    def swap() -> None:
        while not is_over.wait(0.001):
            volume.show({first: one, second: two} if volume.version % 2 else {first: one})

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        seen = []
        while volume.version < 50 and swapping.is_alive():
            clock.tick(REREAD_S)
            seen.append(names(keys))
    finally:
        is_over.set()
        swapping.join()

    assert [found for found in seen if first not in found] == []
    assert volume.version >= 50


class WatchedPath(type(Path())):  # type: ignore[misc]  # the class of this system's paths
    """A folder that tells before it is listed, and waits for whoever it tells."""

    before_listing: Callable[[], object]

    def iterdir(self) -> Iterator[Path]:
        """The entries, when the one who was told is done."""
        self.before_listing()
        yield from super().iterdir()


@pytest.fixture
def folder(tmp_path) -> WatchedPath:
    """Make a folder with one key, an hour old."""
    made = WatchedPath(tmp_path / "keys")
    made.before_listing = bool
    made.mkdir()
    add_key(made, age_s=3600)
    return made


class Gate:
    """What a disk waits at until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.times = 0

    def __call__(self) -> None:
        """Wait."""
        self.times += 1
        self.reached.set()
        assert self.opened.wait(120)


def test_after_a_long_idle_time_nobody_gets_the_old_ring(folder, clock, audit):
    """Requests that come together wait for the one that looks, and do not look again themselves."""
    keys = KeyFolder(folder, clock, audit, UNHURRIED.keys)
    (folder / HOUR_OLD).unlink()
    clock.tick(1000)
    folder.before_listing = gate = Gate()
    rings: list[KeyRing] = []

    threads = [threading.Thread(target=lambda: rings.append(keys())) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert gate.reached.wait(60)
    gate.opened.set()
    for thread in threads:
        thread.join(60)

    assert [len(ring.keys) for ring in rings] == [0] * 8
    assert gate.times < 8


def test_a_disk_that_hangs_costs_one_thread_and_a_second(folder, clock, audit, caplog):
    """The others go on with the keys there were, are told once, and see the change when the disk is back."""
    keys = KeyFolder(folder, clock, audit)
    before = keys()
    add_key(folder, age_s=0)
    clock.tick(REREAD_S)
    folder.before_listing = gate = Gate()

    hanging = threading.Thread(target=keys)
    hanging.start()
    assert gate.reached.wait(60)
    began = time.monotonic()
    meanwhile = [keys() for _ in range(30)]
    took_s = time.monotonic() - began
    gate.opened.set()
    hanging.join(60)

    assert {id(ring) for ring in meanwhile} == {id(before)}
    assert took_s < 15
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "keys.unreadable"
    ]
    assert len(keys().keys) == 2


def test_a_file_that_is_just_being_written_is_read_when_it_is_whole(folder, clock, audit):
    """Copied over the same name, it is empty for a moment: no token dies of that."""
    keys = KeyFolder(folder, clock, audit, UNHURRIED.keys)
    file = folder / HOUR_OLD
    content = file.read_bytes()
    file.write_bytes(b"")
    # The look lists it, reads it, and lists it again before it reads it once more.
    listings: Iterator[Callable[[], object]] = iter([bool, bool, lambda: file.write_bytes(content)])

    def go_on() -> None:
        next(listings, bool)()

    folder.before_listing = go_on

    clock.tick(REREAD_S)

    assert names(keys) == [HOUR_OLD]
