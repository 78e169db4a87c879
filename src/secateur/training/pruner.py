"""The protocol that the pruners of all frameworks implement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from secateur.results import PruningReport

__all__ = ["Pruner"]


@runtime_checkable
class Pruner(Protocol):
    """Prunes a model while it trains. `secateur.prepare` returns one.

    `secateur.training.pytorch.PytorchPruner` and `secateur.keras.PruningOptimizer` implement this protocol.
    """

    @property
    def step(self) -> int:
        """Number of optimizer steps since pruning started."""

    @property
    def masks(self) -> Mapping[str, Any]:
        """Layer → booleans in the weight's shape, ``True`` = kept."""

    @property
    def sparsity(self) -> float:
        """Current share of pruned weights, over all pruned layers."""

    def report(self) -> PruningReport:
        """Return a report on what is pruned now, without verifying it."""

    def apply_masks(self, model: Any = None) -> None:
        """Set pruned weights to zero in `model`, such as a copy with averaged weights; ``None``: in the pruned model.

        Raises:
            LayerError: A pruned layer is missing in `model` or has a different shape. In this case nothing is changed.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run needs to resume, in addition to the model and the optimizer."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state that `state_dict` returned, with a model of the same layers and the same configuration.

        Raises:
            StateError: The state belongs to another model, configuration or format, or this run has ended. In these
                cases nothing is changed.
        """

    def finalize(self) -> PruningReport:
        """Verify masks and weights, end the run, and report what was pruned.

        Raises:
            StateError: Masks or weights are wrong, or this run has ended.
        """

    def close(self) -> None:
        """End the run without verifying it. Calling it again does nothing."""
