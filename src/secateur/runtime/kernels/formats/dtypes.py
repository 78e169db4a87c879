"""Convert weights to their storage types: float32, bfloat16, int8, and float32 as a pair of bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.errors import LayerError

__all__ = [
    "DTYPE_NAMES",
    "WEIGHT_DTYPES",
    "Floats",
    "decode",
    "encode",
    "get_llvm_type",
    "merge_float32",
    "quantize_int8",
    "split_float32",
]

WEIGHT_DTYPES = ("float32", "bfloat16", "int8")
"""Storage types of weights. bfloat16 is stored as uint16, and int8 has one scale per output channel."""

MAX_INT8 = 127
"""Largest quantized value; -128 is not used."""

LLVM_TYPES = {"float32": "float", "uint16": "bfloat", "int8": "i8"}
"""Maps the NumPy type of stored values to the LLVM type."""

DTYPE_NAMES = {"float": "float32", "bfloat": "bfloat16"}
"""Maps LLVM types to their names in messages."""

Floats = npt.NDArray[np.float32]


def get_llvm_type(values: npt.NDArray[Any]) -> str:
    """Return the LLVM type of stored values."""
    return LLVM_TYPES[values.dtype.name]


def quantize_int8(weight_OI: Floats) -> tuple[Floats, Floats]:
    """Quantize a weight symmetrically, one scale per output channel.

    Returns:
        Integers from -127 to 127 as floats, and the scale of each output channel.

    Examples:
        >>> quantize_int8(np.array([[1.0, 0.5], [0.0, 0.0]], np.float32))[0]
        array([[127.,  64.],
               [  0.,   0.]], dtype=float32)
    """
    max_abs = np.abs(weight_OI).max(axis=1)
    scales = np.where(max_abs > 0, max_abs / np.float32(MAX_INT8), 1).astype(np.float32)
    return np.rint(weight_OI / scales[:, None]), scales


def encode(values: Floats, dtype: str) -> npt.NDArray[Any]:
    """Convert floats to their storage type.

    For bfloat16, values are rounded to nearest even. For int8, they must be integers, such as `quantize_int8` returns.

    Examples:
        >>> encode(np.array([1.0], np.float32), "bfloat16")
        array([16256], dtype=uint16)
    """
    if dtype == "float32":
        return values
    if dtype == "int8":
        return values.astype(np.int8)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounding = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    rounded = np.where(np.isnan(values), bits | np.uint32(1 << 22), bits + rounding)
    high_bits: npt.NDArray[Any] = (rounded >> np.uint32(16)).astype(np.uint16)
    return high_bits


def decode(values: npt.NDArray[Any]) -> Floats:
    """Convert stored values back to float32, without applying scales."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def split_float32(values: Floats) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int8]]:
    """Split floats into the sum of two bfloat16 and an integer remainder.

    The first bfloat16 is the rounded value, and the second is the rounded difference. Together they have about 16 bits
    of precision. The remainder counts units in the last place of their float32 sum, so that `merge_float32` can restore
    the value exactly. Minus zero becomes zero.

    Returns:
        The two bfloat16 along a new last axis, and the remainders.

    Raises:
        LayerError: A value is not finite, or its magnitude is too small or too large to be split.

    Examples:
        >>> halves, remainder = split_float32(np.array([1 / 3], np.float32))
        >>> decode(halves), remainder
        (array([[ 0.33398438, -0.00065231]], dtype=float32), array([43], dtype=int8))
    """
    values = values + np.float32(0)
    high = encode(values, "bfloat16")
    with np.errstate(invalid="ignore", over="ignore"):
        low = encode(values - decode(high), "bfloat16")
        approximation = decode(high) + decode(low)
    remainder = values.view(np.int32).astype(np.int64) - approximation.view(np.int32)
    if not np.isfinite(approximation).all() or np.abs(remainder).max(initial=0) > np.iinfo(np.int8).max:
        raise LayerError(
            "a weight stored as two bfloat16 must be finite and neither tiny nor huge. Keep the layer dense."
        )
    return np.stack([high, low], axis=-1), remainder.astype(np.int8)


def merge_float32(halves: npt.NDArray[np.uint16], remainder: npt.NDArray[np.int8]) -> Floats:
    """Restore the exact floats that `split_float32` split."""
    approximation = decode(halves[..., 0]) + decode(halves[..., 1])
    return (approximation.view(np.int32) + remainder).view(np.float32)
