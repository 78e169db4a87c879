"""Compute the coordinates of charts, which templates draw as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["BOTTOM", "HEIGHT", "LEFT", "RIGHT", "TICKS", "TOP", "WIDTH", "ChartAxis", "Tick", "choose_ticks"]

WIDTH, HEIGHT = 720.0, 300.0
"""Size of a chart, in units of its view box."""

LEFT, RIGHT, TOP, BOTTOM = 64.0, 704.0, 16.0, 252.0
"""The edges of its plotting area."""

TICKS = 5
"""Target number of intervals between ticks."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A labeled position on an axis.

    Attributes:
        position: Its position, in units of the view box.
        label: Its text.
    """

    position: float
    label: str


@dataclass(frozen=True, slots=True)
class ChartAxis:
    """An axis that maps values to positions.

    Attributes:
        low: Value at `start`.
        high: Value at `stop`.
        start: Position of the smallest value.
        stop: Position of the largest value.
        is_log: Whether the scale is logarithmic.
    """

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value.

        Examples:
            >>> ChartAxis(0, 10, 100, 200).place(5), ChartAxis(1, 100, 100, 200, True).place(10)
            (150.0, 150.0)
        """
        scale = math.log if self.is_log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return round(self.start + share * (self.stop - self.start), 1)

    def list_ticks(self, format_value: Callable[[float], str]) -> list[Tick]:
        """Return the ticks within the axis."""
        if not self.is_log:
            values = choose_ticks(self.low, self.high)
        else:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
            values = [value for value in values if self.low <= value <= self.high]
            if len(values) > 2 * TICKS:
                values = [value for value in values if math.log10(value).is_integer()]
        return [Tick(self.place(value), format_value(value)) for value in values]


def choose_ticks(low: float, high: float) -> list[float]:
    """Choose round tick values between two bounds.

    Examples:
        >>> choose_ticks(0, 47)
        [0.0, 10.0, 20.0, 30.0, 40.0]
    """
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]
