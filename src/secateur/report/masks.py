"""Masks as a picture: what is kept dark, what is pruned light."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from secateur._packages import require_packages
from secateur._wording import make_printable_line

__all__ = ["CORNER", "Mask", "density", "draw_masks"]

PIXELS = 128
"""Most pixels of a side of a panel."""

CORNER = 32
"""Rows and columns of the corner that is shown weight by weight beside a mask that is too large for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """One layer's weight.

    Attributes:
        name: Its name.
        pattern: Its pattern; ``None``: none.
        keep: What is kept, of shape (output channels, input features).
    """

    name: str
    pattern: str | None
    keep: npt.NDArray[np.bool_]

    @property
    def title(self) -> str:
        """Name, shape, pattern and sparsity; safe to print."""
        rows, cols = self.keep.shape
        sparsity = 1.0 - float(self.keep.mean()) if self.keep.size else 0.0
        name, pattern = make_printable_line(self.name), make_printable_line(self.pattern or "no pattern")
        return f"{name}\n{rows}×{cols}  {pattern}  {sparsity:.1%} pruned"


def density(keep: npt.NDArray[np.bool_], most: int = PIXELS) -> npt.NDArray[np.float64]:
    """Share of weights that are kept in each pixel, where no side has more than `most` pixels.

    Example:
        >>> density(np.array([[True, False, True, True]]), most=2)
        array([[0.5, 1. ]])
    """
    found = keep.astype(np.float64)
    for axis in (0, 1):
        size = found.shape[axis]
        if size > most:
            starts = np.arange(most) * size // most
            widths = np.diff(np.append(starts, size))
            sums = np.add.reduceat(found, starts, axis=axis)
            found = sums / (widths[:, None] if axis == 0 else widths)
    return found


def draw_masks(masks: Iterable[Mask], file: Path) -> int:
    """Draw one titled panel per mask into an image file.

    A mask with more weights than pixels is shown as the density of what is kept, and beside it its upper left corner,
    weight by weight.

    Args:
        masks: They are read one after another; only their pixels are held.
        file: An image; its suffix says of what kind.

    Returns:
        How many there were; of none, no image is written.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ConfigError: The image cannot be written.
    """
    require_packages("matplotlib", extra="plot")
    from secateur.report.figure import Panel, draw

    panels = [
        Panel(title=mask.title, whole=density(mask.keep), corner=mask.keep[:CORNER, :CORNER].astype(np.float64))
        if max(mask.keep.shape) > PIXELS
        else Panel(title=mask.title, whole=density(mask.keep))
        for mask in masks
    ]
    if panels:
        draw(panels, file)
    return len(panels)
