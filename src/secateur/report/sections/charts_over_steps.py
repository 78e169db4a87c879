"""The share of units pruned, over the steps of a training run."""

from __future__ import annotations

from typing import Any

from secateur.report import charts
from secateur.report.charts import ChartAxis
from secateur.results import Summary

__all__ = ["make_history"]


def make_history(summary: Summary) -> dict[str, Any] | None:
    """Return a line with a point for each update of the masks; ``None`` if there are fewer than two."""
    if len(summary.history) < 2:
        return None
    first, last = summary.history[0][0], summary.history[-1][0]
    end = max(last, summary.last_step or 0, first + charts.TICKS)  # so that ticks are whole steps
    top = min(1.0, 1.1 * max(share for _, share in summary.history)) or 1.0
    steps = ChartAxis(first, end, charts.LEFT, charts.RIGHT)
    shares = ChartAxis(0.0, top, charts.BOTTOM, charts.TOP)
    points = [
        {"x": steps.place(step), "y": shares.place(share), "title": f"step {step:,}: {share:.2%}"}
        for step, share in summary.history
    ]
    path = f"M{points[0]['x']} {points[0]['y']}" + "".join(f"H{point['x']}V{point['y']}" for point in points[1:])
    return {
        "path": path,
        "points": points,
        "first": first,
        "x_ticks": steps.list_ticks("{:,.0f}".format),
        "y_ticks": shares.list_ticks(lambda share: f"{100 * share:.3g}%"),
        "end": steps.place(summary.last_step) if summary.last_step and summary.last_step >= first else None,
        "charts": charts,
    }
