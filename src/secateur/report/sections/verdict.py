"""The verdict: size, speed and quality before and after, in one line."""

from __future__ import annotations

from typing import Any

from secateur.report.quantities import format_amount, format_change
from secateur.results import Measure, Summary

__all__ = ["UNKNOWN", "make_verdict"]

UNKNOWN = "not measured"
"""Text that is shown for values that were not measured."""

QUANTITIES = ("size", "speed", "quality")


def make_verdict(summary: Summary) -> dict[str, Any] | None:
    """Return the verdict on each quantity, and all of them as one line; ``None`` for a search or a scan.

    Examples:
        >>> make_verdict(Summary(title="fc"))["line"]
        'Size: not measured. Speed: not measured. Quality: not measured.'
    """
    if not summary.measures and _is_analysis(summary):
        return None
    cards = [_describe(quantity, summary.measures) for quantity in QUANTITIES]
    sentences = [f"{card['name']}: {card['headline']}{_parenthesize(card['detail'])}." for card in cards]
    return {"line": " ".join(sentences), "cards": cards, "warnings": summary.warnings}


def _is_analysis(summary: Summary) -> bool:
    """Whether no model was pruned: the summary is of a search, or of a scan of the sensitivity of layers."""
    is_scan = summary.sensitivity is not None and all(layer.pattern is None for layer in summary.layers)
    return summary.search is not None or is_scan


def _describe(quantity: str, measures: tuple[Measure, ...]) -> dict[str, Any]:
    measure = next((measure for measure in measures if measure.quantity == quantity), None)
    name = quantity.capitalize()
    if measure is None:
        return {"name": name, "headline": UNKNOWN, "detail": "", "is_known": False}
    change = format_change(measure.dense, measure.present, quantity)
    values = f"{format_amount(measure.dense, measure.unit)} → {format_amount(measure.present, measure.unit)}"
    label = "" if measure.name == measure.unit else measure.name
    headline, *others = (values, label, change) if quantity == "quality" else (change, values, label)
    if not headline:
        headline, *others = values, label
    return {"name": name, "headline": headline, "detail": ", ".join(filter(None, others)), "is_known": True}


def _parenthesize(text: str) -> str:
    return f" ({text})" if text else ""
