"""GGUF files, whose counts are checked before anything loops over them.

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
"""Type of a value → its bytes, where they are always the same."""

STRING, ARRAY = 8, 9

MAX_AXES = 8


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file that says it has more values or tensors than fit into it.

    Raises:
        ArtifactError: It does, or it is none.
    """
    with open_file(path) as file:
        reader = _Reader(file, path)
        if file.read(len(MAGIC)) != MAGIC:
            raise reader.damaged("it begins with other bytes")
        big_endian = reader.number(4) & 0xFFFF == 0
        reader.byte_order = "big" if big_endian else "little"
        tensors, values = reader.number(8), reader.number(8)
        for _ in range(reader.count(values, least=13)):
            reader.skip(reader.number(8))
            reader.skip_value(reader.number(4))
        for _ in range(reader.count(tensors, least=24)):
            reader.skip(reader.number(8))
            if (axes := reader.number(4)) > MAX_AXES:
                raise reader.damaged(f"a tensor has {axes:,} axes")
            count = math.prod(reader.number(8) for _ in range(axes))
            reader.skip(4 + 8)
            if count > 8 * reader.size:
                raise reader.damaged(f"a tensor has {count:,} numbers")


class _Reader:
    """Numbers and lengths of a file, none of which may reach behind its end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.byte_order: str = "little"
        self.size = file.seek(0, 2)
        file.seek(0)

    def number(self, size: int) -> int:
        text = self.file.read(size)
        if len(text) < size:
            raise self.damaged("it is cut short")
        return int.from_bytes(text, "big" if self.byte_order == "big" else "little")

    def count(self, count: int, least: int) -> int:
        """A number of things that have that many bytes each at the least."""
        if count * least > self.size - self.file.tell():
            raise self.damaged(f"it has no room for {count:,} entries")
        return count

    def skip(self, size: int) -> None:
        if size > self.size - self.file.tell():
            raise self.damaged(f"it has no room for {size:,} bytes")
        self.file.seek(size, 1)

    def skip_value(self, kind: int) -> None:
        if kind == STRING:
            self.skip(self.number(8))
        elif kind == ARRAY:
            kind, count = self.number(4), self.number(8)
            if kind in VALUE_BYTES:
                self.skip(count * VALUE_BYTES[kind])
            elif kind == STRING:
                for _ in range(self.count(count, least=8)):
                    self.skip(self.number(8))
            else:
                raise self.damaged(f"an array has values of type {kind}")
        elif kind in VALUE_BYTES:
            self.skip(VALUE_BYTES[kind])
        else:
            raise self.damaged(f"a value has type {kind}")

    def damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: no valid GGUF file: {what}.")
