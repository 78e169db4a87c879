"""The roofline: FLOP per second of each layer against its FLOP per byte.

The FLOP are those of the dense layer, so a sparse kernel that skips zeros can exceed the peak of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur._wording import make_printable_line
from secateur.report import charts
from secateur.report.charts import ChartAxis
from secateur.report.quantities import format_amount
from secateur.results import LayerRecord, Summary

__all__ = ["make_roofline"]


@dataclass(frozen=True, slots=True)
class TimedLayer:
    """A layer with its position.

    Attributes:
        name: Name of the layer.
        intensity: FLOP per byte, with the minimum number of bytes that a dense call moves.
        dense: FLOP per second when dense.
        sparse: The same FLOP per second with the fastest sparse kernel; ``None``: there is none.
        is_chosen: Whether the sparse kernel was chosen.
    """

    name: str
    intensity: float
    dense: float
    sparse: float | None
    is_chosen: bool


def make_roofline(summary: Summary) -> dict[str, Any] | None:
    """Return the layers that were timed, and the roof of the fastest dense ones."""
    layers = [timed for layer in summary.layers if (timed := _locate(layer)) is not None]
    if not layers:
        return None
    speeds = [speed for layer in layers for speed in (layer.dense, layer.sparse) if speed is not None]
    intensities = [layer.intensity for layer in layers]
    x = ChartAxis(min(intensities) / 2, 2 * max(intensities), charts.LEFT, charts.RIGHT, is_log=True)
    y = ChartAxis(min(speeds) / 2, 2 * max(speeds), charts.BOTTOM, charts.TOP, is_log=True)
    peak = max(layer.dense for layer in layers)
    bandwidth = max(layer.dense / layer.intensity for layer in layers)
    ridge = min(max(peak / bandwidth, x.low), x.high)
    start = max(x.low, y.low / bandwidth)
    roof = [(x.place(start), y.place(bandwidth * start)), (x.place(ridge), y.place(min(peak, bandwidth * ridge)))]
    if ridge < x.high:
        roof.append((x.place(x.high), y.place(peak)))
    return {
        "roof": " ".join(f"{left},{top}" for left, top in roof),
        "points": [_draw(layer, x, y) for layer in layers],
        "peak": f"{peak / 1e9:.3g}",
        "bandwidth": f"{bandwidth / 1e9:.3g}",
        "x_ticks": x.list_ticks(lambda intensity: format_amount(intensity, "")),
        "y_ticks": y.list_ticks(lambda speed: format_amount(speed / 1e9, "")),
        "charts": charts,
    }


def _locate(layer: LayerRecord) -> TimedLayer | None:
    """Return the position of a layer; ``None``: it was not timed."""
    if not (layer.dense_seconds and layer.rows and layer.weights and layer.call_bytes):
        return None
    work = 2.0 * layer.rows * layer.weights
    return TimedLayer(
        name=make_printable_line(layer.name),
        intensity=work / layer.call_bytes,
        dense=work / layer.dense_seconds,
        sparse=work / layer.sparse_seconds if layer.sparse_seconds else None,
        is_chosen=layer.kernel not in (None, "dense"),
    )


def _draw(layer: TimedLayer, x: ChartAxis, y: ChartAxis) -> dict[str, Any]:
    speed = "" if layer.sparse is None else f", {layer.sparse / 1e9:.3g} GFLOP/s sparse"
    return {
        "x": x.place(layer.intensity),
        "dense": y.place(layer.dense),
        "sparse": None if layer.sparse is None else y.place(layer.sparse),
        "is_chosen": layer.is_chosen,
        "title": f"{layer.name}: {layer.dense / 1e9:.3g} GFLOP/s dense{speed}",
    }
