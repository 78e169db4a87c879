"""Files of a run, each of which is written as a whole or not at all."""

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

__all__ = ["AGAIN", "byte_view", "checksum", "read_header", "read_tensors", "write_tensors", "write_text", "writing"]

AGAIN = "Delete it to have this part pruned again."
"""What to do about a finished stage that cannot be read."""

LENGTH_BYTES = 8
"""What a safetensors file begins with: the length of its header."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a `StorageError` for whatever goes wrong with the disk while this is open.

    Args:
        path: What is written, for the message.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_out_of_memory(error) or isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} cannot be written ({error}). Make room, or choose another folder.") from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        StorageError: The disk is full, or fails.
    """
    _write(path, lambda unfinished: save_file(_separate(tensors), unfinished, {"format": "pt", **metadata}))


def write_text(path: Path, text: str) -> None:
    """Write a text.

    Raises:
        StorageError: The disk is full, or fails.
    """
    _write(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a finished stage.

    Raises:
        StateError: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise StateError(f"{path} cannot be read ({error}). {AGAIN}") from error
    return metadata, tensors


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a file that this process wrote, and the place of the first tensor's first byte."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        return json.loads(file.read(length)), LENGTH_BYTES + length


def checksum(tensors: Mapping[str, torch.Tensor], text: str = "") -> str:
    """SHA-256 of names, types, shapes and values, and of a text."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(byte_view(tensor.detach().cpu().contiguous()))
    return found.hexdigest()


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    # A tensor of one number may have any strides.
    array: Any = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(array)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place, and give it its name once it is on the disk."""
    unfinished = path.with_name(f"{path.name}.part")
    with writing(path):
        try:
            write(unfinished)
            _sync(unfinished)
            os.replace(unfinished, path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise


def _sync(path: Path) -> None:
    """Have a file's content on the disk before its name, so that a power failure leaves no empty file."""
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, copied only where several share their memory, which safetensors refuses."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        memory = held.untyped_storage()
        is_alone = memory.nbytes() == held.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        found[name] = held if is_alone else held.clone()
    return found
