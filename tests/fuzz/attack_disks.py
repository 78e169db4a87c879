"""Attack writing artifacts with kills, full disks and failing calls: the old or the new version is complete."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from artifact.versions import (
    CALLS,
    KILLED,
    At,
    add_strangers,
    save_version,
    strangers_in,
    version_of,
)
from fuzz.harness import attack
from secateur.artifact import convert
from secateur.errors import ArtifactError

MAX_CALL = 700

ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOMEM, errno.EMFILE, errno.EINTR]

MAY_FAIL = CALLS - {"close", "isatty", "flock"}


def begin(chance: random.Random, folder: Path) -> tuple[Path, int | None]:
    """Create a folder with version 0, or an empty one."""
    saved = folder / "place" / "saved"
    saved.parent.mkdir()
    if chance.random() < 0.3:
        return saved, None
    save_version(saved, 0)
    add_strangers(saved)
    return saved, 0


def choose_writer(chance: random.Random, folder: Path, saved: Path) -> Callable[[], Any]:
    """Return a function that writes version 1 by saving or converting."""
    if chance.random() < 0.7:
        return lambda: save_version(saved, 1)
    save_version(folder / "source", 1)
    return lambda: convert(folder / "source", saved)


def check(saved: Path, expected: set[int | None], before: int | None) -> None:
    version = version_of(saved)
    assert version in expected, (version, expected)
    assert before is None or strangers_in(saved)
    save_version(saved, 2)
    assert version_of(saved) == 2
    assert os.listdir(saved.parent) == ["saved"]


@attack(cases=15, seconds=30, may_refuse=False)
def killed_at_any_call(chance: random.Random, folder: Path) -> None:
    """Kill a process that saves or converts."""
    if not hasattr(os, "fork"):
        return
    with mock.patch.object(os, "fsync", os.isatty):
        saved, before = begin(chance, folder)
        write, number = choose_writer(chance, folder, saved), chance.randrange(1, MAX_CALL)
        process = os.fork()
        if not process:
            with At(number, lambda: os._exit(KILLED)):
                write()
            os._exit(0)
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in {0, KILLED}, code
        check(saved, {1} if code == 0 else {before, 1}, before)


@attack(cases=30, seconds=30, may_refuse=False)
def failing_call(chance: random.Random, folder: Path) -> None:
    """Fail a call to the file system: an `ArtifactError` is raised, and nothing changes."""
    with mock.patch.object(os, "fsync", os.isatty):
        saved, before = begin(chance, folder)
        write = choose_writer(chance, folder, saved)
        number = chance.choice(ERRORS)

        def fail() -> None:
            raise OSError(number, os.strerror(number))

        expected: set[int | None] = {1}
        try:
            with At(chance.randrange(1, MAX_CALL), fail, MAY_FAIL):
                write()
        except ArtifactError:
            expected = {before}
        check(saved, expected, before)


@attack(cases=15, seconds=30, may_refuse=False)
def full_disk(chance: random.Random, folder: Path) -> None:
    """Limit files to a random size, as with a quota."""
    if not hasattr(os, "fork"):
        return
    import resource

    with mock.patch.object(os, "fsync", os.isatty):
        saved, before = begin(chance, folder)
        write, limit = choose_writer(chance, folder, saved), chance.randrange(0, 3000)
        process = os.fork()
        if not process:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            code = 0
            try:
                write()
            except ArtifactError:
                code = KILLED
            except BaseException:  # noqa: BLE001 - any other error is a failure
                code = 1
            os._exit(code)
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in {0, KILLED}, code
        check(saved, {1} if code == 0 else {before}, before)
        shutil.rmtree(saved.parent)
