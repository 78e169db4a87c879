"""Replace folders atomically, and lock them while they are read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from secateur._locks import lock_folder, try_lock_folder
from secateur._wording import format_list
from secateur.errors import ArtifactError

__all__ = ["lock_for_reading", "replace_folder", "sync_folder"]

NEW_PREFIX = ".secateur-new"
"""Prefix of a folder that is being written, next to the folder that it will replace."""

OLD_PREFIX = ".secateur-old"
"""Prefix of a folder that is being replaced, between the two renames."""

RANDOM_SUFFIX = "[a-z0-9_]{8}"
"""Matches the suffix that `mkdtemp` appends to a name."""


@contextmanager
def replace_folder(target: Path, list_owned: Callable[[Path], set[str] | None]) -> Iterator[Path]:
    """Yield a new folder to write into, which replaces `target` if the block ends without an error.

    If the process is killed at any time, the old or the new folder remains. Between the two renames, `target` does not
    exist; `lock_for_reading` restores it.

    Args:
        target: The folder to replace.
        list_owned: Returns the files of an existing folder that may be deleted, or ``None`` if the folder must not be
            replaced. All other files move to the new folder.

    Raises:
        ArtifactError: `target` is something else, cannot be written, or is locked by another process.
    """
    target = Path(os.path.realpath(target))
    _check_replaceable(target, list_owned)
    with _create_folder(target) as new:
        try:
            yield new
            _sync_all(new)
            with lock_folder(target.parent):
                _recover(target)
                if target.is_dir():
                    _move_other_files(target, new, list_owned(target) or set())
                _sync_all(new)
                _swap(new, target)
        except OSError as error:
            raise ArtifactError(f"{target}: cannot be written ({error}). It is unchanged.") from error


@contextmanager
def lock_for_reading(target: Path) -> Iterator[None]:
    """Prevent a folder from being replaced while it is read; other processes may read it at the same time.

    If a process was killed while it replaced the folder, the folder is renamed back.

    Raises:
        ArtifactError: The folder cannot be renamed back, or another process holds the lock for too long.
    """
    target = Path(os.path.realpath(target))
    while True:
        with lock_folder(target.parent, is_shared=True):
            if not _is_interrupted(target):
                yield
                return
        with lock_folder(target.parent):
            try:
                _recover(target)
            except OSError as error:
                raise ArtifactError(
                    f"{target}: was being replaced by a process that was killed, and the previous folder, "
                    f"{_get_old_path(target)}, cannot be renamed ({error}). Rename it."
                ) from error


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to the disk."""
    if hasattr(os, "O_DIRECTORY"):
        _sync(folder, os.O_DIRECTORY)


@contextmanager
def _create_folder(target: Path) -> Iterator[Path]:
    """Create a locked folder next to the target, and remove it at the end if it still exists."""
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with lock_folder(target.parent):
                _remove_unfinished(target)
                new = Path(mkdtemp(prefix=f"{NEW_PREFIX}-{target.name}-", dir=target.parent))
                stack.enter_context(lock_folder(new))
                stack.callback(shutil.rmtree, new, ignore_errors=True)
                new.chmod(0o777 & ~_get_umask())
        except OSError as error:
            raise ArtifactError(f"{target}: cannot be written ({error}). Choose another path.") from error
        yield new


def _check_replaceable(target: Path, list_owned: Callable[[Path], set[str] | None]) -> None:
    """Raise `ArtifactError` if `target` exists and must not be replaced."""
    with lock_for_reading(target):
        try:
            names = sorted(path.name for path in target.iterdir())
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise ArtifactError(f"{target}: must be a folder, found a file. Choose another path.") from error
        except OSError as error:
            raise ArtifactError(f"{target}: cannot be read ({error}). Choose another path.") from error
        if names and list_owned(target) is None:
            raise ArtifactError(
                f"{target}: must be new, empty or an artifact, which is replaced; found a folder with "
                f"{format_list(names)}. Choose another folder."
            )


def _is_interrupted(target: Path) -> bool:
    """Whether a process was killed between the two renames."""
    return os.path.lexists(_get_old_path(target)) and not os.path.lexists(target)


def _recover(target: Path) -> None:
    if _is_interrupted(target):
        _get_old_path(target).rename(target)


def _swap(new: Path, target: Path) -> None:
    """Do both renames, or neither."""
    old = _get_old_path(target)
    shutil.rmtree(old, ignore_errors=True)
    try:
        if target.is_dir():
            target.rename(old)
        new.rename(target)
        sync_folder(target.parent)
    except BaseException:
        if not new.exists():
            target.rename(new)
        _recover(target)
        raise
    with suppress(OSError):
        old.rename(new)  # removed later, when no other process waits for the lock


def _get_old_path(target: Path) -> Path:
    return target.with_name(f"{OLD_PREFIX}-{target.name}")


def _move_other_files(target: Path, new: Path, owned: set[str], subfolder: str = "") -> None:
    """Copy or link files that are not replaced; they also remain in the old folder in case the process is killed."""
    for entry in (target / subfolder).iterdir():
        name = f"{subfolder}{entry.name}"
        copy = new / name
        if name in owned:
            continue
        is_folder = entry.is_dir() and not entry.is_symlink()
        if is_folder and (copy.is_dir() or any(file.startswith(f"{name}/") for file in owned)):
            _move_other_files(target, new, owned, f"{name}/")
        elif not os.path.lexists(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            if is_folder:
                shutil.copytree(entry, copy, symlinks=True)
            else:
                _link_or_copy(entry, copy)


def _link_or_copy(file: Path, copy: Path) -> None:
    """Link a file, to hold the lock only briefly, or copy it if that fails."""
    if file.is_file() and not file.is_symlink():
        with suppress(OSError, NotImplementedError):
            os.link(file, copy)
            return
    shutil.copy2(file, copy, follow_symlinks=False)


def _remove_unfinished(target: Path) -> None:
    """Remove new folders that killed processes left behind; a running process holds the lock of its folder."""
    unfinished = re.compile(re.escape(f"{NEW_PREFIX}-{target.name}-") + RANDOM_SUFFIX)
    for folder in target.parent.iterdir():
        if unfinished.fullmatch(folder.name):
            with try_lock_folder(folder) as is_locked:
                if is_locked:
                    shutil.rmtree(folder, ignore_errors=True)


def _sync_all(folder: Path) -> None:
    """Flush a folder and everything in it to the disk."""
    if hasattr(os, "O_DIRECTORY"):
        for path in folder.rglob("*"):
            if not path.is_symlink():
                _sync(path)
        _sync(folder)


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
