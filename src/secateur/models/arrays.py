"""Arrays in ``.npz`` files."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from secateur._files import open_file
from secateur._third_party import translate_errors
from secateur._wording import format_value
from secateur.errors import ArtifactError, CalibrationError
from secateur.models.archives import check_zip

__all__ = ["read_arrays"]

SUFFIX = ".npy"


def read_arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays in an ``.npz`` file, by their names.

    Raises:
        CalibrationError: It cannot be read, is damaged, unpacks to far more than it is, or holds objects.
    """
    with translate_errors(CalibrationError, f"{str(file)!r} cannot be read as an .npz file"), open_file(file) as held:
        members = {name.removesuffix(SUFFIX): (name, size) for name, size in check_zip(held, file).items()}
        with zipfile.ZipFile(held) as archive:
            if len(members) < len(archive.namelist()):
                raise ArtifactError("two arrays have the same name")
            return {name: _read_array(archive, *member) for name, member in members.items()}


def _read_array(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray[Any, Any]:
    """A member whose header says no more and no less than there is."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ArtifactError(f"array {format_value(name)} must have version 1 or 2 of the format, found {version}.")
        shape, _, dtype = read_header[version](member)
        if dtype.hasobject:
            raise ArtifactError(f"array {format_value(name)} must hold numbers, found Python objects.")
        stored, needed = size - member.tell(), math.prod(shape) * dtype.itemsize
        if stored != needed or min(shape, default=0) < 0:
            raise ArtifactError(
                f"array {format_value(name)} must have {needed:,} bytes for its shape, found {stored:,}."
            )
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
