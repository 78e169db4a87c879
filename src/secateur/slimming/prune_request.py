"""The pruning that a user requests before units are removed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from secateur.config import ConfigLike
from secateur.errors import CalibrationError, ConfigError
from secateur.oneshot import Calibration, Execution
from secateur.slimming.budget import SlimBudget

__all__ = ["PruneRequest", "read_request"]


@dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """How to prune a model before its units are removed; see `secateur.slim`.

    Attributes:
        config: What to prune; ``None``: all heads and channels, under a budget.
        calibration: The calibration data; ``None``: units are ranked by the weights alone.
        solver: Chooses the units.
        refine: Repairs the layers that read them.
        allocation: How the target is distributed over groups; ``None``: the default.
        budget: How much may remain; ``None``: the target of the configuration applies.
        loss: The loss whose gradients rank units; ``None``: the default.
        execution: Where and how a run with calibration data executes.
    """

    config: ConfigLike | None
    calibration: Calibration | Iterable[Any] | None
    solver: Any
    refine: Any
    allocation: Any
    budget: SlimBudget | None
    loss: Any
    execution: Execution | None


def read_request(config: ConfigLike | None, budget: Any, options: dict[str, Any]) -> PruneRequest | None:
    """Check the arguments of `secateur.slim`; ``None``: it only removes units that are already zero.

    Args:
        config: See `PruneRequest`.
        budget: The budget as the user gave it.
        options: The other attributes of `PruneRequest`, as given.

    Raises:
        ConfigError: Arguments have no effect together.
        CalibrationError: A budget needs calibration data.
    """
    given = [name for name, value in options.items() if value is not None and value != ()]
    if config is None and budget is None:
        if given:
            raise ConfigError(
                f"{given[0]} has no effect without a configuration or a budget: only units that are already zero are "
                f"removed. Pass config='channels' with a target_sparsity, or budget={{'parameters': 0.8}}."
            )
        return None
    parsed = None if budget is None else SlimBudget.parse(budget)
    if parsed is not None and options["calibration"] is None:
        raise CalibrationError(
            "A budget needs calibration data to estimate the loss of each unit. Pass calibration=batches, in the "
            "form that the model accepts."
        )
    if parsed is not None and options["allocation"] is not None:
        raise ConfigError(
            "budget and allocation contradict each other: the budget decides how much of each group goes."
        )
    solver = options["solver"] or ("magnitude" if options["calibration"] is None else "osscar")
    return PruneRequest(config=config, budget=parsed, **options | {"solver": solver})
