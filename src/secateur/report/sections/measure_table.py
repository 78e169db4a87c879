"""Everything that was measured before and after."""

from __future__ import annotations

import math
from typing import Any

from secateur.report.quantities import format_amount
from secateur.results import Summary

__all__ = ["make_measure_table"]


def make_measure_table(summary: Summary) -> dict[str, Any] | None:
    """Return the rows of the table; ``None``: the verdict already shows them."""
    if len(summary.measures) < 2:
        return None
    rows = []
    for measure in summary.measures:
        longest = max((value for value in (measure.dense, measure.present) if 0 < value < math.inf), default=1.0)
        unit = "" if measure.unit == measure.name else measure.unit
        rows.append(
            {
                "name": measure.name,
                "dense": format_amount(measure.dense, unit),
                "present": format_amount(measure.present, unit),
                "ratio": "" if measure.ratio is None else f"{measure.ratio:.2f}",
                "dense_share": _compute_share(measure.dense, longest),
                "present_share": _compute_share(measure.present, longest),
            }
        )
    return {"rows": rows}


def _compute_share(value: float, longest: float) -> float:
    """Return the length of a bar; values that are negative or not finite have none."""
    return value / longest if 0 < value < math.inf else 0.0
