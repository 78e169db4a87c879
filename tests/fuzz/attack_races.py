"""Attack with concurrent savers, readers and converters: each reader gets one complete version."""

import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from artifact.versions import CALLS, At, save_version, tensors_of, version_of
from fuzz.harness import attack
from secateur.artifact import Artifact, convert, inspect, verify

SECONDS = 0.25


def read(folder: Path) -> int:
    opened = Artifact(folder)
    time.sleep(0.001)
    version = tensors_of(opened)
    assert json.loads(opened.read_file("config.json")) == {"version": version}
    opened.check_files()
    return version


def copy(folder: Path) -> int:
    opened = Artifact(folder)
    with tempfile.TemporaryDirectory() as target:
        opened.copy_files(Path(target))
        version = tensors_of(opened)
        assert json.loads(Path(target, "config.json").read_text()) == {"version": version}
        assert Path(target, "part", "own.json").read_text() == str(version)
    return version


def convert_copy(folder: Path) -> int | None:
    with tempfile.TemporaryDirectory() as target:
        convert(folder, Path(target, "copy"))
        return version_of(Path(target, "copy"))


def look(folder: Path) -> None:
    assert verify(folder).disk_bytes
    assert inspect(folder).disk_bytes


READERS: list[Callable[[Path], int | None]] = [read, copy, convert_copy, look]


def save_for(folder: Path, number: int, until: float) -> None:
    version = number
    while time.monotonic() < until:
        save_version(folder, version)
        version += 10


def read_for(folder: Path, reader: Callable[[Path], int | None], until: float) -> None:
    while time.monotonic() < until:
        reader(folder)


def in_process(work: Callable[[], None]) -> Callable[[], None]:
    """Run a function in a new process; returns a function that waits for its end."""
    process = os.fork()
    if not process:
        try:
            work()
        except BaseException:  # noqa: BLE001 - any error is shown
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)

    def join() -> None:
        _, status = os.waitpid(process, 0)
        assert status == 0, "see the traceback of the process"

    return join


def in_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Run a function in a thread; returns a function that waits for its end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - is raised again
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join() -> None:
        thread.join()
        for error in errors:
            raise error

    return join


@attack(cases=6, seconds=60, may_refuse=False)
def savers_beside_readers(chance: random.Random, folder: Path) -> None:
    """Save in some processes or threads, and read, copy, convert and verify in others."""
    saved = folder / "saved"
    with mock.patch.object(os, "fsync", os.isatty):  # no need to wait for a disk
        save_version(saved, 0)
        until = time.monotonic() + SECONDS
        begin = in_process if chance.random() < 0.7 and hasattr(os, "fork") else in_thread
        joins = [begin(lambda number=number: save_for(saved, number, until)) for number in range(chance.randint(1, 3))]
        readers = [chance.choice(READERS) for _ in range(chance.randint(1, 4))]
        joins += [begin(lambda reader=reader: read_for(saved, reader, until)) for reader in readers]
        for join in joins:
            join()
        assert version_of(saved) is not None
        assert os.listdir(folder) == ["saved"]


@attack(cases=20, seconds=60, may_refuse=False)
def saver_at_any_moment_of_a_reader(chance: random.Random, folder: Path) -> None:
    """Save another version at a random file system call of a reader."""
    saved = folder / "saved"
    with mock.patch.object(os, "fsync", os.isatty):
        save_version(saved, 0)
        reader = chance.choice([read, copy, convert_copy])

        def save_another() -> None:
            # In a thread, because the reader may hold the lock.
            join = in_thread(lambda: save_version(saved, 1))
            joins.append(join)
            time.sleep(0.01)

        joins: list[Callable[[], None]] = []
        with At(chance.randrange(1, 250), save_another, CALLS - {"isatty", "close"}):
            assert reader(saved) in {0, 1}
        for join in joins:
            join()
        assert version_of(saved) == (1 if joins else 0)
