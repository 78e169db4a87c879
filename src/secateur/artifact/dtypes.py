"""The types of stored numbers, by the names that safetensors gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "Bits", "DType"]

CHUNK = 1 << 18
"""Numbers looked at together, so that this takes little memory."""

Bits = npt.NDArray[np.unsignedinteger]
"""The bit patterns of numbers of any type, as unsigned integers of their width."""


@dataclass(frozen=True, slots=True)
class DType:
    """A type of number.

    Attributes:
        name: What a person calls it.
        size: Bytes of one number.
        is_float: Whether it can be pruned: has a zero that is `+0.0` or `-0.0`.
    """

    name: str
    size: int
    is_float: bool = False

    @property
    def bits(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned integer of the same width, little-endian."""
        return np.dtype(f"<u{self.size}")

    def nonzero(self, bits: Bits) -> npt.NDArray[np.bool_]:
        """Where a number is not zero; ``-0.0`` is zero.

        Example:
            >>> DTYPES["F16"].nonzero(np.array([0x0000, 0x8000, 0x3C00], "<u2"))
            array([False, False,  True])
        """
        found = np.empty(bits.shape, np.bool_)
        flags, numbers, shift = found.reshape(-1), bits.reshape(-1), bits.dtype.type(1 if self.is_float else 0)
        for start in range(0, numbers.size, CHUNK):
            stop = start + CHUNK
            np.not_equal(numbers[start:stop] << shift, 0, out=flags[start:stop])
        return found


DTYPES: Mapping[str, DType] = {
    "BOOL": DType("bool", 1),
    "U8": DType("uint8", 1),
    "I8": DType("int8", 1),
    "F8_E4M3": DType("float8_e4m3fn", 1, is_float=True),
    "F8_E5M2": DType("float8_e5m2", 1, is_float=True),
    "F8_E8M0": DType("float8_e8m0fnu", 1),
    "U16": DType("uint16", 2),
    "I16": DType("int16", 2),
    "F16": DType("float16", 2, is_float=True),
    "BF16": DType("bfloat16", 2, is_float=True),
    "U32": DType("uint32", 4),
    "I32": DType("int32", 4),
    "F32": DType("float32", 4, is_float=True),
    "U64": DType("uint64", 8),
    "I64": DType("int64", 8),
    "F64": DType("float64", 8, is_float=True),
    "C64": DType("complex64", 8),
}
"""Name in a file → type; what is no float is stored, never pruned."""
