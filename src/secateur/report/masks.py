"""Draw masks as a picture: kept weights are dark, pruned ones light."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur._manifest_file import MANIFEST
from secateur._packages import require_packages
from secateur._wording import make_printable_line
from secateur.artifact import Artifact, TensorRow
from secateur.artifact.checkpoints import open_checkpoint
from secateur.artifact.dtypes import DTYPES
from secateur.frameworks import import_leaf
from secateur.frameworks.view import WeightView

__all__ = ["CORNER", "Mask", "compute_density", "draw_masks", "read_masks"]

PIXELS = 128
"""Maximum number of pixels on each side of a panel."""

CORNER = 32
"""Number of rows and columns of a large mask that are also shown weight by weight."""

MIN_SPARSITY = 0.01
"""Minimum share of zeros for a weight without a pattern to be drawn; smaller shares occur by chance."""

TensorReader = tuple[WeightView | None, Callable[[], npt.NDArray[Any]]]
"""The view of a tensor, and a function that reads its values as bit patterns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """The mask of one layer's weight.

    Attributes:
        name: Name of the layer.
        pattern: Pattern of the layer; ``None`` if it has none.
        keep: ``True`` where a weight is kept, of shape (output channels, input features).
    """

    name: str
    pattern: str | None
    keep: npt.NDArray[np.bool_]

    @property
    def title(self) -> str:
        """Name, shape, pattern and sparsity of the layer, safe to print."""
        rows, cols = self.keep.shape
        sparsity = 1.0 - float(self.keep.mean()) if self.keep.size else 0.0
        name, pattern = make_printable_line(self.name), make_printable_line(self.pattern or "no pattern")
        return f"{name}\n{rows}×{cols}  {pattern}  {sparsity:.1%} pruned"


def compute_density(keep: npt.NDArray[np.bool_], max_pixels: int | tuple[int, int] = PIXELS) -> npt.NDArray[np.float64]:
    """Compute the share of kept weights in each pixel of an image with at most `max_pixels` pixels per side.

    Args:
        keep: Booleans of shape (rows, columns), ``True`` = kept.
        max_pixels: Maximum number of pixels, for both sides or for (rows, columns).

    Examples:
        >>> compute_density(np.array([[True, False, True, True]]), max_pixels=2)
        array([[0.5, 1. ]])
    """
    density = keep.astype(np.float64)
    for axis, pixels in enumerate((max_pixels, max_pixels) if isinstance(max_pixels, int) else max_pixels):
        size = density.shape[axis]
        if size > pixels:
            starts = np.arange(pixels) * size // pixels
            widths = np.diff(np.append(starts, size))
            sums = np.add.reduceat(density, starts, axis=axis)
            density = sums / (widths[:, None] if axis == 0 else widths)
    return density


def draw_masks(masks: Iterable[Mask], file: Path) -> int:
    """Draw an image file with one titled panel per mask.

    A large mask is shown as the share of kept weights in each pixel, with its upper left corner beside it, weight by
    weight.

    Args:
        masks: The masks. They are read one at a time, and only their pixels stay in memory.
        file: The image file; its suffix selects the format.

    Returns:
        The number of masks; if it is 0, no image is written.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ConfigError: The image cannot be written.
    """
    require_packages("matplotlib", extra="plot")
    from secateur.report.figure import Panel, draw

    panels = [
        Panel(title=mask.title, whole=compute_density(mask.keep), corner=mask.keep[:CORNER, :CORNER].astype(np.float64))
        if max(mask.keep.shape) > PIXELS
        else Panel(title=mask.title, whole=compute_density(mask.keep))
        for mask in masks
    ]
    if panels:
        draw(panels, file)
    return len(panels)


def read_masks(source: Any, rows: Iterable[TensorRow]) -> Iterator[Mask]:
    """Read the masks of pruned weights, one at a time.

    Args:
        source: A path, or a model.
        rows: The tensors that `secateur.artifact.inspect` found in it.
    """
    read_tensor = _make_reader(source)
    for row in rows:
        if row.pattern is None and row.sparsity < MIN_SPARSITY:
            continue
        view, read = read_tensor(row.name)
        if view is not None:
            keep = np.asarray(view.to_canonical(DTYPES[row.dtype].nonzero(read())))
            yield Mask(name=row.layer or row.name, pattern=row.pattern, keep=keep.reshape(len(keep), -1))


def _make_reader(source: Any) -> Callable[[str], TensorReader]:
    if isinstance(source, Path) and (source / MANIFEST).is_file():
        artifact = Artifact(source)
        return lambda name: (artifact.entry(name).view, lambda: artifact[name].bits)
    if isinstance(source, Path):
        tensors = open_checkpoint(source).tensors
    else:
        tensors = import_leaf("secateur.artifact", source).make_source(source).tensors
    return lambda name: (tensors[name].view, tensors[name].read)
