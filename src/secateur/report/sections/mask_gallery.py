"""Small pictures of the masks: kept weights are dark, pruned ones light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur._wording import make_printable_line
from secateur.report.images import encode_png, make_data_uri
from secateur.report.masks import CORNER, Mask, compute_density
from secateur.report.quantities import format_share

__all__ = ["Thumbnail", "make_mask_gallery", "make_thumbnail"]

PIXELS = 48
"""Maximum number of pixels on each side of a picture, so that hundreds fit on a page."""

GROUP = 4
"""A pixel of a reduced mask covers a multiple of this many rows and columns, the group length of most N:M patterns."""

BITS = 4
"""Bits per pixel of the whole mask."""

SIZE, MIN_SIZE = 96, 12
"""Length of the longer side of a picture on the page, and minimum of the shorter one."""

MAX_THUMBNAILS = 300
"""Maximum number of pictures on a page, which keeps the page below a megabyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """The picture of one mask.

    Attributes:
        name: Name of the layer.
        caption: Shape, pattern and sparsity.
        whole: Data URI of the picture of the whole mask; a pixel may cover many weights.
        corner: Data URI of the picture of its upper left corner, weight by weight; ``None``: `whole` shows every
            weight.
        width: Width of `whole` on the page.
        height: Its height.
    """

    name: str
    caption: str
    whole: str
    corner: str | None
    width: int
    height: int


def make_thumbnail(mask: Mask) -> Thumbnail:
    """Draw a mask."""
    rows, cols = mask.keep.shape
    pattern = make_printable_line(mask.pattern or "no pattern")
    scale = SIZE / max(rows, cols)
    is_reduced = max(rows, cols) > PIXELS
    pixels = _count_pixels(rows), _count_pixels(cols)
    whole = encode_png(compute_density(mask.keep, pixels), BITS if is_reduced else 1)
    corner = encode_png(mask.keep[:CORNER, :CORNER].astype(np.float64), 1) if is_reduced else None
    return Thumbnail(
        name=make_printable_line(mask.name),
        caption=f"{rows}×{cols}, {pattern}, {format_share(1.0 - float(mask.keep.mean()))} zeros",
        whole=make_data_uri(whole),
        corner=None if corner is None else make_data_uri(corner),
        width=max(MIN_SIZE, round(scale * cols)),
        height=max(MIN_SIZE, round(scale * rows)),
    )


def _count_pixels(size: int) -> int:
    """Return the number of pixels for which each covers whole groups of weights, so that groups cause no stripes.

    Examples:
        >>> _count_pixels(48), _count_pixels(576), _count_pixels(130)
        (48, 48, 33)
    """
    if size <= PIXELS:
        return size
    step = -(-size // PIXELS)
    return -(-size // (-(-step // GROUP) * GROUP))


def make_mask_gallery(thumbnails: Sequence[Thumbnail]) -> dict[str, Any] | None:
    """Return at most `MAX_THUMBNAILS` pictures."""
    if not thumbnails:
        return None
    return {
        "count": len(thumbnails),
        "thumbnails": thumbnails[:MAX_THUMBNAILS],
        "left_out": max(0, len(thumbnails) - MAX_THUMBNAILS),
        "corner": CORNER,
    }
