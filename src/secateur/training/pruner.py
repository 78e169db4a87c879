"""What every pruner can do, whatever the framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from secateur.results import PruningReport

__all__ = ["Pruner"]


@runtime_checkable
class Pruner(Protocol):
    """A model that is pruned while it trains, as `secateur.prepare` returns it.

    `secateur.training.pytorch.PytorchPruner` and `secateur.keras.PruningOptimizer` are pruners.
    """

    @property
    def step(self) -> int:
        """Optimizer steps since pruning began."""

    @property
    def masks(self) -> Mapping[str, Any]:
        """Layer → booleans in the weight's shape, ``True`` = kept."""

    @property
    def sparsity(self) -> float:
        """Share of weights pruned now, over all pruned layers."""

    def report(self) -> PruningReport:
        """Report what is pruned now, without verifying it."""

    def apply_masks(self, model: Any = None) -> None:
        """Set pruned weights to zero in `model`, such as a copy with averaged weights; ``None``: in the pruned model.

        Raises:
            LayerError: A pruned layer is missing in `model` or has another shape; nothing is changed then.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, besides the model and its optimizer."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict`, with a model of the same layers and the same configuration.

        Raises:
            StateError: The state belongs to another model, configuration or format, or this run has ended; nothing is
                changed then.
        """

    def finalize(self) -> PruningReport:
        """Verify masks and weights, end the run, and report what was pruned.

        Raises:
            StateError: Masks or weights are wrong, or this run has ended.
        """

    def close(self) -> None:
        """End the run without verifying it. Calling it again does nothing."""
