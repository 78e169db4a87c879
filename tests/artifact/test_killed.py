"""Savers that are killed, that fail, and that meet: what is there is one artifact as a whole, the old or the new."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from artifact import versions
from artifact.versions import (
    LARGE,
    At,
    add_strangers,
    begun,
    numbers,
    save_version,
    strangers_in,
    tensors_of,
    version_of,
)
from interleaving import before_calls, raising
from secateur import _folders
from secateur.artifact import Artifact, load, reader, save, verify
from secateur.errors import ArtifactError

TESTS = Path(__file__).parents[1]
KILLS = 40

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, "-m", "artifact.versions", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


def seconds_of_a_save(folder: Path) -> float:
    start = time.perf_counter()
    save_version(folder, 0, LARGE)
    return time.perf_counter() - start


def kill_a_saver(server: subprocess.Popen[str], version: int, seconds: float) -> int:
    """Let a server save a version, kill the saver some time after it began; its exit code."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{version}\n")
    server.stdin.flush()
    _, saver = server.stdout.readline().split()
    time.sleep(seconds)
    with suppress(ProcessLookupError):  # it has ended
        os.kill(int(saver), signal.SIGKILL)
    return int(server.stdout.readline())


@forking
@pytest.mark.slow
@pytest.mark.parametrize("is_new", [False, True])
def test_a_process_killed_at_any_time_leaves_the_old_or_the_new(is_new: bool, tmp_path: Path) -> None:
    """Each of these savers finds what the one before, which was killed too, left."""
    folder = tmp_path / "place" / "saved"
    begun(folder, is_new=True)
    longest = seconds_of_a_save(tmp_path / "timed")
    chance, killed = random.Random(int(is_new)), 0  # noqa: S311 - guards nothing
    if not is_new:
        save_version(folder, 0, LARGE)
        add_strangers(folder)
    before = version_of(folder)
    with process("serve", folder, stdin=subprocess.PIPE) as server:
        for version in range(1, KILLS // 2 + 1):
            returncode = kill_a_saver(server, version, chance.uniform(0.2, 1) * longest)
            # So that about as many are killed before as behind the moment in which one takes the place of the other.
            longest *= 0.8 if returncode == 0 or version_of(folder) == version else 1.2
            killed += returncode != 0
            found = version_of(folder)
            assert found in {before, version}
            assert is_new or strangers_in(folder)
            before = None if is_new else found
            if is_new and found is not None:
                begun(folder, is_new=True)
        server.communicate()
    assert server.returncode == 0
    assert killed >= KILLS // 4
    save_version(folder, 1000)
    assert version_of(folder) == 1000
    assert os.listdir(folder.parent) == ["saved"]


@forking
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["old", "new"])
def test_a_process_that_ends_at_any_call_leaves_the_old_or_the_new(kind: str, tmp_path: Path) -> None:
    """In a process of its own, which forks one for each call; see `versions.sweep`."""
    with process("sweep", tmp_path / "place" / "saved", kind) as sweeper:
        found, _ = sweeper.communicate(timeout=300)
    assert sweeper.returncode == 0
    assert int(found) > 50


MAY_FAIL = versions.CALLS - {"close"}
"""A descriptor that is not closed keeps its lock, and nothing can be done about that."""


class StoppedError(BaseException):
    """As when a person presses a key."""


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error.with_traceback(None)

    return fail


FULL, DENIED = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EACCES, "Permission denied")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "is_new"),
    [(FULL, False), (FULL, True), (DENIED, False), (StoppedError(), False), (StoppedError(), True)],
    ids=["full-old", "full-new", "denied-old", "stopped-old", "stopped-new"],
)
def test_an_error_at_any_call_is_clear_and_changes_nothing(
    error: BaseException, is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", os.isatty)  # nothing is lost without waiting for a disk
    folder = tmp_path / "place" / "saved"
    begun(folder, is_new=is_new)
    for number in numbers():  # each begins with what the one before saved
        if is_new:
            begun(folder, is_new=True)
        before, version = None if is_new else 2 * number - 2, 2 * number - 1
        at = At(number, failing(error), MAY_FAIL)
        may_be, text = {version}, str(folder)
        try:
            with at:
                save_version(folder, version)
        except ArtifactError as caught:
            may_be, text = {before}, str(caught)
        except StoppedError:
            may_be = {before, version}
        assert str(folder.parent) in text
        assert is_new or folder.is_dir(), number
        assert version_of(folder) in may_be, number
        assert is_new or strangers_in(folder), number
        save_version(folder, 2 * number)
        assert version_of(folder) == 2 * number, number
        assert os.listdir(folder.parent) == [folder.name], number
        if at.count < number:
            break
    assert number > 50


def test_the_error_of_a_full_disk_says_what_holds(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_version(folder, 0)
    full = At(1, failing(OSError(errno.ENOSPC, "No space left on device")), frozenset({"fsync"}))
    message = r"saved: cannot be written \(\[Errno 28\] No space left on device\)\. It is unchanged\."
    with full, pytest.raises(ArtifactError, match=message):
        save_version(folder, 1)
    assert version_of(folder) == 0
    assert os.listdir(tmp_path) == ["saved"]


@forking
def test_a_file_that_may_not_grow_leaves_the_old(tmp_path: Path) -> None:
    import resource

    folder = tmp_path / "saved"
    save_version(folder, 0)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    with process("save", folder, 1, stderr=subprocess.PIPE, preexec_fn=limited) as saver:
        _, errors = saver.communicate()
    assert "ArtifactError" in errors
    assert "cannot be written ([Errno 27] File too large). It is unchanged." in errors
    assert version_of(folder) == 0
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_may_not_be_written_is_an_error(tmp_path: Path) -> None:
    save_version(tmp_path / "saved", 0)
    tmp_path.chmod(0o555)
    try:
        for name in ("saved", "other"):
            with pytest.raises(ArtifactError, match=r"cannot be written .*Permission denied.*Choose another path"):
                save_version(tmp_path / name, 1)
        assert version_of(tmp_path / "saved") == 0
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"file/saved: .*"):
        save_version(tmp_path / "file" / "saved", 1)
    with pytest.raises(ArtifactError, match=r"file: must be a folder, found a file\. Choose another path"):
        save_version(tmp_path / "file", 1)


@pytest.mark.slow
def test_savers_at_once_end_with_one_whole_artifact(tmp_path: Path) -> None:
    """And whoever reads meanwhile sees one whole artifact each time."""
    folder, savers = tmp_path / "place" / "saved", 4
    begun(folder, is_new=False)
    running = [process("save", folder, *range(100 * saver + 1, 100 * saver + 8)) for saver in range(savers)]
    reads, seen = 0, set()
    while any(saver.poll() is None for saver in running):
        seen.add(tensors_of(Artifact(folder)))
        reads += 1
    for saver in running:
        saver.communicate()
    assert [saver.returncode for saver in running] == [0] * savers
    assert version_of(folder) in {100 * saver + 7 for saver in range(savers)}
    assert strangers_in(folder)
    assert os.listdir(folder.parent) == ["saved"]
    assert reads > len(seen) > 5


def test_a_reader_goes_on_reading_what_it_opened(tmp_path: Path) -> None:
    save_version(tmp_path / "saved", 0)
    opened = Artifact(tmp_path / "saved")
    first = opened["tensor0"].bits
    save_version(tmp_path / "saved", 1)
    assert int(first[0]) == 0
    assert tensors_of(opened) == 0
    assert tensors_of(Artifact(tmp_path / "saved")) == 1


def test_a_reader_of_too_many_shards_to_hold_reads_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_OPEN_FILES", 0)
    save_version(tmp_path / "saved", 0)
    opened = Artifact(tmp_path / "saved")
    assert tensors_of(opened) == 0
    save_version(tmp_path / "saved", 1)
    for name in opened:
        with pytest.raises(ArtifactError, match="was changed or replaced by another process"):
            opened[name]
    with pytest.raises(ArtifactError, match="was changed or replaced by another process"):
        opened.check_files()


def linear(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(8, 4)


def test_a_model_is_filled_from_one_artifact(tmp_path: Path) -> None:
    """Though another takes its place between any two reads."""
    first, second = linear(1), linear(2)
    save(first, tmp_path / "saved")
    with before_calls(Artifact.__getitem__, lambda _: save(second, tmp_path / "saved")):
        loaded = load(tmp_path / "saved", linear(3))
    assert torch.equal(loaded.weight, first.weight)
    assert torch.equal(loaded.bias, first.bias)


@pytest.mark.parametrize("name", ["saved", "a[1]*?", "-", "a b", "é", "x" * 200])
def test_what_is_left_behind_is_removed_by_the_next_and_nothing_else(name: str, tmp_path: Path) -> None:
    other = [
        f"{_folders.NEW_PREFIX}-{name}",
        f"{_folders.NEW_PREFIX}-other-abcdefgh",
        f"{_folders.NEW_PREFIX}-{name}-abcdefghi",
        ".new",
        ".old-saved",
    ]
    for left in (f"{_folders.NEW_PREFIX}-{name}-abcdefgh", *other):
        (tmp_path / left).mkdir()
    save_version(tmp_path / name, 1)
    assert sorted(os.listdir(tmp_path)) == sorted([*other, name])


def test_what_a_living_saver_writes_is_left_alone(tmp_path: Path) -> None:
    with _folders.replace_folder(tmp_path / "saved", lambda _: set()) as new:
        (new / "file").write_text("one")
        save_version(tmp_path / "saved", 1)
        assert (new / "file").read_text() == "one"
    assert (tmp_path / "saved" / "file").read_text() == "one"
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.parametrize("leftover", ["complete", "damaged"])
def test_a_folder_that_lost_its_name_gets_it_back(leftover: str, tmp_path: Path) -> None:
    """As it was: what is damaged is told of by whoever reads it."""
    save_version(tmp_path / "saved", 1)
    (tmp_path / "saved").rename(tmp_path / f"{_folders.OLD_PREFIX}-saved")
    if leftover == "damaged":
        (tmp_path / f"{_folders.OLD_PREFIX}-saved" / "config.json").unlink()
        with pytest.raises(ArtifactError, match=r"config.json: cannot be read"):
            verify(tmp_path / "saved")
    else:
        assert version_of(tmp_path / "saved") == 1
    assert os.listdir(tmp_path) == ["saved"]


def test_reading_removes_nothing(tmp_path: Path) -> None:
    save_version(tmp_path / "saved", 1)
    for left in (f"{_folders.OLD_PREFIX}-saved", f"{_folders.NEW_PREFIX}-saved-abcdefgh"):
        (tmp_path / left).mkdir()
    assert version_of(tmp_path / "saved") == 1
    assert len(os.listdir(tmp_path)) == 3
    save_version(tmp_path / "saved", 2)
    assert os.listdir(tmp_path) == ["saved"]


def test_a_folder_whose_name_cannot_be_given_back_is_told_of(tmp_path: Path) -> None:
    save_version(tmp_path / "saved", 1)
    (tmp_path / "saved").rename(tmp_path / f"{_folders.OLD_PREFIX}-saved")
    for use in (Artifact, verify):
        read_only = before_calls(Path.rename, raising(OSError(errno.EROFS, "Read-only file system")))
        with (
            read_only,
            pytest.raises(ArtifactError, match=r"was being replaced by a process that was killed.*Rename it\."),
        ):
            use(tmp_path / "saved")


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    save_version(tmp_path / "real", 1)
    (tmp_path / "link").symlink_to("real")
    for version in (2, 3):
        save_version(tmp_path / "link", version)
        assert (tmp_path / "link").is_symlink()
        assert version_of(tmp_path / "link") == version_of(tmp_path / "real") == version
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_paths_that_are_no_names_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_version(tmp_path / "saved", 1)
    (tmp_path / "saved" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "saved")
    assert version_of(Path()) == version_of(Path("below/..")) == version_of(Path("..", "saved")) == 1
    save_version(Path("../saved"), 2)
    assert version_of(tmp_path / "saved") == 2


def test_strangers_are_carried_over_and_files_of_the_old_artifact_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_version(folder, 0, LARGE)
    add_strangers(folder)
    before = sorted(path.name for path in folder.glob("*.safetensors"))
    bits = np.zeros(3, "<u4")
    source = versions.Source(tensors={"a": versions.SourceTensor(dtype="U32", shape=(3,), read=lambda: bits)})
    versions.write(source, folder)
    assert strangers_in(folder)
    assert len(before) > 1
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    assert names == sorted([*versions.STRANGERS, "link", "packed-00001-of-00001.safetensors", "secateur.json"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that are files")
def test_a_stranger_that_cannot_be_copied_is_an_error(tmp_path: Path) -> None:
    save_version(tmp_path / "saved", 0)
    os.mkfifo(tmp_path / "saved" / "pipe")
    with pytest.raises(ArtifactError, match=r"cannot be written .*pipe.* is a named pipe.*It is unchanged"):
        save_version(tmp_path / "saved", 1)
    assert version_of(tmp_path / "saved") == 0
    assert os.listdir(tmp_path) == ["saved"]


def test_an_empty_folder_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    save_version(tmp_path / "saved", 0)
    assert version_of(tmp_path / "saved") == 0
