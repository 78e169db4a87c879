"""Folders of transformers and GGUF files, checked before transformers reads them."""

from __future__ import annotations

import math
import stat
from pathlib import Path

from secateur._huggingface.config import check_config, read_config
from secateur._huggingface.folders import (
    CONFIG_FILE,
    INDEX_SUFFIX,
    PICKLE_SUFFIXES,
    SAFETENSORS_SUFFIX,
    read_weight_map,
)
from secateur._model_limits import MAX_TENSORS, ModelLimits
from secateur.artifact.safetensors_file import TensorFile
from secateur.errors import ArtifactError
from secateur.models.gguf import check_gguf

__all__ = ["check_files", "stored_limits"]

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
        if file.name.endswith(INDEX_SUFFIX):
            read_weight_map(file)
    return check_config(read_config(path / CONFIG_FILE), path / CONFIG_FILE)


def stored_limits(path: Path) -> ModelLimits:
    """What the model of a folder or GGUF file may have, going by its files of weights.

    Raises:
        ArtifactError: One is damaged.
    """
    if path.is_file():
        return ModelLimits.from_stored(MAX_TENSORS, NUMBERS_PER_BYTE * path.stat().st_size)
    is_quantized = "quantization_config" in read_config(path / CONFIG_FILE)
    tensors = numbers = 0
    for file in path.iterdir():
        if file.suffix == SAFETENSORS_SUFFIX:
            header = TensorFile(file, keep_open=False)
            tensors += len(header)
            numbers += sum(math.prod(stored.shape) for stored in header.values())
        elif file.suffix in PICKLE_SUFFIXES:
            tensors += MAX_TENSORS
            numbers += file.stat().st_size
        if is_quantized and file.suffix in (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES):
            numbers += NUMBERS_PER_BYTE * file.stat().st_size
    return ModelLimits.from_stored(min(tensors, MAX_TENSORS), numbers)


def _check_kind(file: Path) -> None:
    try:
        mode = file.stat().st_mode
    except OSError:
        return  # such as a link to nothing: an error if anything needs it
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ArtifactError(f"{file}: must be a file, found a pipe or a device.")
