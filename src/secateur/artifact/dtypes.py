"""Data types of stored tensors, by their safetensors names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "Bits", "DType", "digest_bits"]

CHUNK_NUMBERS = 1 << 18
"""Numbers to compare at once, which limits temporary memory."""

Bits = npt.NDArray[np.unsignedinteger]
"""Bit patterns of numbers of any data type, as unsigned integers of the same width."""


@dataclass(frozen=True, slots=True)
class DType:
    """A data type.

    Attributes:
        name: The name that frameworks use.
        size: Bytes of one number.
        is_float: Whether tensors of this type can be pruned; zeros are ``+0.0`` and ``-0.0``.
    """

    name: str
    size: int
    is_float: bool = False

    @property
    def bits(self) -> np.dtype[np.unsignedinteger]:
        """The little-endian unsigned integer of the same width."""
        return np.dtype(f"<u{self.size}")

    def nonzero(self, bits: Bits) -> npt.NDArray[np.bool_]:
        """Return which numbers are not zero; ``-0.0`` is zero.

        Examples:
            >>> DTYPES["F16"].nonzero(np.array([0x0000, 0x8000, 0x3C00], "<u2"))
            array([False, False,  True])
        """
        nonzero = np.empty(bits.shape, np.bool_)
        flags, numbers, shift = nonzero.reshape(-1), bits.reshape(-1), bits.dtype.type(1 if self.is_float else 0)
        for start in range(0, numbers.size, CHUNK_NUMBERS):
            stop = start + CHUNK_NUMBERS
            np.not_equal(numbers[start:stop] << shift, 0, out=flags[start:stop])
        return nonzero


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
"""Name in a file → data type. Tensors that are not floating point are stored, but never pruned."""


def digest_bits(bits: Bits) -> str:
    """Compute the SHA-256 of the bytes of a dense tensor."""
    return hashlib.sha256(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data).hexdigest()
