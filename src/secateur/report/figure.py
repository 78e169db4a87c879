"""Panels of pixels in one image, by matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from secateur.errors import ConfigError

__all__ = ["Panel", "draw"]

COLUMNS = 4
WIDTH, HEIGHT = 3.3, 2.0
"""Inches of a panel."""

DOTS = 120
"""Per inch."""

MOST_ROWS = 250
"""With more, the image would be larger than such files can be."""

LONGEST_TITLE = 46
"""Characters in a line of a title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One part of the image.

    Attributes:
        title: Lines above it.
        whole: Grey values, 0 = white, 1 = black.
        corner: Grey values of a part of it, magnified beside it; ``None``: all is seen in the whole.
    """

    title: str
    whole: npt.NDArray[np.float64]
    corner: npt.NDArray[np.float64] | None = None


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Write an image.

    Raises:
        ConfigError: It cannot be written, or there are too many panels for an image.
    """
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    if rows > MOST_ROWS:
        raise ConfigError(f"A picture holds at most {MOST_ROWS * COLUMNS:,} layers, found {len(panels):,}.")
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
    places = figure.subfigures(rows, columns, squeeze=False)
    for place, panel in zip(places.flat, panels, strict=False):
        _draw_panel(place, panel)
    try:
        with warnings.catch_warnings():  # a character that the font lacks is drawn as a box
            warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
            figure.savefig(file, dpi=DOTS)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The picture {str(file)!r} cannot be written: {error}.") from error


def _draw_panel(place: Any, panel: Panel) -> None:
    lines = [_shortened(line) for line in panel.title.splitlines()]
    place.suptitle("\n".join(lines), fontsize=7, family="monospace", parse_math=False)
    if panel.corner is None:
        _draw_pixels(place.subplots(), panel.whole)
        return
    whole, corner = place.subplots(1, 2)
    _draw_pixels(whole, panel.whole)
    _draw_pixels(corner, panel.corner)
    rows, cols = panel.corner.shape
    corner.set_xlabel(f"first {rows}×{cols}", fontsize=6)
    whole.set_xlabel("share kept", fontsize=6)


def _draw_pixels(axes: Any, values: npt.NDArray[np.float64]) -> None:
    axes.imshow(values, cmap="Greys", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _shortened(line: str) -> str:
    """The end of a long line, which tells layers apart."""
    return line if len(line) <= LONGEST_TITLE else f"…{line[1 - LONGEST_TITLE :]}"
