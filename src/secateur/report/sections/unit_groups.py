"""Groups of channels and heads: how many are left."""

from __future__ import annotations

from typing import Any

from secateur._wording import make_printable_line
from secateur.results import Summary

__all__ = ["make_unit_groups"]


def make_unit_groups(summary: Summary) -> dict[str, Any] | None:
    """Return a row for each group of units."""
    if not summary.groups:
        return None
    rows = []
    for group in summary.groups:
        left = None if group.gone is None else group.units - group.gone
        rows.append(
            {
                "name": make_printable_line(group.name),
                "kind": group.kind,
                "units": group.units,
                "left": left,
                "share": None if left is None or not group.units else left / group.units,
                "reason": make_printable_line(group.reason),
            }
        )
    return {
        "rows": rows,
        "count": len(rows),
        "has_counts": any(row["left"] is not None for row in rows),
        "has_reasons": any(row["reason"] for row in rows),
    }
