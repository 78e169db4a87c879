"""A folder that changes as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from secateur._wording import listed
from secateur.errors import ArtifactError

__all__ = ["recover", "replaced", "sync"]

NEW = ".new"
"""Begins the name of a folder that is being written beside the one that it is to become."""

OLD = ".old"
"""Begins the name of the folder that is replaced, for the moment between the two renamings."""


@contextmanager
def replaced(target: Path, own: Callable[[Path], set[str] | None]) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when this closes without an error.

    Whenever the process is killed, `target` is what it was or what it was to become; `recover` brings back the one in
    the only moment in which it has no name.

    Args:
        target: The folder.
        own: Of an existing folder, the names in it that may go; ``None``: it is none that may be replaced. All else in
            it moves into the new one.

    Raises:
        ArtifactError: `target` is something else, or cannot be written.
    """
    target = Path(os.path.abspath(target))
    refuse_strangers(target, own)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(target)
        new = Path(mkdtemp(prefix=f"{NEW}-{os.getpid()}-", suffix=f"-{target.name}", dir=target.parent))
        new.chmod(0o777 & ~_umask())
    except OSError as error:
        raise ArtifactError(f"{target}: cannot be written ({error}). Choose another place.") from error
    try:
        yield new
        if target.is_dir():
            _carry_over(target, new, own(target) or set())
        sync(new)
        _swap(new, target)
    except OSError as error:
        raise ArtifactError(f"{target}: cannot be written ({error}). It is as it was.") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def refuse_strangers(target: Path, own: Callable[[Path], set[str] | None]) -> None:
    """Raise `ArtifactError` if `target` exists and is none that may be replaced."""
    recover(target)
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir())
        if names and own(target) is None:
            raise ArtifactError(
                f"{target}: must be new, empty or an artifact, which is replaced; found a folder with {listed(names)}. "
                f"Choose another."
            )
    elif os.path.lexists(target):
        raise ArtifactError(f"{target}: must be a folder, found a file. Choose another place.")


def recover(target: Path) -> None:
    """Give a folder its name back that it lost because a process was killed while it was replaced."""
    target = Path(os.path.abspath(target))  # "." has no name
    old = _old(target)
    if old.is_dir():
        if os.path.lexists(target):
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(new: Path, target: Path) -> None:
    old = _old(target)
    if target.is_dir():
        target.rename(old)
    new.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f"{OLD}-{target.name}")


def _carry_over(target: Path, new: Path, own: set[str]) -> None:
    """Copy what is not replaced; it is still in its old place if the process is killed."""
    for entry in target.iterdir():
        if entry.name in own or os.path.lexists(new / entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def _remove_unfinished(target: Path) -> None:
    """Remove what a killed process left; of a living one, which has its number in the name, nothing."""
    for folder in target.parent.glob(f"{NEW}-*-{target.name}"):
        number = folder.name.split("-")[1]
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
