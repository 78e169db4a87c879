"""Where a pruned model goes, and where an unfinished one waits meanwhile."""

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
    """A folder to be written, and one beside it for parts that are finished.

    Attributes:
        out: The folder; an artifact in it is replaced.
    """

    out: Path

    @property
    def work(self) -> Path:
        """Where finished parts wait."""
        return self.out.with_name(f"{self.out.name}.part")

    def check(self) -> None:
        """See to it, before any work, that the result can be written at its end.

        Raises:
            ConfigError: There is something else, or nothing can be written there.
        """
        refuse_current(self.out)
        if os.path.lexists(self.out) and not (self.out.is_dir() and _is_free(self.out, MANIFEST)):
            raise ConfigError(
                f"{str(self.out)!r} exists and is no artifact, and nothing else is replaced. Choose another folder, or "
                f"remove it."
            )
        if os.path.lexists(self.work) and not (self.work.is_dir() and is_run_folder(self.work)):
            raise ConfigError(
                f"{str(self.work)!r} is where finished parts are to wait, and it holds something that is no unfinished "
                f"run. Choose another --out, or remove it."
            )
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"The folder {str(self.out.parent)!r} cannot be made: {error.strerror}.") from error
        if not os.access(self.out.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"The folder {str(self.out.parent)!r} cannot be written to. Choose another --out.")
        self._check_replaceable()

    def check_space(self, needed: int) -> None:
        """See to it that there is room on the disk.

        Args:
            needed: Bytes of the model when dense.

        Raises:
            ConfigError: There is less.
        """
        free = shutil.disk_usage(self.out.parent).free
        if free < needed:
            raise ConfigError(
                f"The disk of {str(self.out)!r} must have room for {needed:,} bytes, the size of the dense model, "
                f"found {free:,}. Choose another --out, or make room."
            )

    @contextmanager
    def parts(self) -> Iterator[Path]:
        """The folder for finished parts, which are removed once this ends without an error.

        Whoever opens this writes the artifact inside, so that no part is removed before it is there.
        """
        if (self.work / RUN).is_file():
            say(f"Going on with the unfinished run in {self.work}.")
        else:
            say(f"Finished parts wait in {self.work}: after an interruption, the same command goes on from there.")
        try:
            yield self.work
        except BaseException as error:
            if not ((self.work / RUN).is_file() and any(self.work.glob(FINISHED))):
                remove_run_folder(self.work)
            elif not isinstance(error, StateError):  # which says that this command is another one
                say(f"{self.work} holds what is finished. Run the same command again to go on from there.")
            raise
        remove_run_folder(self.work)

    def _check_replaceable(self) -> None:
        """Raise `ConfigError` if a folder that is written beside this one cannot take its name at the end."""
        target = Path(os.path.realpath(self.out))  # a link stays, and what it leads to is replaced
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
                f"No folder can be made and renamed in {str(parent)!r} ({error.strerror}). Choose another --out."
            ) from error


def refuse_current(folder: Path) -> None:
    """Raise `ConfigError` if a folder that is to be replaced is the current one, or lies above it."""
    if Path.cwd().is_relative_to(os.path.abspath(folder)):
        raise ConfigError(
            f"{str(folder)!r} is replaced as a whole, and it is or holds the current folder. Choose another, or run "
            f"the command from elsewhere."
        )


def _may_rename(parent: Path, folder: Path) -> bool:
    """Whether this user may rename a folder; in one that is sticky, such as ``/tmp``, only the owners may."""
    about = parent.stat()
    if not about.st_mode & stat.S_ISVTX or not hasattr(os, "geteuid"):
        return True
    return os.geteuid() in (0, about.st_uid, folder.stat().st_uid)


def _is_free(folder: Path, mark: str) -> bool:
    """Whether a folder is empty or holds the file that makes it ours."""
    return (folder / mark).is_file() or not any(folder.iterdir())
