"""The lost output energy of each layer, in the order of the model."""

from __future__ import annotations

import math
from typing import Any

from secateur._wording import make_printable_line
from secateur.report import charts
from secateur.report.charts import ChartAxis
from secateur.results import Summary

__all__ = ["make_error_profile"]

MIN_LAYERS = 8
"""Minimum number of layers with errors for a chart; for fewer, the table is enough."""


def make_error_profile(summary: Summary) -> dict[str, Any] | None:
    """Return a stem for each layer whose error is known."""
    known = [
        (layer.name, layer.error) for layer in summary.layers if layer.error is not None and math.isfinite(layer.error)
    ]
    top = max((error for _, error in known), default=0.0)
    if len(known) < MIN_LAYERS or top <= 0:
        return None
    x = ChartAxis(0.0, len(known) + 1.0, charts.LEFT, charts.RIGHT)
    y = ChartAxis(0.0, 1.05 * top, charts.BOTTOM, charts.TOP)
    return {
        "stems": [
            {"x": x.place(number), "y": y.place(error), "title": f"{make_printable_line(name)}: {error:.4f}"}
            for number, (name, error) in enumerate(known, start=1)
        ],
        "x_ticks": [tick for tick in x.list_ticks("{:.0f}".format) if tick.label != "0"],
        "y_ticks": y.list_ticks("{:.3g}".format),
        "charts": charts,
    }
