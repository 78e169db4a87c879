"""Check zip, ``.npz`` and HDF5 files before anything in them is unpacked."""

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

__all__ = ["MAX_EXPANSION", "MIN_UNPACKED_LIMIT", "check_expansion", "check_hdf5", "check_zip", "read_npz"]

MAX_EXPANSION = 100
"""Maximum ratio of the unpacked size of a file to its size."""

MIN_UNPACKED_LIMIT = 1 << 28
"""Any file may unpack to this size, 256 MiB."""


def check_expansion(path: Path, unpacked: int, size: int) -> None:
    """Raise `ArtifactError` if a file would unpack to much more than its size.

    Args:
        path: The file, for the message.
        unpacked: Bytes of the unpacked content.
        size: Bytes of the file.
    """
    if unpacked > (limit := max(MIN_UNPACKED_LIMIT, MAX_EXPANSION * size)):
        raise ArtifactError(
            f"{path}: unpacks to {unpacked:,} bytes, but a file of {size:,} bytes may unpack to at most "
            f"{limit:,}. Save it again without compression."
        )


def check_zip(file: BinaryIO, path: Path) -> dict[str, int]:
    """Check that the members of a zip file have unique names and are not too large in total.

    Args:
        file: The open file; its position is at the start afterwards.
        path: Its path, for messages.

    Returns:
        Member → its unpacked size in bytes.

    Raises:
        ArtifactError: The file is not a valid zip file, or a check fails.
    """
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"{path}: is not a valid zip file ({error}).") from error
    file.seek(0)
    sizes = {member.filename: member.file_size for member in members}
    if len(sizes) < len(members):
        raise ArtifactError(f"{path}: is not a valid zip file: two members have the same name.")
    check_expansion(path, sum(sizes.values()), size)
    return sizes


def check_hdf5(file: Any, path: Path, size: int) -> list[int]:
    """Check that the datasets of an HDF5 file are in the file itself, contain numbers and are not too large in total.

    Args:
        file: An open ``h5py.File``.
        path: Its path, for messages.
        size: Its size in bytes.

    Returns:
        The number of elements of each dataset.

    Raises:
        ArtifactError: A check fails.
    """
    counts, unpacked = [], 0
    for name, dataset in _iterate_datasets(file, path):
        if dataset.external or dataset.is_virtual:
            raise ArtifactError(
                f"{path}: dataset {format_value(name)} must be in the file, found a reference to another file."
            )
        if dataset.dtype.kind == "O":
            raise ArtifactError(f"{path}: dataset {format_value(name)} must contain numbers, found objects.")
        count = math.prod(dataset.shape or ())
        counts.append(count)
        unpacked += count * dataset.dtype.itemsize
        check_expansion(path, unpacked, size)
    return counts


def _iterate_datasets(file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield every dataset of an HDF5 file with its name; a dataset with several names is repeated."""
    import h5py

    pending, seen = [file["/"]], set[int]()
    while pending:
        group = pending.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ArtifactError(f"{path}: {format_value(name)} must be in the file, found a link.")
            item = group[name]
            if isinstance(item, h5py.Group):
                pending.append(item)
            elif isinstance(item, h5py.Dataset):
                yield item.name or name, item


def read_npz(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of an ``.npz`` file by name.

    Raises:
        CalibrationError: The file cannot be read, is damaged, unpacks to much more than its size, or contains objects.
    """
    with translate_errors(CalibrationError, f"{str(file)!r} cannot be read as an .npz file"), open_file(file) as binary:
        members = {name.removesuffix(".npy"): (name, size) for name, size in check_zip(binary, file).items()}
        with zipfile.ZipFile(binary) as archive:
            if len(members) < len(archive.namelist()):
                raise ArtifactError("two arrays have the same name")
            return {name: _read_array(archive, *member) for name, member in members.items()}


def _read_array(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray[Any, Any]:
    """Read a member, after checking that its size matches its header."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ArtifactError(
                f"array {format_value(name)} must have version 1 or 2 of the .npy format, found {version}."
            )
        shape, _, dtype = read_header[version](member)
        if dtype.hasobject:
            raise ArtifactError(f"array {format_value(name)} must contain numbers, found Python objects.")
        available, needed = size - member.tell(), math.prod(shape) * dtype.itemsize
        if available != needed or min(shape, default=0) < 0:
            raise ArtifactError(
                f"array {format_value(name)} must have {needed:,} bytes for its shape, found {available:,}."
            )
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
