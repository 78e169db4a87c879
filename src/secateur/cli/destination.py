"""Check the output folder of a run, and manage the folder for its finished parts."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from secateur._manifest_file import MANIFEST
from secateur._wording import format_value
from secateur.cli.messages import say
from secateur.errors import ConfigError, StateError
from secateur.oneshot.run_folder import FINISHED, RUN, is_run_folder, remove_run_folder

__all__ = ["Destination", "check_not_current"]


@dataclass(frozen=True, slots=True)
class Destination:
    """The output folder of a run, and the folder next to it for finished parts.

    Attributes:
        out: The output folder; an existing artifact is replaced.
        is_written: Whether this process writes it, rather than another rank.
    """

    out: Path
    is_written: bool = True

    @property
    def work(self) -> Path:
        """The folder for finished parts."""
        return self.out.with_name(f"{self.out.name}.part")

    def check(self) -> None:
        """Check, before any work, that the result can be written at the end.

        Raises:
            ConfigError: The folder contains something other than an artifact, or cannot be written to.
        """
        if not self.is_written:
            return
        check_not_current(self.out)
        if os.path.lexists(self.out) and not (self.out.is_dir() and _is_free(self.out, MANIFEST)):
            raise ConfigError(
                f"{str(self.out)!r} exists and is not an artifact, and only artifacts are replaced. Choose another "
                f"folder, or remove it."
            )
        if os.path.lexists(self.work) and not (self.work.is_dir() and is_run_folder(self.work)):
            raise ConfigError(
                f"{str(self.work)!r} is the folder for finished parts of this run, but it contains something else. "
                f"Choose another --out, or remove it."
            )
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"The folder {str(self.out.parent)!r} cannot be created: {error.strerror}.") from error
        if not os.access(self.out.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"The folder {str(self.out.parent)!r} cannot be written to. Choose another --out.")
        self._check_replaceable()

    def check_space(self, needed: int) -> None:
        """Check that there is enough space on the disk.

        Args:
            needed: Bytes of the dense model.

        Raises:
            ConfigError: There is not enough space.
        """
        if not self.is_written:
            return
        free = shutil.disk_usage(self.out.parent).free
        if free < needed:
            raise ConfigError(
                f"The disk of {str(self.out)!r} must have {needed:,} bytes free, the size of the dense model, found "
                f"{free:,}. Choose another --out, or free some space."
            )

    @contextmanager
    def open_parts(self) -> Iterator[Path]:
        """Provide the folder for finished parts, and remove it on exit unless there was an error.

        Write the artifact inside the ``with`` block, so that no part is removed before the artifact is complete.
        """
        if not self.is_written:
            yield self.work
            return
        if (self.work / RUN).is_file():
            say(f"Resuming the unfinished run in {self.work}.")
        try:
            yield self.work
        except BaseException as error:
            if not ((self.work / RUN).is_file() and any(self.work.glob(FINISHED))):
                remove_run_folder(self.work)
            elif not isinstance(error, StateError):  # the parts are from another command
                say(f"Finished parts are in {self.work}. Run the same command again to resume.")
            raise
        remove_run_folder(self.work)

    def _check_replaceable(self) -> None:
        """Raise `ConfigError` if a new folder beside this one could not be renamed to replace it."""
        target = Path(os.path.realpath(self.out))  # a symbolic link is kept, and its target is replaced
        parent = target.parent
        if os.path.ismount(target):
            raise ConfigError(f"{str(self.out)!r} is a mount point and cannot be replaced. Choose a folder in it.")
        if target.exists() and not _may_rename(parent, target):
            raise ConfigError(
                f"{str(self.out)!r} belongs to another user and cannot be replaced in {str(parent)!r}. Choose another "
                f"--out."
            )
        try:
            with TemporaryDirectory(prefix=f".secateur-new-{target.name}-", dir=parent) as probe:
                Path(probe, "new").mkdir()
                Path(probe, "new").rename(Path(probe, "old"))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ConfigError(
                    f"The name {format_value(target.name)} is too long for --out. Choose a shorter name."
                ) from error
            raise ConfigError(
                f"No folder can be created and renamed in {str(parent)!r} ({error.strerror}). Choose another --out."
            ) from error


def check_not_current(folder: Path) -> None:
    """Raise `ConfigError` if a folder that would be replaced is or contains the current folder."""
    if Path.cwd().is_relative_to(os.path.abspath(folder)):
        raise ConfigError(
            f"{str(folder)!r} would be replaced, but it is or contains the current folder. Choose another folder, or "
            f"run the command elsewhere."
        )


def _may_rename(parent: Path, folder: Path) -> bool:
    """Whether this user may rename a folder; in a sticky parent, such as ``/tmp``, only the owner may."""
    status = parent.stat()
    if not status.st_mode & stat.S_ISVTX or not hasattr(os, "geteuid"):
        return True
    return os.geteuid() in (0, status.st_uid, folder.stat().st_uid)


def _is_free(folder: Path, marker: str) -> bool:
    """Whether a folder is empty or contains the file that marks an artifact."""
    return (folder / marker).is_file() or not any(folder.iterdir())
