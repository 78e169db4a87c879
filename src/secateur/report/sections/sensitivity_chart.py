"""What each layer loses if it is pruned alone, as a heat map.

Few layers are rows, and patterns with sparsities are columns. Many layers of repeated blocks are drawn once per pattern
and sparsity, with blocks as columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secateur._row_names import cut_names, split_name
from secateur._wording import make_printable_line
from secateur.results import LayerSensitivity, SensitivityMap, Summary

__all__ = ["make_sensitivity_chart"]

WIDTH = 760.0
"""Width of the chart, in units of its view box."""

NAMES = 220.0
"""Width of the names of layers."""

ROW = 20.0
"""Height of a row."""

GAP = 30.0
"""Height above the rows of a group, for the labels of columns."""

MAX_NAME_LENGTH = 32
"""Maximum length of a name, in characters."""

MAX_ROWS = 24
"""Number of layers up to which each layer is a row."""

MIN_NUMBER_WIDTH = 46.0
"""Minimum width of a cell that contains its number."""

MIN_LABEL_DISTANCE = 22.0
"""Minimum distance between two labels of columns."""

MAX_DECADES = 4
"""Losses that are smaller than the largest by more powers of ten have the palest color."""

OUTLIERS = 0.02
"""Share of the losses, the smallest ones, that all have the palest color."""

SHADES = 24
"""Number of colors in the legend."""

MIN_OPACITY = 0.05
"""Opacity of the smallest loss."""

GAIN_OPACITY = 0.4
"""Opacity of improvements, which have another color."""


@dataclass(frozen=True, slots=True)
class ColorScale:
    """A logarithmic scale from losses to opacities.

    Attributes:
        low: Loss with the palest color.
        high: Loss with the strongest color.
    """

    low: float
    high: float

    @classmethod
    def fit(cls, losses: Sequence[float]) -> ColorScale:
        """Return the scale of some losses."""
        positive = sorted(loss for loss in losses if loss > 0) or [1.0]
        low, high = positive[int(len(positive) * OUTLIERS)], positive[-1]
        return cls(max(low, high / 10**MAX_DECADES), high)

    def compute_opacity(self, loss: float) -> float:
        """Return the opacity of a loss.

        Examples:
            >>> scale = ColorScale(0.01, 1.0)
            >>> [round(scale.compute_opacity(loss), 3) for loss in (0.0, 0.1, 1.0)]
            [0.05, 0.525, 1.0]
        """
        if loss <= self.low:
            return 1.0 if self.low == self.high == loss else MIN_OPACITY
        share = (math.log(loss) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return MIN_OPACITY + (1 - MIN_OPACITY) * min(1.0, share)


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell before it is placed: a layer with a pattern and a sparsity, and its loss; ``None``: not measured."""

    title: str
    loss: float | None


@dataclass(frozen=True, slots=True)
class CellRow:
    """A row of cells with its name; a cell can be missing."""

    name: str
    cells: Sequence[Cell | None]


@dataclass(frozen=True, slots=True)
class CellGroup:
    """Rows with a heading, and the labels of their columns."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[CellRow]


def make_sensitivity_chart(summary: Summary) -> dict[str, Any] | None:
    """Return the rectangles and labels of the heat map, and a table of all losses."""
    losses = summary.sensitivity
    if losses is None:
        return None
    scale = ColorScale.fit([point.loss for layer in losses.layers for point in layer.points])
    top, groups = ROW + 8, []
    for group in _group_cells(losses):
        groups.append(_place_group(group, top, scale))
        top += GAP + ROW * len(group.rows)
    return {
        "quantity": losses.quantity,
        "width": WIDTH,
        "height": top + 6,
        "names": NAMES - 8,
        "legend": _make_legend(scale),
        "groups": groups,
        "cases": [str(case) for case in losses.cases],
        "rows": [_make_table_row(layer, losses) for layer in losses.layers],
        "count": len(losses.layers),
        "has_gains": any(point.loss < 0 for layer in losses.layers for point in layer.points),
    }


def _group_cells(losses: SensitivityMap) -> list[CellGroup]:
    by_block = [_split_block(layer.name) for layer in losses.layers]
    names = list(dict.fromkeys(name for name, _ in by_block))
    if len(losses.layers) <= MAX_ROWS or len(names) * len(losses.cases) >= len(losses.layers):
        return [_group_by_layer(losses)]
    blocks = sorted({block for _, block in by_block})
    layers = dict(zip(by_block, losses.layers, strict=True))
    return [
        CellGroup(
            str(case),
            [str(block) if block >= 0 else "–" for block in blocks],
            [
                CellRow(
                    name,
                    [
                        _make_cell(layers[name, block], losses, index) if (name, block) in layers else None
                        for block in blocks
                    ],
                )
                for name in names
            ],
        )
        for index, case in enumerate(losses.cases)
    ]


def _group_by_layer(losses: SensitivityMap) -> CellGroup:
    indices = range(len(losses.cases))
    rows = [CellRow(layer.name, [_make_cell(layer, losses, i) for i in indices]) for layer in losses.layers]
    return CellGroup("", [str(case) for case in losses.cases], rows)


def _split_block(name: str) -> tuple[str, int]:
    """Return the name without the number of its block, and that number; -1 if there is none.

    Examples:
        >>> _split_block("layers.3.experts.5.fc"), _split_block("head")
        (('layers.*.experts.5.fc', 3), ('head', -1))
    """
    template, numbers = split_name(name)
    if not numbers:
        return name, -1
    filled = template.replace("\0", "*", 1)
    for number in numbers[1:]:
        filled = filled.replace("\0", str(number), 1)
    return filled, numbers[0]


def _make_cell(layer: LayerSensitivity, losses: SensitivityMap, index: int) -> Cell:
    case = losses.cases[index]
    loss = layer.find_loss(case)
    value = "not measured" if loss is None else f"{loss:.4g}"
    return Cell(f"{make_printable_line(layer.name)}, {case}: {value}", loss)


def _place_group(group: CellGroup, top: float, scale: ColorScale) -> dict[str, Any]:
    width = (WIDTH - NAMES) / len(group.columns)
    step = math.ceil(MIN_LABEL_DISTANCE / width)
    names = cut_names((make_printable_line(row.name) for row in group.rows), MAX_NAME_LENGTH)
    labels = [
        {"x": round(NAMES + (index + 0.5) * width, 1), "text": text}
        for index, text in enumerate(group.columns)
        if index % step == 0
    ]
    first = top + GAP
    rows = [
        {
            "name": names[make_printable_line(row.name)],
            "title": make_printable_line(row.name),
            "y": round(first + number * ROW, 1),
            "cells": _place_cells(row, width, scale),
        }
        for number, row in enumerate(group.rows)
    ]
    return {"heading": group.heading, "y": top + GAP - 6, "labels": labels, "rows": rows, "cell_width": round(width, 2)}


def _place_cells(row: CellRow, width: float, scale: ColorScale) -> list[dict[str, Any]]:
    return [
        {
            "x": round(NAMES + index * width, 1),
            "title": cell.title,
            "text": "" if cell.loss is None or width < MIN_NUMBER_WIDTH else f"{cell.loss:.2g}",
            **_choose_color(cell.loss, scale),
        }
        for index, cell in enumerate(row.cells)
        if cell is not None
    ]


def _choose_color(loss: float | None, scale: ColorScale) -> dict[str, str]:
    if loss is None:
        return {"kind": "missing", "opacity": "1"}
    if loss < 0:
        return {"kind": "gain", "opacity": f"{GAIN_OPACITY}"}
    return {"kind": "", "opacity": f"{scale.compute_opacity(loss):.3f}"}


def _make_legend(scale: ColorScale) -> dict[str, Any]:
    """Return the colors from the smallest to the largest loss, and their labels."""
    ratio = scale.high / scale.low
    shades = [scale.low * ratio ** (number / (SHADES - 1)) for number in range(SHADES)]
    return {
        "shades": [
            {"x": NAMES + 6.0 * number, "opacity": f"{scale.compute_opacity(shade):.3f}"}
            for number, shade in enumerate(shades)
        ],
        "end": NAMES + 6.0 * SHADES,
        "low": f"{scale.low:.2g}",
        "high": f"{scale.high:.2g}",
    }


def _make_table_row(layer: LayerSensitivity, losses: SensitivityMap) -> dict[str, Any]:
    values = [layer.find_loss(case) for case in losses.cases]
    return {
        "name": make_printable_line(layer.name),
        "cells": [{"text": "", "key": ""} if loss is None else _format_cell(loss) for loss in values],
    }


def _format_cell(loss: float) -> dict[str, str]:
    return {"text": f"{loss:.4g}", "key": f"{loss:.9g}"}
