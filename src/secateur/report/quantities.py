"""Format bytes, times and shares as readable text."""

from __future__ import annotations

import math

__all__ = ["format_amount", "format_change", "format_share"]

BYTE_UNITS = ("bytes", "kB", "MB", "GB", "TB")

MAX_WHOLE = 1e15
"""Larger numbers are shown with an exponent."""


def format_amount(value: float, unit: str) -> str:
    """Format a value with its unit.

    Examples:
        >>> format_amount(151_900_000, "bytes"), format_amount(0.0369, "seconds")
        ('151.9 MB', '36.9 ms')
        >>> format_amount(98624, "parameters"), format_amount(23.7, "")
        ('98,624 parameters', '23.7')
    """
    if unit == "bytes":
        return _format_bytes(value)
    if unit == "seconds":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"
    number = f"{value:,.0f}" if abs(value) < MAX_WHOLE and value == int(value) else f"{value:.4g}"
    return f"{number} {unit}" if unit else number


def _format_bytes(value: float) -> str:
    power = 0
    while value >= 999.95 and power < len(BYTE_UNITS) - 1:  # the next value would round to 1000.0
        value, power = value / 1000, power + 1
    return f"{value:.1f} {BYTE_UNITS[power]}" if power else f"{value:,.0f} bytes"


def format_share(share: float) -> str:
    """Format a share, in [0, 1].

    Examples:
        >>> format_share(0.5), format_share(0.99996), format_share(1)
        ('50.0%', '99.996%', '100%')
    """
    if share in (0, 1):
        return f"{share:.0%}"
    text = f"{share:.1%}"
    return f"{share:.3%}" if text in ("0.0%", "100.0%") else text


def format_change(dense: float, present: float, quantity: str) -> str:
    """Describe how much smaller, larger, faster or slower a model is than the dense one; "" unless both are positive.

    Examples:
        >>> format_change(200, 100, "size"), format_change(2.0, 1.0, "speed")
        ('50.0% smaller', '2.00× as fast')
    """
    if not 0 < dense < math.inf or not 0 < present < math.inf:
        return ""
    if quantity == "speed":
        return f"{dense / present:.2f}× as fast"
    if present == dense:
        return "unchanged"
    change = present / dense - 1
    if quantity == "size":
        return f"{format_share(abs(change))} {'smaller' if change < 0 else 'larger'}"
    return f"{change:+.1%}"
