"""Read and write the files of a run. Writes are atomic."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from secateur._third_party import is_out_of_memory
from secateur.errors import StateError, StorageError

__all__ = [
    "DELETE_ADVICE",
    "compute_checksum",
    "explain_write_errors",
    "read_header",
    "read_tensors",
    "view_as_bytes",
    "write_tensors",
    "write_text",
]

DELETE_ADVICE = "Delete it to prune this part again."
"""Advice for a finished stage that cannot be read."""

LENGTH_BYTES = 8
"""Size of the header's length at the start of a safetensors file."""


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Raise a `StorageError` for any error of the disk within this context.

    Args:
        path: The path to name in the message.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_out_of_memory(error) or isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} cannot be written ({error}). Free disk space, or choose another folder.") from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        StorageError: The disk is full, or fails.
    """
    _write(path, lambda file: save_file(_copy_shared(tensors), file, {"format": "pt", **metadata}))


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        StorageError: The disk is full, or fails.
    """
    _write(path, lambda file: file.write_text(text, encoding="utf-8"))


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Read the metadata and the tensors of a finished stage.

    Raises:
        StateError: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise StateError(f"{path} cannot be read ({error}). {DELETE_ADVICE}") from error
    return metadata, tensors


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file that this process wrote, and the offset of its first tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        return json.loads(file.read(length)), LENGTH_BYTES + length


def compute_checksum(tensors: Mapping[str, torch.Tensor], text: str = "") -> str:
    """Return the SHA-256 of names, dtypes, shapes and values, and of a text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(view_as_bytes(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()


def view_as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a view of the memory of a contiguous tensor on the CPU."""
    # A tensor with one element may have any strides.
    array: Any = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(array)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary file next to the path, and rename it once it is on disk."""
    temporary = path.with_name(f"{path.name}.part")
    with explain_write_errors(path):
        try:
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def _sync(path: Path) -> None:
    """Flush a file to disk before it is renamed, so that a power failure leaves no empty file."""
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_shared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors, copied only where they share memory, which safetensors refuses."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage()
        is_alone = memory.nbytes() == value.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        separate[name] = value if is_alone else value.clone()
    return separate
