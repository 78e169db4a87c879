"""Check the counts in GGUF files before other code uses them as loop lengths.

Source:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

from secateur._files import open_file
from secateur.errors import ArtifactError

__all__ = ["check_gguf"]

MAGIC = b"GGUF"

VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a fixed-size value → its bytes."""

STRING, ARRAY = 8, 9

MAX_AXES = 8


def check_gguf(path: Path) -> None:
    """Raise `ArtifactError` if a file is not GGUF, or states more values or tensors than fit into it."""
    with open_file(path) as file:
        reader = _GGUFReader(file, path)
        if file.read(len(MAGIC)) != MAGIC:
            raise reader.make_error("it does not begin with 'GGUF'")
        big_endian = reader.read_number(4) & 0xFFFF == 0
        reader.byte_order = "big" if big_endian else "little"
        tensors, values = reader.read_number(8), reader.read_number(8)
        for _ in range(reader.check_count(values, min_bytes=13)):
            reader.skip(reader.read_number(8))
            reader.skip_value(reader.read_number(4))
        for _ in range(reader.check_count(tensors, min_bytes=24)):
            reader.skip(reader.read_number(8))
            if (axes := reader.read_number(4)) > MAX_AXES:
                raise reader.make_error(f"a tensor has {axes:,} axes")
            count = math.prod(reader.read_number(8) for _ in range(axes))
            reader.skip(4 + 8)
            if count > 8 * reader.size:
                raise reader.make_error(f"a tensor has {count:,} numbers")


class _GGUFReader:
    """Reads numbers and skips bytes, and refuses to go beyond the end of the file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.byte_order: str = "little"
        self.size = file.seek(0, 2)
        file.seek(0)

    def read_number(self, size: int) -> int:
        data = self.file.read(size)
        if len(data) < size:
            raise self.make_error("it is incomplete")
        return int.from_bytes(data, "big" if self.byte_order == "big" else "little")

    def check_count(self, count: int, min_bytes: int) -> int:
        """Check that this many entries of at least `min_bytes` bytes each fit into the rest of the file."""
        if count * min_bytes > self.size - self.file.tell():
            raise self.make_error(f"it has no room for {count:,} entries")
        return count

    def skip(self, size: int) -> None:
        if size > self.size - self.file.tell():
            raise self.make_error(f"it has no room for {size:,} bytes")
        self.file.seek(size, 1)

    def skip_value(self, kind: int) -> None:
        if kind == STRING:
            self.skip(self.read_number(8))
        elif kind == ARRAY:
            kind, count = self.read_number(4), self.read_number(8)
            if kind in VALUE_BYTES:
                self.skip(count * VALUE_BYTES[kind])
            elif kind == STRING:
                for _ in range(self.check_count(count, min_bytes=8)):
                    self.skip(self.read_number(8))
            else:
                raise self.make_error(f"an array has values of type {kind}")
        elif kind in VALUE_BYTES:
            self.skip(VALUE_BYTES[kind])
        else:
            raise self.make_error(f"a value has type {kind}")

    def make_error(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: is not a valid GGUF file: {what}.")
