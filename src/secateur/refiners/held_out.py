"""Keep the values that are best on sequences that are held out from tuning."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from secateur._wording import format_count
from secateur.refiners.tuning import MaskedAdam

__all__ = ["BestValues", "split_held_out"]

PATIENCE = 4
"""Number of measurements in a row without a lower loss after which tuning stops."""


class BestValues:
    """Keeps the tuned values with the lowest loss on held-out sequences.

    Args:
        optimizer: Updates the values.
        measure_loss: Measures the loss of the current values on the held-out sequences; ``None``: nothing is held out,
            so that the last values are kept.
        interval: Steps between two measurements.
    """

    def __init__(self, optimizer: MaskedAdam, measure_loss: Callable[[], float] | None, interval: int) -> None:
        self._optimizer = optimizer
        self._measure_loss = measure_loss
        self._interval = interval
        self._values: list[torch.Tensor] = []
        self._losses: list[float] = []
        self._steps: list[int] = []

    def may_improve(self, step: int) -> bool:
        """Measure the loss if it is due after a number of steps, and return whether it was falling recently."""
        if self._measure_loss is None:
            return True
        if step % self._interval == 0:
            self._measure(self._measure_loss, step)
        return not self._has_stopped_falling()

    def restore(self, step: int) -> str:
        """Restore the best values after the last step, and return what was measured, for the report."""
        if self._measure_loss is None:
            return ""
        if self._steps[-1:] != [step]:
            self._measure(self._measure_loss, step)
        best = self._find_best()
        self._optimizer.load_values(self._values)
        reason = "until the held-out loss stopped falling: " if self._has_stopped_falling() else "held-out loss "
        after = "" if best == len(self._losses) - 1 else f" after {format_count(self._steps[best], 'step')}"
        return f"{reason}{self._losses[0]:.4g} → {self._losses[best]:.4g}{after}"

    def _measure(self, measure_loss: Callable[[], float], step: int) -> None:
        self._losses.append(measure_loss())
        self._steps.append(step)
        if self._find_best() == len(self._losses) - 1:
            self._values = self._optimizer.save_values()

    def _has_stopped_falling(self) -> bool:
        return len(self._losses) - 1 - self._find_best() >= PATIENCE

    def _find_best(self) -> int:
        """Return the index of the lowest loss; one that is not a number is the highest."""
        losses = [math.inf if math.isnan(loss) else loss for loss in self._losses]
        return losses.index(min(losses))


def split_held_out(total: int, share: float) -> tuple[list[int], list[int]]:
    """Split batch numbers into those to tune on, and evenly spaced ones that are held out.

    Examples:
        >>> split_held_out(8, 0.25)
        ([0, 1, 2, 4, 5, 6], [3, 7])
    """
    count = min(round(share * total), total - 1)
    held_out = [(position + 1) * total // count - 1 for position in range(count)]
    return [number for number in range(total) if number not in held_out], held_out
