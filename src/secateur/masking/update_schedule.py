"""The schedule of a run: at which steps masks are updated, and to which sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from secateur.config import PruningConfig
from secateur.errors import ConfigError
from secateur.schedules import get_schedule

__all__ = ["UpdateSchedule"]


@dataclass(frozen=True, slots=True)
class UpdateSchedule:
    """The steps at which the masks of a run are updated. Step 0 is before the first optimizer step.

    Attributes:
        config: The configuration of the run.
        initial: Sparsity before the first update.
        target: Sparsity after the last update.
        parts_until: See `secateur.masking.run_options.RunOptions`.
        request: See `secateur.masking.run_options.RunObserver.find_sparsity`.

    Raises:
        ConfigError: The model is already sparser than the target.

    Examples:
        >>> config = PruningConfig(start_step=10, end_step=30, sparsity_decay_type="linear")
        >>> line = UpdateSchedule(config, 0.0, 0.8)
        >>> [(step, line.sparsity(step)) for step in range(40) if line.is_update(step)]
        [(10, 0.0), (20, 0.4), (30, 0.8)]
    """

    config: PruningConfig
    initial: float
    target: float
    parts_until: int | None = None
    request: Callable[[int, float, float], float | None] | None = None

    def __post_init__(self) -> None:
        if self.initial > self.target:
            raise ConfigError(
                f"The model starts with {self.initial:.4%} of its units zero, more than target_sparsity={self.target}. "
                f"Raise the target, or keep only these zeros with kind='pattern_lock'."
            )

    def is_update(self, step: int) -> bool:
        """Whether masks are updated after `step` steps. They always are after the last step."""
        start, end = self.config.start_step, self.end
        if self.config.has_regrowth and step == 0:  # prunes to the target before the first step
            return True
        return start <= step <= end and ((step - start) % self.config.pruning_frequency == 0 or step == end)

    @property
    def end(self) -> int:
        """Step of the last update."""
        return self.config.last_step

    def next_update(self, step: int) -> int:
        """Return the step of the first update after `step`, which must be before the end."""
        if step < self.config.start_step:
            return self.config.start_step
        updates = (step - self.config.start_step) // self.config.pruning_frequency + 1
        return min(self.config.start_step + updates * self.config.pruning_frequency, self.end)

    def last_update(self, step: int) -> int | None:
        """Return the step of the last update up to `step`, or ``None`` if there was none."""
        start = self.config.start_step
        if step < start:
            return 0 if self.config.has_regrowth else None
        return self.end if step >= self.end else step - (step - start) % self.config.pruning_frequency

    @property
    def last_change(self) -> int:
        """Step after which masks no longer change."""
        if not self._is_delayed:
            return self.end
        return next(step for step in count(self.end) if self.find_scheduled_update(step) is None)

    def find_scheduled_update(self, step: int) -> int | None:
        """Return the step of the update whose units are being pruned in parts after `step`; ``None``: there is none."""
        last = self.last_update(step)
        if self.config.kind != "progressive" or last is None:
            return None
        if self._is_delayed:
            return last if self.count_parts(step) < self.config.progressive_steps else None
        return self.next_update(last) if step < self.end else None

    def find_kept_update(self, step: int) -> int | None:
        """Return the step of the last update whose units are whole after `step`; ``None``: there is none."""
        last = self.last_update(step)
        is_pending = self._is_delayed and last is not None and self.find_scheduled_update(step) == last
        return self.last_update(last - 1) if is_pending and last is not None else last

    def count_parts(self, step: int) -> int:
        """Return how many of the `progressive_steps` parts of the scheduled weights are pruned after `step`."""
        parts, last = self.config.progressive_steps, self.last_update(step)
        if self.config.kind != "progressive" or last is None:
            return 0
        if self._is_delayed:
            return self._count_delayed_parts(step, last)
        if step >= self.end:
            return 0
        length = self.next_update(last) - last
        return max((part for part in range(1, parts) if 1 <= round(part * length / parts) <= step - last), default=0)

    def find_part(self, step: int) -> tuple[int, int] | None:
        """Return ``(part, parts)`` if scheduled weights of this part are pruned after `step`, else ``None``."""
        part, parts = self.count_parts(step), self.config.progressive_steps
        is_first = self._is_delayed and self.is_update(step)
        return (part, parts) if part and (is_first or part > self.count_parts(step - 1)) else None

    @property
    def _is_delayed(self) -> bool:
        return self.parts_until is not None and self.config.kind == "progressive"

    def _count_delayed_parts(self, step: int, last: int) -> int:
        """Count the parts since the update at `last`. The steps of parts are counted from the start, not from it."""
        parts, frequency = self.config.progressive_steps, self.config.pruning_frequency
        if self.parts_until is None or step > max(self.parts_until, self.end):
            return parts
        interval = frequency if frequency < parts else frequency // parts
        latest = max(last, step - (step - self.config.start_step) % interval)
        part = (latest - last) // interval + 1
        return part if part < min(frequency, parts) else parts

    def sums_gradients(self, step: Any) -> Any:
        """Whether regrowth reads the gradients of step number `step`, from 1: those of the steps between two updates.

        Args:
            step: An integer, or a tensor of a compiled step.
        """
        return (step > self.config.start_step - self.config.pruning_frequency) & (step <= self.end)

    def sparsity(self, step: int) -> float:
        """Return the requested sparsity after `step` steps, which is at most the target.

        Raises:
            ConfigError: The schedule returned a value outside [0, 1].
        """
        if self.config.has_regrowth:
            return self.target
        requested = None if self.request is None else self.request(step, self.initial, self.target)
        if requested is None and step >= self.end:
            return self.target
        progress = max(0.0, (step - self.config.start_step) / max(1, self.end - self.config.start_step))
        if requested is None:
            requested = get_schedule(self.config.sparsity_decay_type)(self.initial, self.target, progress)
        if not 0.0 <= requested <= 1.0:
            name = self.config.sparsity_decay_type if self.request is None else getattr(self.request, "__self__", None)
            raise ConfigError(
                f"A schedule must return a sparsity in [0, 1]; {name!r} returned {requested!r} for "
                f"initial={self.initial}, target={self.target}, progress={progress}."
            )
        return min(requested, self.target)

    def find_regrown_share(self, step: int) -> float:
        """Return the share of the kept units of each layer that regrowth exchanges after `step` steps.

        Source:
            Evci et al., "Rigging the Lottery: Making All Tickets Winners", arXiv:1911.11134, section 3 (2).

        Examples:
            >>> config = PruningConfig(kind="rigl", end_step=100, regrow_fraction=0.4)
            >>> line = UpdateSchedule(config, 0.0, 0.9)
            >>> [round(line.find_regrown_share(step), 3) for step in (0, 25, 50, 100)]
            [0.4, 0.341, 0.2, 0.0]
        """
        progress = min(1.0, step / max(1, self.end))
        return self.config.regrow_fraction / 2 * (1 + math.cos(math.pi * progress))
