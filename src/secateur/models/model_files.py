"""Check transformers folders and GGUF files before transformers reads them."""

from __future__ import annotations

import math
import stat
from pathlib import Path

from secateur._huggingface.config import check_config, read_config_json
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

__all__ = ["check_model_files", "compute_limits"]

NUMBERS_PER_BYTE = 8
"""Maximum numbers per byte of quantized weights, which take at least one bit each."""


def check_model_files(path: Path) -> None:
    """Raise `ArtifactError` for pipes and devices, impossible counts, and indexes that point outside the folder."""
    if path.is_file():
        return check_gguf(path)
    for file in path.iterdir():
        _check_kind(file)
        if file.name.endswith(INDEX_SUFFIX):
            read_weight_map(file)
    return check_config(read_config_json(path / CONFIG_FILE), path / CONFIG_FILE)


def compute_limits(path: Path) -> ModelLimits:
    """Compute the limits of the model in a folder or GGUF file from the size of its weights.

    Raises:
        ArtifactError: A weight file is damaged.
    """
    if path.is_file():
        return ModelLimits.from_stored(MAX_TENSORS, NUMBERS_PER_BYTE * path.stat().st_size)
    is_quantized = "quantization_config" in read_config_json(path / CONFIG_FILE)
    tensors = numbers = 0
    for file in path.iterdir():
        if file.suffix == SAFETENSORS_SUFFIX:
            header = TensorFile(file, keep_open=False)
            tensors += len(header)
            numbers += sum(math.prod(tensor.shape) for tensor in header.values())
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
        return  # for example, a broken link, which matters only if it is read
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ArtifactError(f"{file}: must be a file, found a pipe or a device.")
