"""Folders of transformers and GGUF files, checked before transformers reads them."""

from __future__ import annotations

import math
import stat
from pathlib import Path

from secateur._shards import read_weight_map
from secateur.artifact.building import MAX_TENSORS, Limits, check_config, read_config
from secateur.artifact.files import read_small_file
from secateur.artifact.foreign import MAX_INDEX_BYTES
from secateur.artifact.safetensors_file import TensorFile, parsed_json
from secateur.errors import ArtifactError
from secateur.models.gguf import check_gguf

__all__ = ["check_files", "stored_limits"]

CONFIG = "config.json"
INDEX = ".index.json"
SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth")

NUMBERS_PER_BYTE = 8
"""Of quantized weights, which have one bit at the least."""


def check_files(path: Path) -> None:
    """Refuse pipes and devices, counts that no model has, and indices that lead out of the folder.

    Raises:
        ArtifactError: There is one.
    """
    if path.is_file():
        return check_gguf(path)
    for file in path.iterdir():
        _check_kind(file)
        if file.name.endswith(INDEX):
            _check_index(file)
    return check_config(read_config(path / CONFIG), path / CONFIG)


def stored_limits(path: Path) -> Limits:
    """What the model of a folder or GGUF file may have, going by its files of weights.

    Raises:
        ArtifactError: One is damaged.
    """
    if path.is_file():
        return Limits.for_stored(MAX_TENSORS, NUMBERS_PER_BYTE * path.stat().st_size)
    is_quantized = "quantization_config" in read_config(path / CONFIG)
    tensors = numbers = 0
    for file in path.iterdir():
        if file.suffix == SAFETENSORS:
            header = TensorFile(file, is_held=False)
            tensors += len(header)
            numbers += sum(math.prod(stored.shape) for stored in header.values())
        elif file.suffix in PICKLES:
            tensors += MAX_TENSORS
            numbers += file.stat().st_size
        if is_quantized and file.suffix in (SAFETENSORS, *PICKLES):
            numbers += NUMBERS_PER_BYTE * file.stat().st_size
    return Limits.for_stored(min(tensors, MAX_TENSORS), numbers)


def _check_kind(file: Path) -> None:
    try:
        mode = file.stat().st_mode
    except OSError:
        return  # such as a link to nothing: an error if anything needs it
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ArtifactError(f"{file}: must be a file, found a pipe or a device.")


def _check_index(file: Path) -> None:
    index = parsed_json(read_small_file(file, MAX_INDEX_BYTES), file)
    try:
        read_weight_map(index)
    except ValueError as error:
        raise ArtifactError(f"{file}: {error}.") from error
