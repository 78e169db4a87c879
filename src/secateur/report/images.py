"""Encode small images as PNG files in data URIs, with the standard library and NumPy."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

__all__ = ["encode_png", "make_data_uri"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"

ROUNDING = 1e-6
"""Added before rounding, so that shares that differ only by rounding errors get the same gray level."""

GRAYSCALE = 0
"""PNG color type of grayscale images."""


def encode_png(gray: npt.NDArray[np.float64], bits: int) -> bytes:
    """Encode gray values as a PNG file.

    Args:
        gray: Values from 0, white, to 1, black, of shape (rows, columns).
        bits: Bits per pixel: 1, 2, 4 or 8.

    Examples:
        >>> encode_png(np.eye(4), bits=1)[1:4]
        b'PNG'
    """
    height, width = gray.shape
    top = (1 << bits) - 1
    levels = np.floor((1.0 - gray) * top + 0.5 + ROUNDING).astype(np.uint8)
    planes = np.unpackbits(levels[:, :, None], axis=2)[:, :, 8 - bits :].reshape(height, width * bits)
    rows = np.packbits(planes, axis=1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # each starts with filter type 0
    header = struct.pack(">IIBBBBB", width, height, bits, GRAYSCALE, 0, 0, 0)
    data = zlib.compress(lines.tobytes(), 9)
    return SIGNATURE + _make_chunk(b"IHDR", header) + _make_chunk(b"IDAT", data) + _make_chunk(b"IEND", b"")


def make_data_uri(png: bytes) -> str:
    """Return a PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _make_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
