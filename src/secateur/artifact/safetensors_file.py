"""Read and write safetensors files one tensor at a time, and check their headers.

The format: eight bytes with the length of the header, little-endian; the header, a JSON object of name → ``dtype``,
``shape`` and ``data_offsets``; and the tensors one after another, without gaps.

Source:
    https://github.com/huggingface/safetensors, section "Format". The package itself needs a framework for bfloat16 and
    holds a whole file in memory to write it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur._files import FileReader
from secateur._json import parse_json
from secateur._memory import explain_out_of_memory
from secateur._wording import format_value, suggest_name
from secateur.artifact.dtypes import DTYPES, Bits
from secateur.errors import ArtifactError

__all__ = ["METADATA", "StoredTensor", "TensorFile", "write_tensor_file"]

LENGTH_BYTES = 8

METADATA = "__metadata__"
"""The key of the header entry that is not a tensor."""

MAX_HEADER_BYTES = 100_000_000
"""Limit of the format."""

ALIGNMENT = 8
"""The header is padded with spaces so that the data begins at a multiple of this many bytes."""

MAX_AXES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Describes one tensor in a header.

    Attributes:
        dtype: The data type, a key of `DTYPES`.
        shape: The shape.
        start: Offset of the first byte, counted from the beginning of the data.
        stop: Offset of the end.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile(Mapping[str, StoredTensor]):
    """Maps the names in a safetensors file to their headers; the header and the size of the file are consistent.

    Args:
        path: The file.
        keep_open: Whether the file stays open, so that later reads see the same file even if its name is reused.

    Attributes:
        path: The file.
        file: The file reader.
        metadata: The text in the header that does not describe tensors.

    Raises:
        ArtifactError: The file is not a safetensors file, or is damaged.
    """

    def __init__(self, path: Path, *, keep_open: bool = True) -> None:
        self.path = path
        self.file = FileReader(path, keep_open=keep_open)
        self._data_start, header = self._read_header()
        self.metadata = header.pop(METADATA, {})
        if not isinstance(self.metadata, dict) or not all(isinstance(text, str) for text in self.metadata.values()):
            raise self._make_error(f"{METADATA!r} must map names to strings")
        self._tensors = {name: self._parse_entry(name, entry) for name, entry in header.items()}
        self._check_offsets()

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.file.size

    def read(self, name: str) -> Bits:
        """Read the bit patterns of a tensor, in its shape.

        Raises:
            ArtifactError: The file has changed since it was opened, or there is not enough memory.
        """
        tensor = self._tensors[name]
        dtype = DTYPES[tensor.dtype]
        size = tensor.stop - tensor.start
        with explain_out_of_memory(f"{self.path}: tensor {format_value(name)} cannot be read", size):
            try:
                bits = np.empty(size // dtype.size, dtype.bits).reshape(tensor.shape)
            except ValueError as error:
                raise ArtifactError(f"{self.path}: tensor {format_value(name)} cannot be read ({error}).") from error
        if self.file.read_into(bits.reshape(-1).view(np.uint8).data, self._data_start + tensor.start) < size:
            raise self._make_error("it was truncated after it was opened")
        return bits

    def _read_header(self) -> tuple[int, dict[str, Any]]:
        length = int.from_bytes(self._read_bytes(0, LENGTH_BYTES), "little")
        max_length = min(self.size - LENGTH_BYTES, MAX_HEADER_BYTES)
        if not 2 <= length <= max_length:
            raise self._make_error(f"the header must have 2 to {max(max_length, 2):,} bytes, found {length:,}")
        header = parse_json(self._read_bytes(LENGTH_BYTES, length), self.path)
        return LENGTH_BYTES + length, header

    def _read_bytes(self, start: int, length: int) -> bytes:
        with explain_out_of_memory(f"{self.path}: the header cannot be read", length):
            buffer = bytearray(length)
        return bytes(buffer[: self.file.read_into(memoryview(buffer), start)])

    def _parse_entry(self, name: str, entry: Any) -> StoredTensor:
        if not name.isprintable():
            raise self._make_error(f"tensor {format_value(name)} has a name that cannot be printed")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._make_error(f"tensor {format_value(name)} must have dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            hint = suggest_name(dtype, DTYPES) if isinstance(dtype, str) else ""
            raise self._make_error(
                f"tensor {format_value(name)} has dtype {format_value(dtype)}, which is unknown.{hint}", end=""
            )
        if not _are_sizes(shape) or len(shape) > MAX_AXES:
            raise self._make_error(
                f"tensor {format_value(name)} has the shape {format_value(shape)}, which must be a list of sizes"
            )
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise self._make_error(
                f"tensor {format_value(name)} has data_offsets {format_value(offsets)}, which must be two offsets"
            )
        start, stop = offsets
        if stop - start != (needed := math.prod(shape) * DTYPES[dtype].size):
            raise self._make_error(
                f"tensor {format_value(name)} needs {needed:,} bytes for {dtype} {format_value(shape)}, found "
                f"{stop - start:,}"
            )
        return StoredTensor(dtype=dtype, shape=tuple(shape), start=start, stop=stop)

    def _check_offsets(self) -> None:
        end = 0
        for name, tensor in sorted(self._tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
            if tensor.start != end:
                kind = "overlaps another" if tensor.start < end else "leaves a gap before it"
                raise self._make_error(
                    f"tensor {format_value(name)} {kind}: it begins at byte {tensor.start:,}, and {end:,} is next"
                )
            end = tensor.stop
        if end != (data_bytes := self.size - self._data_start):
            raise self._make_error(
                f"the tensors must have {end:,} bytes in total, found {data_bytes:,}. Is the file complete?"
            )

    def _make_error(self, what: str, end: str = ".") -> ArtifactError:
        return ArtifactError(f"{self.path}: is not a valid safetensors file: {what}{end}")


def write_tensor_file(
    path: Path, entries: Mapping[str, tuple[str, tuple[int, ...]]], read: Callable[[], Iterable[Bits]]
) -> None:
    """Write a file tensor by tensor, and flush it to the disk.

    Args:
        path: The file.
        entries: Name → data type and shape, in the order of the data.
        read: Returns the bit patterns of the tensors in this order, one at a time.
    """
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in entries.items():
        start, end = end, end + math.prod(shape) * DTYPES[dtype].size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for (name, (dtype, shape)), bits in zip(entries.items(), read(), strict=True):
            assert (bits.shape, bits.dtype) == (shape, DTYPES[dtype].bits), name
            file.write(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
