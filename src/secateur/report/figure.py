"""Draw panels of pixels in an image file with matplotlib."""

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
"""Size of a panel in inches."""

DOTS = 120
"""Resolution in dots per inch."""

MAX_ROWS = 250
"""Maximum number of rows of panels, which the image formats limit."""

MAX_TITLE = 46
"""Maximum length of a line of a title, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel of the image.

    Attributes:
        title: Text above the panel, with one or more lines.
        whole: Gray values from 0, white, to 1, black.
        corner: Gray values of the upper left corner, shown enlarged beside the whole; ``None`` if the whole shows every
            weight.
    """

    title: str
    whole: npt.NDArray[np.float64]
    corner: npt.NDArray[np.float64] | None = None


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Draw panels in an image file.

    Raises:
        ConfigError: The file cannot be written, or there are too many panels.
    """
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    if rows > MAX_ROWS:
        raise ConfigError(f"A picture can show at most {MAX_ROWS * COLUMNS:,} layers, found {len(panels):,}.")
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
    subfigures = figure.subfigures(rows, columns, squeeze=False)
    for subfigure, panel in zip(subfigures.flat, panels, strict=False):
        _draw_panel(subfigure, panel)
    try:
        with warnings.catch_warnings():  # characters that the font lacks are drawn as boxes
            warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
            figure.savefig(file, dpi=DOTS)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The picture {str(file)!r} cannot be written: {error}.") from error


def _draw_panel(subfigure: Any, panel: Panel) -> None:
    lines = [_shorten_line(line) for line in panel.title.splitlines()]
    subfigure.suptitle("\n".join(lines), fontsize=7, family="monospace", parse_math=False)
    if panel.corner is None:
        _draw_pixels(subfigure.subplots(), panel.whole)
        return
    whole, corner = subfigure.subplots(1, 2)
    _draw_pixels(whole, panel.whole)
    _draw_pixels(corner, panel.corner)
    rows, cols = panel.corner.shape
    corner.set_xlabel(f"first {rows}×{cols}", fontsize=6)
    whole.set_xlabel("share kept", fontsize=6)


def _draw_pixels(axes: Any, values: npt.NDArray[np.float64]) -> None:
    axes.imshow(values, cmap="Greys", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _shorten_line(line: str) -> str:
    """Shorten a long line at its start, because names of layers differ at their end."""
    return line if len(line) <= MAX_TITLE else f"…{line[1 - MAX_TITLE :]}"
