"""How many steps to take, and how large: for a number of steps, or for as long as there is time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from secateur._wording import format_count
from secateur.distributed.pytorch.team import Team

__all__ = ["Pace"]


class Pace:
    """Decides before each step whether there is time for it, and its share of the learning rate.

    The share decays linearly to 0 over the steps or over the time, whichever ends first.

    Args:
        steps: Number of steps; ``None``: no limit.
        seconds: Time limit, which can be negative if the time is over; ``None``: no limit.
        team: The processes that take the steps together. The clock of rank 0 decides.
        clock: Returns a time in seconds.

    Attributes:
        taken: Number of steps that were begun.

    Examples:
        >>> pace = Pace(steps=4)
        >>> [pace.begin_step() for _ in range(5)]
        [1.0, 0.75, 0.5, 0.25, None]
        >>> pace.describe_end()
        '4 steps'
    """

    def __init__(
        self,
        *,
        steps: int | None = None,
        seconds: float | None = None,
        team: Team | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.taken = 0
        self._steps = steps
        self._seconds = seconds
        self._team = team or Team()
        self._clock = clock
        self._start = clock()
        self._elapsed = 0.0
        self._is_late = False

    def begin_step(self) -> float | None:
        """Return the next step's share of the learning rate, in (0, 1]; ``None`` if no step is left."""
        left = self._measure_left()
        if left <= 0:
            return None
        self.taken += 1
        return left

    def _measure_left(self) -> float:
        """Return the share of the steps, or of the time, that is left; 0 if another step would take too long."""
        left = 1.0 if self._steps is None else 1 - self.taken / self._steps
        if self._seconds is None:
            return left
        self._elapsed = self._team.share(self._clock() - self._start)
        mean = self._elapsed / self.taken if self.taken else 0.0
        self._is_late = left > 0 and self._elapsed + mean >= self._seconds
        return 0.0 if self._is_late else min(left, 1 - self._elapsed / self._seconds)

    def estimate_total(self) -> int | None:
        """Return the number of steps in all, estimated from those so far if time is limited; ``None``: unknown."""
        if self._seconds is None or not self._elapsed:
            return self._steps
        # The elapsed time was measured before the step that was begun last.
        expected = math.floor(self._seconds * (self.taken - 1) / self._elapsed)
        return max(self.taken, expected if self._steps is None else min(expected, self._steps))

    def estimate_seconds_left(self) -> float | None:
        """Return the time that is left; ``None``: unknown."""
        elapsed = self._clock() - self._start
        total = self.estimate_total()
        by_steps = math.inf if total is None or not self.taken else (total - self.taken) * elapsed / self.taken
        by_time = math.inf if self._seconds is None else max(0.0, self._seconds - elapsed)
        left = min(by_steps, by_time)
        return None if math.isinf(left) else left

    def describe_end(self) -> str:
        """Return how many steps were taken, and that time ended them if it did."""
        end = ", until the time was over" if self._is_late else ""
        return f"{format_count(self.taken, 'step')}{end}"
