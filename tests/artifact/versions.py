"""Artifacts of which every part says its version, and savers that are killed. No framework is imported."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from secateur.artifact import Artifact
from secateur.artifact.source import Source, SourceTensor
from secateur.artifact.writer import write
from secateur.errors import ArtifactError

TENSORS = 4
SMALL, LARGE = 64, 300_000
"""Numbers of a tensor."""

KILLED = 9

STRANGERS = {"notes.txt": "mine", "deep/own.txt": "mine too", "part/own.txt": "mine as well", ".hidden": "and mine"}
"""Files in the folder of an artifact that are none of its own; in ``part`` the artifact has one too."""

LINK = "link"

CALLS = frozenset({
    "chmod", "close", "copyfile", "fchmod", "flock", "flush", "fsync", "isatty", "link", "listdir", "lstat", "mkdir",
    "open", "preadv", "read", "readinto", "realpath", "remove", "rename", "rmdir", "scandir", "sendfile",
    "truncate", "unlink", "utime", "write", "writelines",
})  # fmt: skip
"""Names of what Python calls to see or change files."""


def save_version(folder: Path, version: int, count: int = SMALL) -> None:
    """An artifact of several shards, with a file beside them and one in a folder."""

    def write_files(made: Path) -> None:
        (made / "config.json").write_text(json.dumps({"version": version}))
        (made / "part").mkdir()
        (made / "part" / "own.json").write_text(str(version))

    bits = np.full(count, version, "<u4")
    tensors = {
        f"tensor{number}": SourceTensor(dtype="U32", shape=bits.shape, read=partial(np.copy, bits))
        for number in range(TENSORS)
    }
    write(Source(tensors=tensors, write_files=write_files), folder, shard_bytes=2 * bits.nbytes)


def version_of(folder: Path) -> int | None:
    """The version that everything in a folder is of; ``None``: there is none, and no trace of one."""
    try:
        artifact = Artifact(folder)
    except ArtifactError:
        assert not folder.exists()
        return None
    artifact.check_files()
    found = tensors_of(artifact)
    assert json.loads((folder / "config.json").read_text()) == {"version": found}
    assert (folder / "part" / "own.json").read_text() == str(found)
    return found


def tensors_of(artifact: Artifact) -> int:
    """The version that all tensors are of."""
    assert len(artifact) == TENSORS
    (version,) = {int(number) for name in artifact for number in np.unique(artifact[name].bits)}
    return version


def add_strangers(folder: Path) -> None:
    """What somebody put into the folder."""
    for name, text in STRANGERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / LINK).symlink_to("nothing")


def strangers_in(folder: Path) -> bool:
    """Whether all of that is there."""
    texts = {name: (folder / name).read_text() for name in STRANGERS if (folder / name).is_file()}
    return texts == STRANGERS and os.readlink(folder / LINK) == "nothing"


def without_waiting() -> None:
    """Call another function where a disk would be waited for; a process that ends loses nothing that was written."""
    os.fsync = os.isatty  # type: ignore[assignment]


def begun(folder: Path, *, is_new: bool) -> None:
    """A place for an artifact: version 0 with strangers, or nothing."""
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir(parents=True)
    if not is_new:
        save_version(folder, 0)
        add_strangers(folder)


class At:
    """While this is open, the call of that number to the file system is replaced by something else.

    Attributes:
        calls: Names of the calls that count.
        count: Calls so far.
    """

    def __init__(self, number: int, what: Callable[[], Any], calls: frozenset[str] = CALLS) -> None:
        self.number, self.what, self.calls, self.count = number, what, calls, 0

    def __enter__(self) -> "At":
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, function: Any) -> None:  # noqa: ARG002
        if event == "c_call" and function.__name__ in self.calls:
            self.count += 1
            if self.count == self.number:
                self.what()


def killed(folder: Path, version: int, number: int) -> bool:
    """Save in a process that ends at the call of that number; whether it came to it."""
    process = os.fork()
    if not process:
        with At(number, lambda: os._exit(KILLED)):
            save_version(folder, version)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, KILLED}, code
    return code == KILLED


def sweep(folder: Path, *, is_new: bool) -> int:
    """End a saver at each of its calls, and at every second one another where that one left off; how many were ended.

    After each, what is there must be one version as a whole, and the next saver must leave nothing but its own.
    """
    begun(folder, is_new=is_new)
    for number in numbers():  # each begins with what the one before saved
        if is_new:
            begun(folder, is_new=True)
        first, version = None if is_new else 3 * number - 3, 3 * number - 2
        is_over = not killed(folder, version, number)
        seen = version_of(folder)
        assert seen == version if is_over else seen in {first, version}, number
        if number % 2:
            killed(folder, version + 1, number)
            assert version_of(folder) in {seen, version + 1}, number
        assert is_new or strangers_in(folder), number
        save_version(folder, version + 2)
        assert version_of(folder) == version + 2, number
        assert os.listdir(folder.parent) == [folder.name], number
        assert is_new or strangers_in(folder), number
        if is_over:
            return number - 1
    raise AssertionError


def numbers() -> Iterator[int]:
    """Calls: each."""
    return iter(range(1, 100_000))


def serve(folder: Path) -> None:
    """Save each version that a line of the input names, in a process of its own, which the reader may kill.

    Prints ``ready PID`` before each and its exit code after it. A fork costs less than another interpreter.
    """
    for line in sys.stdin:
        process = os.fork()
        if not process:
            print("ready", os.getpid(), flush=True)
            save_version(folder, int(line), LARGE)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def main(verb: str, folder: str, *arguments: str) -> None:
    """What a process of its own does."""
    if verb == "serve":
        serve(Path(folder))
        return
    if verb == "sweep":
        without_waiting()
        print(sweep(Path(folder), is_new=arguments == ("new",)))
        return
    for version in arguments:
        print("ready", flush=True)
        save_version(Path(folder), int(version), LARGE)


if __name__ == "__main__":
    main(*sys.argv[1:])
