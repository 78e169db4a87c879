"""The layers, as a table with bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from secateur._wording import format_shape, make_printable_line
from secateur.report.quantities import format_amount, format_share
from secateur.results import LayerRecord, Summary

__all__ = ["make_layer_table"]

Value = Callable[[LayerRecord], Any]


@dataclass(frozen=True, slots=True)
class ValueColumn:
    """A column of the table.

    Attributes:
        heading: Its heading.
        value: Returns the value of a layer; ``None``: it is unknown.
        format: Formats the value.
        bar: Scale of its bars: ``"share"`` from 0 to 1, ``"largest"`` up to the largest value, ``"time"`` up to the
            largest dense or sparse time; ``""``: no bars.
        kind: Layout of its cells: ``"number"``, aligned to the right; ``"long"``, wide enough for sentences; ``""``.
        hint: Tooltip of the heading.
    """

    heading: str
    value: Value
    format: Callable[[Any], str] = str
    bar: str = ""
    kind: str = ""
    hint: str = ""


def _format_milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _get_pruned_units(layer: LayerRecord) -> int | None:
    return layer.pruned_units if layer.units is not None and layer.units != layer.weights else None


def _describe_attributes(layer: LayerRecord) -> str | None:
    if not layer.attributes:
        return None
    values = (f"{name}={format_shape(v) if isinstance(v, tuple) else v}" for name, v in layer.attributes.items())
    return ", ".join(values)


COLUMNS = (
    ValueColumn("type", lambda layer: layer.kind),
    ValueColumn("shape", lambda layer: layer.shape, format_shape, kind="number"),
    ValueColumn("pattern", lambda layer: layer.pattern),
    ValueColumn("target", lambda layer: layer.target_sparsity, format_share, "share", kind="number"),
    ValueColumn("sparsity", lambda layer: layer.sparsity, format_share, "share", kind="number"),
    ValueColumn("units pruned", _get_pruned_units, "{:,}".format, kind="number"),
    ValueColumn(
        "lost output energy",
        lambda layer: layer.error,
        "{:.4f}".format,
        "largest",
        kind="number",
        hint="share of the layer's output energy lost on the calibration data",
    ),
    ValueColumn("dense ms", lambda layer: layer.dense_seconds, _format_milliseconds, "time", kind="number"),
    ValueColumn("sparse ms", lambda layer: layer.sparse_seconds, _format_milliseconds, "time", kind="number"),
    ValueColumn("speed-up", lambda layer: layer.speedup, "{:.2f}×".format, kind="number"),
    ValueColumn("kernel", lambda layer: layer.kernel, kind="long"),
    ValueColumn("reason", lambda layer: layer.kernel_reason, kind="long"),
    ValueColumn("stored", lambda layer: layer.stored_bytes, lambda size: format_amount(size, "bytes"), kind="number"),
    ValueColumn("packing", lambda layer: layer.packing),
    ValueColumn("changed", _describe_attributes, kind="long"),
    ValueColumn("note", lambda layer: layer.note, kind="long"),
)


def make_layer_table(summary: Summary) -> dict[str, Any] | None:
    """Return the columns that have data, and a row for each layer that is not listed as dense."""
    layers = [layer for layer in summary.layers if layer.dense_reason is None]
    columns = [column for column in COLUMNS if any(column.value(layer) is not None for layer in layers)]
    if not layers or not columns:
        return None
    tops = {column.heading: _find_top(column, layers) for column in columns}
    rows = [
        {
            "name": make_printable_line(layer.name),
            "sha256": layer.sha256,
            "is_dense": layer.kernel == "dense",
            "cells": [_make_cell(column, layer, tops[column.heading]) for column in columns],
        }
        for layer in layers
    ]
    return {"columns": columns, "rows": rows, "count": len(rows)}


def _find_top(column: ValueColumn, layers: Sequence[LayerRecord]) -> float:
    """Return the value of the longest bar."""
    if column.bar == "share":
        return 1.0
    if column.bar == "time":  # dense and sparse times have the same scale
        values = [time for layer in layers for time in (layer.dense_seconds, layer.sparse_seconds)]
    else:
        values = [column.value(layer) for layer in layers] if column.bar else []
    return max((value for value in values if value is not None and math.isfinite(value)), default=0.0)


def _make_cell(column: ValueColumn, layer: LayerRecord, top: float) -> dict[str, Any]:
    value = column.value(layer)
    if value is None:
        return {"text": "", "key": "", "bar": None, "kind": column.kind}
    key = math.prod(value) if isinstance(value, tuple) else value
    has_bar = bool(column.bar) and top > 0 and math.isfinite(value)
    return {
        "text": make_printable_line(column.format(value)),
        "key": f"{key:.9g}" if isinstance(key, int | float) else "",
        "bar": max(0.0, min(1.0, value / top)) if has_bar else None,
        "kind": column.kind,
    }
