"""Zip, ``.npz`` and HDF5 files, checked before anything in them is unpacked."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from secateur._files import open_file
from secateur._third_party import translate_errors
from secateur._wording import format_value
from secateur.errors import ArtifactError, CalibrationError

__all__ = ["MAX_EXPANSION", "SPARE_BYTES", "check_expansion", "check_hdf5", "check_zip", "read_npz"]

MAX_EXPANSION = 100
"""A compressed file may unpack to this many times its size."""

SPARE_BYTES = 1 << 28
"""What any file may unpack to: 256 MiB."""


def check_expansion(path: Path, unpacked: int, stored: int) -> None:
    """Raise `ArtifactError` if a file would unpack to far more than its size.

    Args:
        path: The file, for the message.
        unpacked: Bytes of its content.
        stored: Bytes of the file.
    """
    if unpacked > (limit := max(SPARE_BYTES, MAX_EXPANSION * stored)):
        raise ArtifactError(
            f"{path}: unpacks to {unpacked:,} bytes, and a file of {stored:,} bytes may unpack to at most "
            f"{limit:,}. Save it again without compression."
        )


def check_zip(file: BinaryIO, path: Path) -> dict[str, int]:
    """Check that the members of a zip file are not too large together and have different names.

    Args:
        file: The open file; its position is at the start afterwards.
        path: Its path, for messages.

    Returns:
        Member → its unpacked bytes.

    Raises:
        ArtifactError: The file is not such a zip file.
    """
    stored = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"{path}: is not a valid zip file ({error}).") from error
    file.seek(0)
    sizes = {member.filename: member.file_size for member in members}
    if len(sizes) < len(members):
        raise ArtifactError(f"{path}: is not a valid zip file: two members have the same name.")
    check_expansion(path, sum(sizes.values()), stored)
    return sizes


def check_hdf5(file: Any, path: Path, stored: int) -> list[int]:
    """Check that the datasets of an HDF5 file are in the file, have numbers and are not too large together.

    Args:
        file: An open ``h5py.File``.
        path: Its path, for messages.
        stored: Its bytes on disk.

    Returns:
        The number of elements of each dataset.

    Raises:
        ArtifactError: The file is not such an HDF5 file.
    """
    counts, unpacked = [], 0
    for name, dataset in _iterate_datasets(file, path):
        if dataset.external or dataset.is_virtual:
            raise ArtifactError(
                f"{path}: dataset {format_value(name)} must be in the file, found a reference to another file."
            )
        if dataset.dtype.kind == "O":
            raise ArtifactError(f"{path}: dataset {format_value(name)} must have numbers, found objects.")
        count = math.prod(dataset.shape or ())
        counts.append(count)
        unpacked += count * dataset.dtype.itemsize
        check_expansion(path, unpacked, stored)
    return counts


def _iterate_datasets(file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield every dataset of an HDF5 file with its name, once for each name."""
    import h5py

    pending, seen = [file["/"]], set[int]()
    while pending:
        group = pending.pop()
        place = h5py.h5o.get_info(group.id).addr
        if place in seen:
            continue
        seen.add(place)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ArtifactError(
                    f"{path}: {format_value(name)} must be in the file, found a reference to another place."
                )
            item = group[name]
            if isinstance(item, h5py.Group):
                pending.append(item)
            elif isinstance(item, h5py.Dataset):
                yield item.name or name, item


def read_npz(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of an ``.npz`` file by name.

    Raises:
        CalibrationError: The file cannot be read, is damaged, unpacks to far more than its size, or has objects.
    """
    with translate_errors(CalibrationError, f"{str(file)!r} cannot be read as an .npz file"), open_file(file) as held:
        members = {name.removesuffix(".npy"): (name, size) for name, size in check_zip(held, file).items()}
        with zipfile.ZipFile(held) as archive:
            if len(members) < len(archive.namelist()):
                raise ArtifactError("two arrays have the same name")
            return {name: _read_array(archive, *member) for name, member in members.items()}


def _read_array(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray[Any, Any]:
    """Read a member after checking that its size is what its header says."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ArtifactError(f"array {format_value(name)} must have version 1 or 2 of the format, found {version}.")
        shape, _, dtype = read_header[version](member)
        if dtype.hasobject:
            raise ArtifactError(f"array {format_value(name)} must have numbers, found Python objects.")
        stored, needed = size - member.tell(), math.prod(shape) * dtype.itemsize
        if stored != needed or min(shape, default=0) < 0:
            raise ArtifactError(
                f"array {format_value(name)} must have {needed:,} bytes for its shape, found {stored:,}."
            )
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
