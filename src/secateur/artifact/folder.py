"""A folder that changes as a whole or not at all."""

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

__all__ = ["read_lock", "replace_folder", "sync"]

NEW = ".secateur-new"
"""Begins the name of a folder that is being written beside the one that it is to become."""

OLD = ".secateur-old"
"""Begins the name of the folder that is replaced, for the moment between the two renamings."""

RANDOM = "[a-z0-9_]{8}"
"""What `mkdtemp` puts behind a name."""


@contextmanager
def replace_folder(target: Path, own: Callable[[Path], set[str] | None]) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when this closes without an error.

    Whenever the process is killed, `target` is what it was or what it was to become; `read_lock` restores it from the
    only moment in which it has no name.

    Args:
        target: The folder.
        own: Of an existing folder, the files in it that may go; ``None``: the folder must not be replaced. All else in
            it moves into the new one.

    Raises:
        ArtifactError: `target` is something else, cannot be written, or is locked by another process.
    """
    target = Path(os.path.realpath(target))
    _refuse_strangers(target, own)
    with _begun(target) as new:
        try:
            yield new
            _sync_all(new)
            with lock_folder(target.parent):
                _recover(target)
                if target.is_dir():
                    _carry_over(target, new, own(target) or set())
                _sync_all(new)
                _swap(new, target)
        except OSError as error:
            raise ArtifactError(f"{target}: cannot be written ({error}). It is as it was.") from error


@contextmanager
def read_lock(target: Path) -> Iterator[None]:
    """Keep a folder from being replaced while this is open; others may read it at the same time.

    A folder that lost its name to a process that was killed while it replaced it gets its name back.

    Raises:
        ArtifactError: The name cannot be restored, or another process holds the lock for too long.
    """
    target = Path(os.path.realpath(target))
    while True:
        with lock_folder(target.parent, is_shared=True):
            if not _is_nameless(target):
                yield
                return
        with lock_folder(target.parent):
            try:
                _recover(target)
            except OSError as error:
                raise ArtifactError(
                    f"{target}: was being replaced by a process that was killed, and {_old(target)}, which is the one "
                    f"before, cannot be renamed ({error}). Rename it."
                ) from error


def sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    if hasattr(os, "O_DIRECTORY"):
        _sync(folder, os.O_DIRECTORY)


@contextmanager
def _begun(target: Path) -> Iterator[Path]:
    """A new folder beside the target, which nobody else takes for one that was left behind, and none when this ends."""
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with lock_folder(target.parent):
                _remove_unfinished(target)
                new = Path(mkdtemp(prefix=f"{NEW}-{target.name}-", dir=target.parent))
                stack.enter_context(lock_folder(new))
                stack.callback(shutil.rmtree, new, ignore_errors=True)
                new.chmod(0o777 & ~_umask())
        except OSError as error:
            raise ArtifactError(f"{target}: cannot be written ({error}). Choose another place.") from error
        yield new


def _refuse_strangers(target: Path, own: Callable[[Path], set[str] | None]) -> None:
    """Raise `ArtifactError` if `target` exists and is none that may be replaced."""
    with read_lock(target):
        try:
            names = sorted(path.name for path in target.iterdir())
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise ArtifactError(f"{target}: must be a folder, found a file. Choose another place.") from error
        except OSError as error:
            raise ArtifactError(f"{target}: cannot be read ({error}). Choose another place.") from error
        if names and own(target) is None:
            raise ArtifactError(
                f"{target}: must be new, empty or an artifact, which is replaced; found a folder with "
                f"{format_list(names)}. Choose another."
            )


def _is_nameless(target: Path) -> bool:
    """Whether a process was killed between the two renamings."""
    return os.path.lexists(_old(target)) and not os.path.lexists(target)


def _recover(target: Path) -> None:
    if _is_nameless(target):
        _old(target).rename(target)


def _swap(new: Path, target: Path) -> None:
    """Both renamings, or none."""
    old = _old(target)
    shutil.rmtree(old, ignore_errors=True)
    try:
        if target.is_dir():
            target.rename(old)
        new.rename(target)
        sync(target.parent)
    except BaseException:
        if not new.exists():
            target.rename(new)
        _recover(target)
        raise
    with suppress(OSError):
        old.rename(new)  # to be removed when nobody waits for it


def _old(target: Path) -> Path:
    return target.with_name(f"{OLD}-{target.name}")


def _carry_over(target: Path, new: Path, own: set[str], inside: str = "") -> None:
    """Copy what is not replaced; it is still in its old place if the process is killed."""
    for entry in (target / inside).iterdir():
        name = f"{inside}{entry.name}"
        copy = new / name
        if name in own:
            continue
        is_folder = entry.is_dir() and not entry.is_symlink()
        if is_folder and (copy.is_dir() or any(file.startswith(f"{name}/") for file in own)):
            _carry_over(target, new, own, f"{name}/")
        elif not os.path.lexists(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            if is_folder:
                shutil.copytree(entry, copy, symlinks=True)
            else:
                _link_or_copy(entry, copy)


def _link_or_copy(file: Path, copy: Path) -> None:
    """The same file under another name, which takes no time while others wait for the lock; or a copy of it."""
    if file.is_file() and not file.is_symlink():
        with suppress(OSError, NotImplementedError):
            os.link(file, copy)
            return
    shutil.copy2(file, copy, follow_symlinks=False)


def _remove_unfinished(target: Path) -> None:
    """Remove what killed processes left; a living one holds the lock of its folder."""
    left = re.compile(re.escape(f"{NEW}-{target.name}-") + RANDOM)
    for folder in target.parent.iterdir():
        if left.fullmatch(folder.name):
            with try_lock_folder(folder) as is_left:
                if is_left:
                    shutil.rmtree(folder, ignore_errors=True)


def _sync_all(folder: Path) -> None:
    """Have a folder and all in it on the disk."""
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
