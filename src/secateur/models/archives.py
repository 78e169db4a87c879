"""Zip and HDF5 files, checked before anything in them is unpacked."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from secateur._wording import format_value
from secateur.errors import ArtifactError

__all__ = ["MAX_EXPANSION", "SPARE_BYTES", "check_expansion", "check_hdf5", "check_zip"]

MAX_EXPANSION = 100
"""Times its size that a compressed file may unpack to."""

SPARE_BYTES = 1 << 28
"""What any file may unpack to, 256 MiB."""


def check_expansion(path: Path, unpacked: int, stored: int) -> None:
    """Refuse a file that would unpack to far more than it is.

    Args:
        path: The file, for the message.
        unpacked: Bytes of its content.
        stored: Bytes of the file.

    Raises:
        ArtifactError: It would.
    """
    if unpacked > (most := max(SPARE_BYTES, MAX_EXPANSION * stored)):
        raise ArtifactError(
            f"{path}: unpacks to {unpacked:,} bytes, and a file of {stored:,} bytes may unpack to {most:,} at the "
            f"most. Save it again without compression."
        )


def check_zip(file: BinaryIO, path: Path) -> dict[str, int]:
    """Refuse a zip file whose members are too large together, or share a name.

    Args:
        file: The file, open; its position is the start afterwards.
        path: Where it is, for the message.

    Returns:
        Member → its bytes, unpacked.

    Raises:
        ArtifactError: It is such a file, or damaged.
    """
    stored = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"{path}: no valid zip file ({error}).") from error
    file.seek(0)
    sizes = {member.filename: member.file_size for member in members}
    if len(sizes) < len(members):
        raise ArtifactError(f"{path}: no valid zip file: two members have the same name.")
    check_expansion(path, sum(sizes.values()), stored)
    return sizes


def check_hdf5(file: Any, path: Path, stored: int) -> list[int]:
    """Refuse an HDF5 file whose datasets are too large together, or lie elsewhere.

    Args:
        file: An ``h5py.File``, open.
        path: Where it is, for the message.
        stored: Bytes that it takes on the disk.

    Returns:
        How many numbers each of its datasets holds.

    Raises:
        ArtifactError: It is such a file.
    """
    counts, unpacked = [], 0
    for name, dataset in _datasets(file, path):
        if dataset.external or dataset.is_virtual:
            raise ArtifactError(
                f"{path}: dataset {format_value(name)} must be in the file, found a reference to another."
            )
        if dataset.dtype.kind == "O":
            raise ArtifactError(f"{path}: dataset {format_value(name)} must hold numbers, found objects.")
        count = math.prod(dataset.shape or ())
        counts.append(count)
        unpacked += count * dataset.dtype.itemsize
        check_expansion(path, unpacked, stored)
    return counts


def _datasets(file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Every dataset of an HDF5 file by its name, once for each name."""
    import h5py

    left, seen = [file["/"]], set[int]()
    while left:
        group = left.pop()
        place = h5py.h5o.get_info(group.id).addr
        if place in seen:
            continue
        seen.add(place)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ArtifactError(
                    f"{path}: {format_value(name)} must be in the file, found a reference to another place."
                )
            found = group[name]
            if isinstance(found, h5py.Group):
                left.append(found)
            elif isinstance(found, h5py.Dataset):
                yield found.name or name, found
