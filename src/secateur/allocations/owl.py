"""OWL allocation: prune blocks with more outliers less."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from secateur.allocations.base import Allocation, AllocationTask, register_allocation
from secateur.allocations.scores import compute_layer_scores
from secateur.errors import ConfigError

__all__ = ["OWL"]


@register_allocation("owl")
@dataclass(frozen=True, kw_only=True)
class OWL(Allocation):
    """Outlier weighed layerwise sparsity: one ratio per transformer block.

    D is the share of the scores ``|W[i,j]| · ‖X[j]‖`` of all layers in a block that exceed M times their mean.
    Densities are linear in D, with 2 λ between the extremes, and their mean over all units meets the target. A block
    can therefore differ from the target by more than λ, as in the authors' code.

    In a model without a stack of blocks, each layer has its own ratio.

    Attributes:
        outlier: M, the multiple of the mean above which a score is an outlier, > 0.
        spread: λ, half the difference between the sparsest and the densest block, in [0, 0.5].

    Raises:
        ConfigError: A setting is out of its range.

    Source:
        Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
        Sparsity", arXiv:2310.05175, section 3.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> shares = secateur.allocations.OWL(spread=0.1)
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> report = secateur.prune(
        ...     model, config, calibration=inputs, solver="wanda", allocation=shares
        ... )
        >>> report.sparsity
        0.5
    """

    outlier: float = 5.0
    spread: float = 0.08

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "norms"

    def __post_init__(self) -> None:
        if not self.outlier > 0:
            raise ConfigError(f"outlier must be above 0, found {self.outlier}.")
        if not 0 <= self.spread <= 0.5:
            raise ConfigError(f"spread must be in [0, 0.5], found {self.spread}.")

    def counts(self, task: AllocationTask) -> dict[str, int]:
        """See `Allocation.counts`."""
        by_block: list[dict[str, float]] = []
        by_layer: dict[str, float] = {}
        for _, problems in task.iterate_problems():
            scores = {name: layer for problem in problems for name, layer in compute_layer_scores(problem).items()}
            if scores:
                by_block.append(dict.fromkeys(scores, _compute_outlier_share(list(scores.values()), self.outlier)))
                by_layer |= {name: _compute_outlier_share([layer], self.outlier) for name, layer in scores.items()}
        outliers = by_layer
        if len(by_block) > 1:
            outliers = {name: share for block in by_block for name, share in block.items()}
        low, high = min(outliers.values()), max(outliers.values())
        scale = 2 * self.spread / (high - low) if high > low else 0.0
        unit_share = float(task.pattern.budget.unit_share)
        shares = {name: (low - outliers[name]) * scale / unit_share for name in task.units}
        return apportion(shares, task)


def _compute_outlier_share(scores: Sequence[torch.Tensor], multiple: float) -> float:
    """Return the share of the scores that exceed a multiple of their mean."""
    count = sum(layer.numel() for layer in scores)
    mean = sum(float(layer.sum(dtype=torch.float64)) for layer in scores) / count
    return sum(int((layer > multiple * mean).sum()) for layer in scores) / count


def apportion(shares: Mapping[str, float], task: AllocationTask) -> dict[str, int]:
    """Convert shares to whole units that add up to the total, after a common shift and clipping to the bounds.

    Counts are rounded down, and the rest goes to the layers with the largest remainders; ties go to the first.

    Args:
        shares: Layer → share of its units to prune; only the differences matter.
        task: The total and the bounds of each layer.
    """
    size, share, low, high = (
        np.array([values[name] for name in task.units], dtype=np.float64)
        for values in (task.units, shares, task.lower, task.upper)
    )

    def shift_counts(shift: float) -> npt.NDArray[np.float64]:
        return np.clip(size * (share + shift), low, high)

    # The sum is linear between the shifts at which a layer reaches one of its bounds.
    breakpoints = np.unique(np.concatenate([low / size - share, high / size - share]))
    sums = [shift_counts(shift).sum() for shift in breakpoints]
    exact = shift_counts(float(np.interp(task.total, sums, breakpoints)))
    counts = [math.floor(count) for count in exact]
    missing = task.total - sum(counts)
    largest_first = [int(index) for index in np.argsort(counts - exact, kind="stable") if counts[index] < high[index]]
    for index in largest_first[:missing]:
        counts[index] += 1
    return dict(zip(task.units, counts, strict=True))
