"""Recognize, read and remove the folder of an unfinished run, without importing torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["FINISHED", "RUN", "is_run_folder", "remove_run_folder", "seal_values", "unseal_values"]

RUN = "run.state"
"""The file that describes a run. It is not copied along with a checkpoint; see `list_companions`."""

FINISHED = "*.done.*"
"""The files of finished parts."""

UNFINISHED_RUN = f"{RUN}.part"
"""The file that a run leaves if it is killed before `RUN` exists."""


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is empty or contains a run."""
    return (folder / RUN).is_file() or all(entry.name == UNFINISHED_RUN for entry in folder.iterdir())


def remove_run_folder(folder: Path) -> None:
    """Remove a run. If this is interrupted, the run can still be resumed. Files that cannot be removed stay."""
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


def seal_values(values: Mapping[str, Any]) -> str:
    """Return values as JSON with a checksum."""
    text = json.dumps(values)
    return json.dumps({"checksum": hashlib.sha256(text.encode()).hexdigest(), "values": text})


def unseal_values(text: str) -> dict[str, Any]:
    """Read the result of `seal_values`.

    Raises:
        ValueError: The checksum is wrong.
    """
    sealed = json.loads(text)
    if hashlib.sha256(sealed["values"].encode()).hexdigest() != sealed["checksum"]:
        raise ValueError("its checksum is wrong")
    return dict(json.loads(sealed["values"]))
