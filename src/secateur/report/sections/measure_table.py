"""Everything that was measured before and after."""

from __future__ import annotations

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
        longest = max(measure.dense, measure.present) or 1
        unit = "" if measure.unit == measure.name else measure.unit
        rows.append(
            {
                "name": measure.name,
                "dense": format_amount(measure.dense, unit),
                "present": format_amount(measure.present, unit),
                "ratio": "" if measure.ratio is None else f"{measure.ratio:.2f}",
                "dense_share": measure.dense / longest,
                "present_share": measure.present / longest,
            }
        )
    return {"rows": rows}
