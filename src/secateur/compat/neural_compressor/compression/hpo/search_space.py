"""Define the values that a hyperparameter can take."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from secateur.errors import ConfigError

__all__ = ["ContinuousSearchSpace", "DiscreteSearchSpace", "SearchSpace"]

DECIMALS = 10
"""Decimal places of the values of a discrete space with bounds, so that steps of 0.1 give 0.3."""


class SearchSpace:
    """The values that a hyperparameter can take.

    Creates a `DiscreteSearchSpace` if `interval` or `value` is given, otherwise a `ContinuousSearchSpace`.

    Args:
        bound: Start and end of the range; the end is excluded.
        interval: Distance between the values of a discrete space, in units of the hyperparameter.
        value: The values of a discrete space.
        type: ``"discrete"`` or ``"continuous"``, to override the choice above.

    Attributes:
        total_num: Number of values; infinity for a continuous space.

    Raises:
        ConfigError: There are neither bounds nor values, the range is empty, or the type is unknown.

    Examples:
        >>> epochs = SearchSpace(bound=(2, 8), interval=2)
        >>> epochs.get_all()
        [2, 4, 6]
        >>> 0.001 <= SearchSpace((0.001, 0.01)).get_value() < 0.01
        True
    """

    total_num: int | float

    def __new__(
        cls,
        bound: Sequence[float] | None = None,  # noqa: ARG004 - also passed to __init__
        interval: float | None = None,
        value: Sequence[Any] | None = None,
        type: str | None = None,  # noqa: A002 - part of the interface
    ) -> SearchSpace:
        """Create an instance of the subclass for the type."""
        if cls is not SearchSpace:
            return super().__new__(cls)
        name = type or ("continuous" if interval is None and value is None else "discrete")
        kinds = {"continuous": ContinuousSearchSpace, "discrete": DiscreteSearchSpace}
        if name not in kinds:
            raise ConfigError(f"type must be 'discrete' or 'continuous', found {type!r}.")
        return super().__new__(kinds[name])

    def __init__(
        self,
        bound: Sequence[float] | None = None,
        interval: float | None = None,
        value: Sequence[Any] | None = None,
        type: str | None = None,  # noqa: A002, ARG002 - part of the interface
    ) -> None:
        if bound is not None and (len(bound) != 2 or not bound[0] < bound[1]):
            raise ConfigError(f"bound must be (start, end) with start < end, found {bound!r}.")
        self.bound = bound
        self.interval = interval
        self.value = value

    def get_value(self) -> Any:
        """Return a random value, drawn with Python's `random` module."""
        return self.sample(random)

    def sample(self, generator: Any) -> Any:
        """Draw a random value.

        Args:
            generator: The module `random`, or a ``random.Random``.
        """
        raise NotImplementedError

    def encode(self, value: Any) -> float:
        """Convert a value to a number from 0 to 1, its relative position in the space."""
        raise NotImplementedError


class DiscreteSearchSpace(SearchSpace):
    """A finite number of values.

    Args:
        bound: Start and end of the range; the end is excluded.
        interval: Distance between the values; by default 1 if both bounds are whole numbers, otherwise 0.01.
        value: The values, instead of a range.
        type: Ignored.

    Raises:
        ConfigError: There are neither bounds nor values, or the space is empty.

    Examples:
        >>> space = DiscreteSearchSpace(value=["exp", "cubic"])
        >>> space.get_value(1), space.index("exp")
        ('cubic', 0)
    """

    total_num: int

    def __init__(
        self,
        bound: Sequence[float] | None = None,
        interval: float | None = None,
        value: Sequence[Any] | None = None,
        type: str | None = None,  # noqa: A002 - part of the interface
    ) -> None:
        if bound is not None and interval is None:
            interval = 1 if all(isinstance(limit, int) for limit in bound) else 0.01
        super().__init__(bound, interval, value, type)
        if value is not None:
            self._values = list(value)
        elif bound is None or interval is None or interval <= 0:
            raise ConfigError(
                f"A discrete space needs value, or bound and interval > 0, found {bound!r}, {interval!r}."
            )
        else:
            count = int(round((bound[1] - bound[0]) / interval, DECIMALS))
            self._values = [round(bound[0] + index * interval, DECIMALS) for index in range(count)]
        if not self._values:
            raise ConfigError("A discrete space must contain at least one value, found none.")
        self.total_num = len(self._values)

    def get_value(self, idx: int | None = None) -> Any:
        """Return the value at an index, all values if it is negative, or a random value without one."""
        if idx is None:
            return super().get_value()
        if not isinstance(idx, int):
            raise ConfigError(f"idx must be a whole number, found {idx!r}.")
        return self.get_all() if idx < 0 else self.get_nth_value(idx)

    def get_random_value(self) -> Any:
        """Return a random value."""
        return super().get_value()

    def get_nth_value(self, idx: int) -> Any:
        """Return the value at an index."""
        return self._values[idx]

    def get_all(self) -> list[Any]:
        """Return all values, in order."""
        return list(self._values)

    def index(self, value: Any) -> int:
        """Return the index of a value; between two values of a range, the lower index.

        Raises:
            ConfigError: The value is not in the space.
        """
        if self.value is not None and value in self._values:
            return self._values.index(value)
        if self.value is None and self.bound is not None and self.interval is not None:
            index = int(round((value - self.bound[0]) / self.interval, DECIMALS))
            if value >= self.bound[0] and index < self.total_num:
                return index
        raise ConfigError(f"The space does not contain {value!r}. It has {self.total_num} values.")

    def sample(self, generator: Any) -> Any:
        """Draw a value; all are equally likely."""
        return generator.choice(self._values)

    def encode(self, value: Any) -> float:
        """Convert a value to its index divided by the last index."""
        return self.index(value) / max(self.total_num - 1, 1)


class ContinuousSearchSpace(SearchSpace):
    """All numbers in a range.

    Args:
        bound: Start and end of the range.
        interval: Ignored.
        value: Ignored.
        type: Ignored.

    Raises:
        ConfigError: There are no bounds, or the range is empty.

    Examples:
        >>> ContinuousSearchSpace((1.0, 3.0)).encode(2.0)
        0.5
    """

    total_num: float

    def __init__(
        self,
        bound: Sequence[float] | None = None,
        interval: float | None = None,
        value: Sequence[Any] | None = None,
        type: str | None = None,  # noqa: A002 - part of the interface
    ) -> None:
        super().__init__(bound, interval, value, type)
        if bound is None:
            raise ConfigError("A continuous space needs bound=(start, end), found None.")
        self._start, self._end = bound
        self.total_num = float("inf")

    def sample(self, generator: Any) -> float:
        """Draw a number; all are equally likely."""
        number: float = generator.uniform(self._start, self._end)
        return number

    def encode(self, value: Any) -> float:
        """Convert a number to its relative position in the range."""
        return float((value - self._start) / (self._end - self._start))
