"""List the files of a model folder that belong to the model but are not its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from secateur._files import read_small_file
from secateur._huggingface.folders import (
    INDEX_FILE,
    INDEX_SUFFIX,
    PICKLE_SUFFIXES,
    find_weight_files,
    is_weight_file,
)
from secateur._json import parse_json_list
from secateur._manifest_file import MANIFEST
from secateur.errors import ArtifactError

__all__ = ["MODULES_FILE", "list_companions"]

MODULES_FILE = "modules.json"
"""The modules of a sentence-transformers model, and the subfolder of each."""

MAX_MODULES_BYTES = 1_000_000

MAX_FILES = 10_000

RUN_RECORD = re.compile(r"run\.state|\d+\.done\.state|.*\.part")
"""Matches the records that a one-shot run keeps beside its shards, and unfinished files."""


def list_companions(folder: Path) -> tuple[list[str], list[str]]:
    """List the files to copy with the weights of a model, and those that are left out.

    Left out are weights in other formats, which were not pruned, and subfolders with weights, such as ``onnx/`` or
    ``checkpoint-500/``, unless ``modules.json`` names them. Hidden files, links to folders and the records
    of a one-shot run are not listed at all.

    Returns:
        The files to copy and the files and folders that are left out, as sorted paths within the folder.

    Raises:
        ArtifactError: The folder cannot be read, or has too many files.
    """
    modules = _read_module_folders(folder)
    copied: list[str] = []
    left_out: list[str] = []
    for name, files in _list_parts(folder).items():
        if name and name not in modules and any(map(is_weight_file, files)):
            left_out.append(f"{name}/")
            continue
        for file in files:
            (left_out if not name and is_weight_file(file) else copied).append(file)
    copied = [name for name in copied if name != MANIFEST and not RUN_RECORD.fullmatch(name)]
    return sorted(copied), sorted(set(left_out) - _list_own_weights(folder, left_out))


def _list_own_weights(folder: Path, candidates: Iterable[str]) -> set[str]:
    """Return the weight files that are read when the folder is pruned or converted, and their indexes."""
    files, _ = find_weight_files(folder)
    if files:
        return {INDEX_FILE, *(file.name for file in files)}
    return {name for name in candidates if name.removesuffix(INDEX_SUFFIX).endswith(PICKLE_SUFFIXES)}


def _list_parts(folder: Path) -> dict[str, list[str]]:
    """Map each subfolder, and ``""`` for the folder itself, to its files, including those of its own subfolders."""
    parts: dict[str, list[str]] = {"": []}
    count = 0
    for root, folders, files in os.walk(folder, onerror=_raise_read_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if not file.startswith("."):
                name = Path(root, file).relative_to(folder).as_posix()
                part, slash, _ = name.partition("/")
                parts.setdefault(part if slash else "", []).append(name)
                count += 1
        if count > MAX_FILES:
            raise ArtifactError(f"{folder}: must have at most {MAX_FILES:,} files. Is it the folder of one model?")
    return parts


def _raise_read_error(error: OSError) -> None:
    raise ArtifactError(f"{error.filename}: cannot be read ({error}).") from error


def _read_module_folders(folder: Path) -> set[str]:
    """Return the subfolders that ``modules.json`` names."""
    path = folder / MODULES_FILE
    if not os.path.isfile(path):
        return set()
    modules = parse_json_list(read_small_file(path, MAX_MODULES_BYTES), path)
    paths = [module.get("path") for module in modules if isinstance(module, dict)]
    return {part for name in paths if isinstance(name, str) if (part := name.partition("/")[0])}
