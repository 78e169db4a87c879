"""Locks on folders: who waits for whom, for how long, and what is said."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from artifact.versions import save_version, version_of
from secateur import _locks
from secateur._locks import lock_folder, try_lock_folder
from secateur.artifact import Artifact, convert, inspect, verify
from secateur.errors import ArtifactError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_locks, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(_locks, "SECONDS_BEFORE_WARNING", 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_version(tmp_path / "saved", 0)
    return tmp_path / "saved"


@pytest.fixture
def locked(folder: Path) -> Iterator[Path]:
    """An artifact beside which somebody holds the lock; another descriptor of one process is like another process."""
    with lock_folder(folder.parent):
        yield folder


USES: list[Callable[[Path], Any]] = [
    Artifact,
    verify,
    inspect,
    lambda path: convert(path, path.parent / "target"),
    lambda path: save_version(path, 1),
    lambda path: save_version(path.parent / "new", 1),
]


@pytest.mark.parametrize("use", USES)
def test_a_lock_that_is_held_for_too_long_is_an_error(
    use: Callable[[Path], Any], locked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(ArtifactError) as caught:
        use(locked)
    assert time.monotonic() - start >= 0.3
    assert str(caught.value).startswith(f"{locked.parent}: another process has held the lock of this folder for more")
    assert str(caught.value).endswith("Wait until it ends, or stop it.")
    assert [record.getMessage().partition("another")[0] for record in caplog.records] == ["Waiting up to 0 s for "]
    assert os.listdir(locked.parent) == ["saved"]


def test_a_lock_that_is_given_back_in_time_is_waited_for(folder: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(lock_folder(folder.parent))
        timer = threading.Timer(0.15, stack.close)
        timer.start()
        assert version_of(folder) == 0
        timer.join()


def test_readers_do_not_wait_for_each_other(folder: Path) -> None:
    with lock_folder(folder.parent, is_shared=True):
        assert version_of(folder) == 0
        assert verify(folder)
        with pytest.raises(ArtifactError, match="another process has held the lock"):
            save_version(folder, 1)
    assert version_of(folder) == 0
    save_version(folder, 1)


def test_a_lock_ends_though_a_process_was_forked_meanwhile(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with try_lock_folder(tmp_path) as is_locked:
            assert is_locked
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def unsupported(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    save_version(folder, 1)
    assert version_of(folder) == 1


def test_large_files_of_others_are_not_copied_while_the_lock_is_held(folder: Path) -> None:
    (folder / "mine.bin").write_bytes(b"mine")
    before = (folder / "mine.bin").stat().st_ino
    save_version(folder, 1)
    assert (folder / "mine.bin").stat().st_ino == before
    assert (folder / "mine.bin").read_bytes() == b"mine"
    assert version_of(folder) == 1
