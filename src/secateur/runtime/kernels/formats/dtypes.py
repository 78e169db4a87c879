"""What weights are stored as."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.errors import LayerError

__all__ = ["NAMES", "WEIGHT_DTYPES", "decoded", "encoded", "in_halves", "quantized", "stored", "whole"]

WEIGHT_DTYPES = ("float32", "bfloat16", "int8")
"""float32; bfloat16, as the bits of uint16; int8 with a scale per output channel."""

MOST = 127
"""Of an int8."""

LLVM_TYPES = {"float32": "float", "uint16": "bfloat", "int8": "i8"}

NAMES = {"float": "float32", "bfloat": "bfloat16"}
"""LLVM's types → what they are called elsewhere."""

Floats = npt.NDArray[np.float32]


def stored(values: npt.NDArray[Any]) -> str:
    """LLVM's type of stored numbers."""
    return LLVM_TYPES[values.dtype.name]


def quantized(weight_OI: Floats) -> tuple[Floats, Floats]:
    """Whole numbers from -127 to 127, and for each output channel what they are to be multiplied with.

    Example:
        >>> quantized(np.array([[1.0, 0.5], [0.0, 0.0]], np.float32))[0]
        array([[127.,  64.],
               [  0.,   0.]], dtype=float32)
    """
    largest = np.abs(weight_OI).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(MOST), 1).astype(np.float32)
    return np.rint(weight_OI / scales[:, None]), scales


def encoded(values: Floats, dtype: str) -> npt.NDArray[Any]:
    """Numbers as they are stored: bfloat16 rounded to the nearest, int8 of whole numbers.

    Example:
        >>> encoded(np.array([1.0], np.float32), "bfloat16")
        array([16256], dtype=uint16)
    """
    if dtype == "float32":
        return values
    if dtype == "int8":
        return values.astype(np.int8)
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    rounded = np.where(np.isnan(values), bits | np.uint32(1 << 22), bits + half)
    shifted: npt.NDArray[Any] = (rounded >> np.uint32(16)).astype(np.uint16)
    return shifted


def decoded(values: npt.NDArray[Any]) -> Floats:
    """The numbers that are stored, without their scales."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def in_halves(values: Floats) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int8]]:
    """Numbers as two bfloat16, which are nearly their sum, and what is left, in units of their last place.

    The first is the number rounded to bfloat16, the second what is left of it rounded to bfloat16, as a last axis.
    Minus zero becomes zero.

    Raises:
        LayerError: One is not finite, or so small or large that it has no such halves.

    Example:
        >>> halves, rest = in_halves(np.array([1 / 3], np.float32))
        >>> decoded(halves), rest
        (array([[ 0.33398438, -0.00065231]], dtype=float32), array([43], dtype=int8))
    """
    values = values + np.float32(0)
    large = encoded(values, "bfloat16")
    with np.errstate(invalid="ignore", over="ignore"):
        small = encoded(values - decoded(large), "bfloat16")
        near = decoded(large) + decoded(small)
    rest = values.view(np.int32).astype(np.int64) - near.view(np.int32)
    if not np.isfinite(near).all() or np.abs(rest).max(initial=0) > np.iinfo(np.int8).max:
        raise LayerError("a weight in halves of bfloat16 must be finite and of a usual size. Keep the layer dense.")
    return np.stack([large, small], axis=-1), rest.astype(np.int8)


def whole(halves: npt.NDArray[np.uint16], rest: npt.NDArray[np.int8]) -> Floats:
    """What `in_halves` came from, bit for bit."""
    near = decoded(halves[..., 0]) + decoded(halves[..., 1])
    return (near.view(np.int32) + rest).view(np.float32)
