"""The budget of a slimmed model: how many parameters, FLOPs, bytes, or how much time may remain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from secateur._wording import format_list, format_value, suggest_name
from secateur.errors import ConfigError, UnknownNameError
from secateur.results import Measure, Record

__all__ = ["QUANTITIES", "BudgetResult", "SlimBudget"]

QUANTITIES = {
    "parameters": "parameters",
    "flops": "FLOPs",
    "bytes": "bytes",
    "latency": "seconds",
}
"""Quantity that a budget can limit → its unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimBudget:
    """How much of a model may remain.

    Attributes:
        quantity: ``"parameters"``, ``"flops"``, ``"bytes"`` or ``"latency"``.
        value: Below 1, the share of the dense model. Above 1, an absolute number of parameters, FLOPs or bytes. A
            latency is always a share, because it is compared with that of the dense model on the same machine.

    Raises:
        UnknownNameError: The quantity is unknown.
        ConfigError: The value is out of its range.

    Examples:
        >>> SlimBudget.parse({"parameters": 0.75}).compute_target(1000)
        750.0
        >>> SlimBudget.parse({"bytes": 4e6})
        SlimBudget(quantity='bytes', value=4000000.0)
    """

    quantity: str
    value: float

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise UnknownNameError(
                f"budget: unknown quantity {format_value(self.quantity)}."
                f"{suggest_name(str(self.quantity), QUANTITIES)} Known: {format_list(map(repr, QUANTITIES))}."
            )
        value = self.value
        if not _is_number(value) or value <= 0 or value == 1 or (value > 1 and self.quantity == "latency"):
            absolute = "" if self.quantity == "latency" else f", or an absolute number of {self.unit} above 1"
            raise ConfigError(
                f"budget: {self.quantity!r} must be the share of the dense model that may remain, above 0 and below "
                f"1{absolute}, found {format_value(value)}."
            )
        object.__setattr__(self, "value", float(value))

    @classmethod
    def parse(cls, budget: Mapping[str, float] | SlimBudget) -> SlimBudget:
        """Read a budget as `secateur.slim` accepts it.

        Args:
            budget: A mapping with one key, the quantity, or a budget.

        Raises:
            UnknownNameError: The quantity is unknown.
            ConfigError: The budget is not a mapping with exactly one key, or its value is out of its range.
        """
        if isinstance(budget, SlimBudget):
            return budget
        parsed: Any = budget
        if not isinstance(parsed, Mapping) or len(parsed) != 1:
            raise ConfigError(
                f"budget must be a mapping with exactly one of the keys {format_list(map(repr, QUANTITIES))}, such as "
                f'{{"parameters": 0.8}}, found {format_value(budget)}.'
            )
        ((quantity, value),) = parsed.items()
        return cls(quantity=quantity, value=value)

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of the dense model's."""
        return self.value < 1

    @property
    def unit(self) -> str:
        """The unit of the quantity."""
        return QUANTITIES[self.quantity]

    def compute_target(self, dense: float) -> float:
        """Return how much may remain of a dense model that needs `dense`, in the unit of the quantity."""
        return self.value * dense if self.is_share else self.value

    def __str__(self) -> str:
        return f"{self.quantity}={self.value:.6g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetResult(Record):
    """How a budget was met.

    Attributes:
        quantity: The limited quantity; a key of `QUANTITIES`.
        dense: The value of the dense model, in the unit of the quantity.
        target: The value that the budget allows.
        predicted: The estimate for the chosen widths before they were measured.
        measured: The measured value of the model with these widths.
    """

    computed: ClassVar[tuple[str, ...]] = ("share",)

    quantity: str
    dense: float
    target: float
    predicted: float
    measured: float

    @property
    def share(self) -> float:
        """The measured value, as a share of that of the dense model."""
        return self.measured / self.dense

    def measure(self) -> Measure:
        """Return what the budget limits, of the dense model and as it was measured."""
        return Measure(
            quantity="speed" if self.quantity == "latency" else "size" if self.quantity == "bytes" else "other",
            name="latency" if self.quantity == "latency" else self.quantity,
            unit=QUANTITIES[self.quantity],
            dense=self.dense,
            present=self.measured,
        )

    def __str__(self) -> str:
        target, predicted = self.target / self.dense, self.predicted / self.dense
        text = f"Budget: {self.quantity} at {target:.1%} of the dense model's {self._format(self.dense)}"
        if self.predicted == self.measured:
            return f"{text}, met at {self.share:.1%}."
        return f"{text}, predicted {predicted:.1%}, measured {self.share:.1%}."

    def _format(self, amount: float) -> str:
        return f"{amount * 1e3:.3g} ms" if self.quantity == "latency" else f"{amount:,.0f}"


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
