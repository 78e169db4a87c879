"""The folder of a run that is not finished, as one sees it who knows nothing of torch."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

__all__ = ["FINISHED", "RUN", "is_run_folder", "remove_run_folder"]

RUN = "run.state"
"""The file that tells a run from others. Not JSON by its name: what copies a checkpoint's descriptions lets it be."""

FINISHED = "*.done.*"
"""Files that say that a part is finished."""

EARLY = f"{RUN}.part"
"""The file that a run can leave that is killed when `RUN` is not there yet."""


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is empty, or holds a run."""
    return (folder / RUN).is_file() or all(entry.name == EARLY for entry in folder.iterdir())


def remove_run_folder(folder: Path) -> None:
    """Remove a run; killed meanwhile, this leaves one that can be resumed. What cannot be removed stays."""
    if not os.path.isdir(folder):
        return
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != RUN:
                entry.unlink()
        (folder / RUN).unlink(missing_ok=True)
        folder.rmdir()
