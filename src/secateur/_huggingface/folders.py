"""Find the weight files of a model folder, and read and write its index of shards."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur._json import read_json
from secateur._wording import format_value
from secateur.errors import ArtifactError

__all__ = [
    "CONFIG_FILE",
    "INDEX_FILE",
    "INDEX_SUFFIX",
    "MAX_INDEX_BYTES",
    "PICKLE_INDEX_FILE",
    "PICKLE_SUFFIXES",
    "PICKLE_WEIGHTS_FILE",
    "SAFETENSORS_SUFFIX",
    "WEIGHTS_FILE",
    "find_weight_files",
    "format_index",
    "is_weight_file",
    "is_weight_index",
    "name_shard",
    "parse_weight_map",
    "read_weight_map",
]

CONFIG_FILE = "config.json"

SAFETENSORS_SUFFIX = ".safetensors"

PICKLE_SUFFIXES = (".bin", ".pt", ".pth")

WEIGHT_SUFFIXES = frozenset(
    {
        *(SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES, ".ckpt", ".ggml", ".gguf", ".h5", ".keras", ".mlmodel", ".msgpack"),
        *(".nemo", ".onnx", ".onnx_data", ".ot", ".pb", ".pickle", ".pkl", ".tflite"),
    }
)
"""Suffixes of files with weights, of all frameworks."""

WEIGHTS_FILE = "model.safetensors"
"""The file with all weights of a model that is stored in one file."""

INDEX_FILE = "model.safetensors.index.json"
"""The index: which weights are in which shard."""

PICKLE_WEIGHTS_FILE = "pytorch_model.bin"

PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"

INDEX_SUFFIX = ".index.json"
"""Suffix of any index of shards, such as ``pytorch_model.bin.index.json``."""

MAX_INDEX_BYTES = 100_000_000

UNSAFE_NAME = re.compile(r"\.*|.*[/\\:].*|.{256,}", re.DOTALL)
"""Matches names that point outside a folder on any operating system, or that are invalid."""


def is_weight_file(name: str) -> bool:
    """Whether a file has weights, or is the index of files with weights.

    Examples:
        >>> is_weight_file("pytorch_model.bin"), is_weight_file("model.safetensors.index.json")
        (True, True)
        >>> is_weight_file("config.json")
        False
    """
    return Path(name).suffix in WEIGHT_SUFFIXES or is_weight_index(name)


def is_weight_index(name: str) -> bool:
    """Whether a file is the index of files with weights."""
    return name.endswith(INDEX_SUFFIX) and Path(name.removesuffix(INDEX_SUFFIX)).suffix in WEIGHT_SUFFIXES


def find_weight_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Find the safetensors files with the weights of a model.

    Args:
        path: A safetensors file, or a folder. In a folder, these are the files that the index names, or else all
            safetensors files. As in transformers, ``model.safetensors`` takes precedence over other files.

    Returns:
        The files, which may be none, and the weight map of the index, if there is one: tensor → name of its file.

    Raises:
        ArtifactError: The folder or the index cannot be read.
    """
    if path.suffix == SAFETENSORS_SUFFIX and os.path.isfile(path):
        return [path], None
    weight_map = read_weight_map(path / INDEX_FILE) if os.path.isfile(path / INDEX_FILE) else None
    if os.path.isfile(path / WEIGHTS_FILE) and WEIGHTS_FILE not in (weight_map or {}).values():
        return [path / WEIGHTS_FILE], None
    if weight_map is not None:
        return sorted({path / name for name in weight_map.values()}), weight_map
    try:
        names = os.listdir(path) if os.path.isdir(path) else []
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}).") from error
    return sorted(path / name for name in names if name.endswith(SAFETENSORS_SUFFIX)), None


def read_weight_map(path: Path) -> dict[str, str]:
    """Read the weight map of an index: tensor → name of its file, which is in the folder of the index.

    Raises:
        ArtifactError: The file cannot be read, or is not a valid index.
    """
    index = read_json(path, MAX_INDEX_BYTES)
    try:
        return parse_weight_map(index)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}.") from error


def parse_weight_map(index: Any) -> dict[str, str]:
    """Check the weight map of an index: tensor → name of its file, which is in the folder of the index.

    Args:
        index: The index, as read from JSON.

    Raises:
        ValueError: The index is invalid or empty, or names a file outside the folder.

    Examples:
        >>> parse_weight_map({"weight_map": {"bias": "model-1.safetensors"}})
        {'bias': 'model-1.safetensors'}
        >>> parse_weight_map({"weight_map": {"bias": "../model.safetensors"}})
        Traceback (most recent call last):
        ValueError: '../model.safetensors' is not the name of a file in the folder
    """
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError("'weight_map' must map each tensor to the name of its file")
    if not weight_map:
        raise ValueError("'weight_map' must name the files of all tensors, found an empty one")
    if unsafe := [name for name in weight_map.values() if UNSAFE_NAME.fullmatch(name) or not name.isprintable()]:
        raise ValueError(f"{format_value(unsafe[0])} is not the name of a file in the folder")
    return weight_map


def format_index(weight_map: Mapping[str, str], total_bytes: int) -> str:
    """Format an index as JSON.

    Args:
        weight_map: Tensor → name of its file.
        total_bytes: Bytes of all tensors.
    """
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=1) + "\n"


def name_shard(number: int, count: int, stem: str = "model") -> str:
    """Return the file name of a shard; `number` counts from 1.

    Examples:
        >>> name_shard(1, 12)
        'model-00001-of-00012.safetensors'
    """
    return f"{stem}-{number:05d}-of-{count:05d}{SAFETENSORS_SUFFIX}"
