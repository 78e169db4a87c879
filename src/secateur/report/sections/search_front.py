"""The trials of a search: quality against cost, with the Pareto front."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from secateur._wording import make_printable_line
from secateur.report import charts
from secateur.report.charts import ChartAxis
from secateur.report.quantities import format_amount
from secateur.results import SearchSummary, Summary, TrialPoint

__all__ = ["make_search_front"]

MARGIN = 0.06
"""Share of an axis that stays free at each end."""

UNITS = {"bytes as saved": "bytes", "seconds per call": "seconds"}
"""Costs whose unit is part of the labels of ticks; others are counts."""

OUTLIERS = 3.0
"""Trials further beyond the front than this multiple of its height are drawn at the edge of the chart."""


def make_search_front(summary: Summary) -> dict[str, Any] | None:
    """Return the chart and the table of the trials; ``None``: there was no search."""
    search = summary.search
    if search is None:
        return None
    front = sorted((point for point in search.trials if point.is_on_front), key=_get_cost)
    measured = [point for point in search.trials if point.cost is not None and point.quality is not None]
    return {
        "chart": _draw(search, front, measured) if measured else None,
        "rows": [_make_row(point, search) for point in search.trials],
        "has_sparsity": any(point.sparsity is not None for point in search.trials),
        "objective": make_printable_line(search.objective),
        "cost": make_printable_line(search.cost),
        "direction": search.direction,
        "warnings": summary.warnings,
        "count": len(search.trials),
        "charts": charts,
    }


def _draw(search: SearchSummary, front: list[TrialPoint], measured: list[TrialPoint]) -> dict[str, Any]:
    x = _make_axis([search.dense_cost, *map(_get_cost, measured)], charts.LEFT, charts.RIGHT)
    y = _make_axis(_list_visible_qualities(search, front, measured), charts.BOTTOM, charts.TOP)

    def place(point: TrialPoint) -> tuple[float, float]:
        quality = min(max(_get_quality(point), y.low), y.high)
        return x.place(_get_cost(point)), y.place(quality)

    corners = [place(point) for point in front]
    path = f"M{corners[0][0]} {corners[0][1]}" + "".join(f"H{left}V{top}" for left, top in corners[1:])
    points = [
        {"x": place(point)[0], "y": place(point)[1], "is_on_front": point.is_on_front, "title": _describe(point)}
        for point in sorted(measured, key=lambda point: point.is_on_front)  # the front is drawn last, on top
    ]
    dense_quality = min(max(search.dense_quality, y.low), y.high)
    return {
        "path": path,
        "points": points,
        "dense": {"x": x.place(search.dense_cost), "y": y.place(dense_quality)},
        "dense_title": f"dense: {search.dense_quality:.5g} at {search.dense_cost:,.6g}",
        "x_ticks": x.list_ticks(partial(format_amount, unit=UNITS.get(search.cost, ""))),
        "y_ticks": y.list_ticks(partial(format_amount, unit="")),
    }


def _list_visible_qualities(search: SearchSummary, front: list[TrialPoint], measured: list[TrialPoint]) -> list[float]:
    """Return the qualities that the chart must span: without those far worse than the front."""
    values = [search.dense_quality, *map(_get_quality, front)]
    low, high = min(values), max(values)
    reach = OUTLIERS * (high - low)
    return values + [value for point in measured if low - reach <= (value := _get_quality(point)) <= high + reach]


def _make_axis(values: list[float], start: float, stop: float) -> ChartAxis:
    low, high = min(values), max(values)
    margin = MARGIN * (high - low) or MARGIN * abs(high) or 1.0
    return ChartAxis(low - margin, high + margin, start, stop)


def _make_row(point: TrialPoint, search: SearchSummary) -> dict[str, Any]:
    share = None if point.cost is None or not search.dense_cost else point.cost / search.dense_cost
    return {
        "number": point.number,
        "state": "front" if point.is_on_front else point.state,
        "quality": point.quality,
        "cost": point.cost,
        "share": None if share is None or not math.isfinite(share) else min(1.0, max(0.0, share)),
        "sparsity": point.sparsity,
        "settings": make_printable_line(point.settings),
        "is_on_front": point.is_on_front,
    }


def _describe(point: TrialPoint) -> str:
    return make_printable_line(f"trial {point.number}: {point.quality:.5g} at {point.cost:,.6g}; {point.settings}")


def _get_cost(point: TrialPoint) -> float:
    assert point.cost is not None
    return point.cost


def _get_quality(point: TrialPoint) -> float:
    assert point.quality is not None
    return point.quality
