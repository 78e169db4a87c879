"""The schedule of a run: at which steps masks are updated, and to which sparsity."""

from __future__ import annotations

from dataclasses import dataclass

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

    def __post_init__(self) -> None:
        if self.initial > self.target:
            raise ConfigError(
                f"The model starts with {self.initial:.4%} of its units zero, more than target_sparsity={self.target}. "
                f"Raise the target, or keep only these zeros with kind='pattern_lock'."
            )

    def is_update(self, step: int) -> bool:
        """Whether masks are updated after `step` steps. They always are after the last step."""
        start, end = self.config.start_step, self.end
        return start <= step <= end and ((step - start) % self.config.pruning_frequency == 0 or step == end)

    @property
    def end(self) -> int:
        """Step of the last update."""
        return self.config.last_step

    def next_update(self, step: int) -> int:
        """Return the step of the first update after `step`, which must be before the end."""
        if step < self.config.start_step:
            return self.config.start_step
        count = (step - self.config.start_step) // self.config.pruning_frequency + 1
        return min(self.config.start_step + count * self.config.pruning_frequency, self.end)

    def last_update(self, step: int) -> int | None:
        """Return the step of the last update up to `step`, or ``None`` if there was none."""
        start = self.config.start_step
        if step < start:
            return None
        return self.end if step >= self.end else step - (step - start) % self.config.pruning_frequency

    def sparsity(self, step: int) -> float:
        """Return the requested sparsity after `step` steps, which is at most the target.

        Raises:
            ConfigError: The schedule returned a value outside [0, 1].
        """
        if step >= self.end:
            return self.target
        progress = max(0.0, (step - self.config.start_step) / (self.end - self.config.start_step))
        sparsity = get_schedule(self.config.sparsity_decay_type)(self.initial, self.target, progress)
        if not 0.0 <= sparsity <= 1.0:
            raise ConfigError(
                f"A schedule must return a sparsity in [0, 1]; {self.config.sparsity_decay_type!r} returned "
                f"{sparsity!r} for initial={self.initial}, target={self.target}, progress={progress}."
            )
        return min(sparsity, self.target)
