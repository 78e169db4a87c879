"""The layers that stay dense, by reason."""

from __future__ import annotations

from typing import Any

from secateur._wording import make_printable_line
from secateur.results import Summary

__all__ = ["make_dense_layers"]


def make_dense_layers(summary: Summary) -> dict[str, Any] | None:
    """Return reason → layers."""
    if not summary.dense:
        return None
    layers: dict[str, list[str]] = {}
    for name, reason in summary.dense.items():
        layers.setdefault(make_printable_line(reason), []).append(make_printable_line(name))
    return {"reasons": layers, "count": len(summary.dense)}
