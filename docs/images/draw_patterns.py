"""Draw `patterns.svg`: the masks of patterns at 50 %. Run this file to renew the picture."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from secateur.frameworks import WeightView
from secateur.patterns import get_pattern

PATTERNS = {
    "1x1": "single weights",
    "2:4": "2 of 4 inputs are kept",
    "4x1": "4 outputs × 1 input",
    "8x1": "8 outputs × 1 input",
    "1x8": "1 output × 8 inputs",
    "4x4": "4 outputs × 4 inputs",
    "1xchannel": "whole outputs",
    "channelx1": "whole inputs",
}
ROWS, COLUMNS, CELL = 16, 24, 7
PANELS, GAP, CAPTION = 4, 24, 40
KEPT, PRUNED = "#2e7d32", "#e3e8e3"


def draw_patterns() -> str:
    """Draw one panel for each pattern."""
    width = PANELS * (COLUMNS * CELL + GAP) + GAP
    height = -(-len(PATTERNS) // PANELS) * (ROWS * CELL + CAPTION + GAP) + GAP
    panels = "\n".join(
        line for index, pattern in enumerate(PATTERNS) for line in _draw_panel(pattern, index % PANELS, index // PANELS)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#333">\n<rect width="{width}" height="{height}" rx="6" fill="#fff"/>\n{panels}\n</svg>\n'
    )


def _draw_panel(pattern: str, column: int, row: int) -> Iterator[str]:
    left, top = GAP + column * (COLUMNS * CELL + GAP), GAP + row * (ROWS * CELL + CAPTION + GAP)
    yield f'<text x="{left}" y="{top + 4}" font-weight="bold" font-size="14">{pattern}</text>'
    yield f'<text x="{left}" y="{top + 20}">{PATTERNS[pattern]}</text>'
    top += CAPTION - 12
    size = f'width="{COLUMNS * CELL}" height="{ROWS * CELL}"'
    yield f'<rect x="{left}" y="{top}" {size} fill="{PRUNED}"/>'
    path = "".join(
        f"M{left + first * CELL},{top + y * CELL}h{count * CELL}v{CELL}h{-count * CELL}z"
        for y, kept in enumerate(_compute_mask(pattern))
        for first, count in _list_runs(kept)
    )
    yield f'<path d="{path}" fill="{KEPT}"/>'
    across = "".join(f"M{left},{top + y * CELL}h{COLUMNS * CELL}" for y in range(1, ROWS))
    down = "".join(f"M{left + x * CELL},{top}v{ROWS * CELL}" for x in range(1, COLUMNS))
    yield f'<path d="{across}{down}" stroke="#fff"/>'


def _compute_mask(pattern: str) -> npt.NDArray[np.bool_]:
    scores = np.random.default_rng(3).random((ROWS, COLUMNS))
    view = WeightView(shape=scores.shape, output_axes=(0,), input_axes=(1,))
    config = {"pattern": pattern, "target_sparsity": 0.5}
    mask: npt.NDArray[np.bool_] = get_pattern(config, {"w": view}, framework="array").masks({"w": scores})["w"]
    return mask


def _list_runs(kept: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """List the first column and the length of each run of kept weights."""
    column = 0
    for is_kept, run in groupby(kept.tolist()):
        count = len(list(run))
        if is_kept:
            yield column, count
        column += count


if __name__ == "__main__":
    Path(__file__).with_name("patterns.svg").write_text(draw_patterns(), "utf-8")
