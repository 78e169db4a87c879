"""The folder for a pruned model, and the one for the finished parts of an unfinished run."""

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
from secateur.cli.progress import say
from secateur.errors import ConfigError, StateError
from secateur.oneshot.run_folder import FINISHED, RUN, is_run_folder, remove_run_folder

__all__ = ["Destination", "refuse_current"]


@dataclass(frozen=True, slots=True)
class Destination:
    """The output folder, and a folder beside it for finished parts.

    Attributes:
        out: The output folder; an artifact in it is replaced.
    """

    out: Path

    @property
    def work(self) -> Path:
        """The folder for finished parts."""
        return self.out.with_name(f"{self.out.name}.part")

    def check(self) -> None:
        """Check, before any work, that the result can be written at the end.

        Raises:
            ConfigError: Something else is there, or the folder cannot be written.
        """
        refuse_current(self.out)
        if os.path.lexists(self.out) and not (self.out.is_dir() and _is_free(self.out, MANIFEST)):
            raise ConfigError(
                f"{str(self.out)!r} exists and is not an artifact, and only artifacts are replaced. Choose another "
                f"folder, or remove it."
            )
        if os.path.lexists(self.work) and not (self.work.is_dir() and is_run_folder(self.work)):
            raise ConfigError(
                f"{str(self.work)!r} is the folder for finished parts, and it contains something else. Choose another "
                f"--out, or remove it."
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
            ConfigError: There is not.
        """
        free = shutil.disk_usage(self.out.parent).free
        if free < needed:
            raise ConfigError(
                f"The disk of {str(self.out)!r} must have room for {needed:,} bytes, the size of the dense model, "
                f"found {free:,}. Choose another --out, or make room."
            )

    @contextmanager
    def parts(self) -> Iterator[Path]:
        """Enter the folder for finished parts, which is removed on exit without an error.

        Write the artifact inside the ``with`` block, so that no part is removed before the artifact is complete.
        """
        if (self.work / RUN).is_file():
            say(f"Resuming the unfinished run in {self.work}.")
        else:
            say(
                f"Finished parts are stored in {self.work}: after an interruption, the same command resumes from there."
            )
        try:
            yield self.work
        except BaseException as error:
            if not ((self.work / RUN).is_file() and any(self.work.glob(FINISHED))):
                remove_run_folder(self.work)
            elif not isinstance(error, StateError):  # which says that this is a different command
                say(f"Finished parts are in {self.work}. Run the same command again to resume.")
            raise
        remove_run_folder(self.work)

    def _check_replaceable(self) -> None:
        """Raise `ConfigError` if a folder written beside this one cannot be renamed to replace it."""
        target = Path(os.path.realpath(self.out))  # a link stays, and its target is replaced
        parent = target.parent
        if os.path.ismount(target):
            raise ConfigError(
                f"{str(self.out)!r} is where a disk is mounted, and cannot be replaced. Choose a folder in it."
            )
        if target.exists() and not _may_rename(parent, target):
            raise ConfigError(
                f"{str(self.out)!r} is another user's, and cannot be replaced in {str(parent)!r}. Choose another --out."
            )
        try:
            with TemporaryDirectory(prefix=f".secateur-new-{target.name}-", dir=parent) as probe:
                Path(probe, "new").mkdir()
                Path(probe, "new").rename(Path(probe, "old"))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ConfigError(
                    f"The name {format_value(target.name)} is too long for --out. Choose a shorter one."
                ) from error
            raise ConfigError(
                f"No folder can be created and renamed in {str(parent)!r} ({error.strerror}). Choose another --out."
            ) from error


def refuse_current(folder: Path) -> None:
    """Raise `ConfigError` if a folder to be replaced is or contains the current folder."""
    if Path.cwd().is_relative_to(os.path.abspath(folder)):
        raise ConfigError(
            f"{str(folder)!r} would be replaced, and it is or contains the current folder. Choose another, or run "
            f"the command from another folder."
        )


def _may_rename(parent: Path, folder: Path) -> bool:
    """Whether this user may rename a folder; in a sticky folder, such as ``/tmp``, only its owner may."""
    about = parent.stat()
    if not about.st_mode & stat.S_ISVTX or not hasattr(os, "geteuid"):
        return True
    return os.geteuid() in (0, about.st_uid, folder.stat().st_uid)


def _is_free(folder: Path, mark: str) -> bool:
    """Whether a folder is empty or contains the file that marks an artifact."""
    return (folder / mark).is_file() or not any(folder.iterdir())
