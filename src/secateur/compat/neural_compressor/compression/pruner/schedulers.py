"""Schedule sparsity, as `neural_compressor.compression.pruner.schedulers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from secateur._wording import suggest_name
from secateur.compat.neural_compressor._translation import DECAYS
from secateur.compat.neural_compressor._user_criteria import SCHEDULERS, register_in
from secateur.compat.schedules import register_quarter_cosine
from secateur.errors import UnknownNameError
from secateur.schedules import get_schedule

__all__ = [
    "SCHEDULERS",
    "IterativeScheduler",
    "OneshotScheduler",
    "PruningScheduler",
    "find_scheduler",
    "get_scheduler",
    "register_scheduler",
]

Class = TypeVar("Class", bound=type)


def register_scheduler(name: str) -> Callable[[Class], Class]:
    """Create a decorator that registers a scheduler, in place of another one of the same name.

    Runs whose ``start_step`` is their ``end_step`` use ``"oneshot"``, and all others ``"iterative"``.

    Examples:
        >>> @register_scheduler("halving")
        ... class Halving(PruningScheduler):
        ...     def update_sparsity_ratio(self, target_ratio, step, total, *others):
        ...         return target_ratio * (1 - 0.5**step)
        >>> SCHEDULERS.pop("halving")(None).update_sparsity_ratio(0.8, 2, 4)
        0.6000000000000001
    """
    return register_in(SCHEDULERS, name)


def get_scheduler(config: Any) -> Any:
    """Create the scheduler for an element of ``pruning_configs`` with all keys.

    Examples:
        >>> from secateur.compat.neural_compressor import WeightPruningConfig
        >>> (element,) = WeightPruningConfig(end_step=8).complete_elements()
        >>> get_scheduler(element).update_sparsity_ratio(0.75, 1, 2, {})
        0.5
    """
    return find_scheduler(config)(config)


def find_scheduler(config: Any) -> type:
    """Return the class of the scheduler for an element."""
    return SCHEDULERS["oneshot" if config["start_step"] == config["end_step"] else "iterative"]


class PruningScheduler:
    """Base class of schedulers.

    Args:
        config: An element of ``pruning_configs`` with all keys.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    def update_sparsity_ratio(
        self,
        target_ratio: float,
        current_prune_step: int,
        total_prune_steps: int,
        masks: Any = None,
        init_ratio: float = 0.0,
    ) -> float:
        """Return the sparsity after an update.

        Args:
            target_ratio: The sparsity at the end.
            current_prune_step: Number of updates before this one.
            total_prune_steps: Number of updates before the last one.
            masks: Layer name → the current mask.
            init_ratio: The sparsity at the start.
        """
        raise NotImplementedError


@register_scheduler("oneshot")
class OneshotScheduler(PruningScheduler):
    """Reaches the target in one update."""

    def update_sparsity_ratio(
        self,
        target_ratio: float,
        current_prune_step: int,  # noqa: ARG002 - part of the interface
        total_prune_steps: int,  # noqa: ARG002
        masks: Any = None,  # noqa: ARG002
        init_ratio: float = 0.0,  # noqa: ARG002
    ) -> float:
        """Return the target."""
        return target_ratio


@register_scheduler("iterative")
class IterativeScheduler(PruningScheduler):
    """Approaches the target as ``sparsity_decay_type`` says.

    Raises:
        UnknownNameError: ``sparsity_decay_type`` is unknown.
    """

    def update_sparsity_ratio(
        self,
        target_ratio: float,
        current_prune_step: int,
        total_prune_steps: int,
        masks: Any = None,  # noqa: ARG002 - part of the interface
        init_sparsity_ratio: float = 0.0,
    ) -> float:
        """See `PruningScheduler.update_sparsity_ratio`."""
        name = self.config["sparsity_decay_type"]
        if name not in DECAYS:
            raise UnknownNameError(
                f"Unknown sparsity_decay_type {name!r}.{suggest_name(str(name), DECAYS)} Known: {', '.join(DECAYS)}."
            )
        schedule = get_schedule(register_quarter_cosine() if name == "cos" else DECAYS[name])
        target = min(target_ratio, self.config["max_sparsity_ratio_per_op"])
        return schedule(init_sparsity_ratio, target, current_prune_step / total_prune_steps)
