"""Less from the blocks that have more outliers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from secateur.allocations.base import Allocation, AllocationTask, register_allocation
from secateur.allocations.scores import scores_per_layer
from secateur.errors import ConfigError

__all__ = ["OWL"]


@register_allocation("owl")
@dataclass(frozen=True, kw_only=True)
class OWL(Allocation):
    """Outlier weighed layerwise sparsity: one ratio per transformer block.

    D is the share of the scores ``|W[i,j]| · ‖X[j]‖`` of all layers in a block that lie above M
    times their mean. Densities differ as D does, by 2 λ between the extremes, and their mean over all units is what the
    target leaves; so a block may be further than λ from the target, as in the authors' code.

    Where all layers are in one part, as in a model without a stack of blocks, each has a ratio of its own.

    Attributes:
        outlier: M, the multiple of the mean above which a score is an outlier, > 0.
        spread: λ, half of the difference between the sparsest and the densest block, in [0, 0.5].

    Raises:
        ConfigError: A setting is out of its range.

    Source:
        Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
        Sparsity", arXiv:2310.05175, section 3.

    Example:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> shares = secateur.allocations.OWL(spread=0.1)
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> secateur.prune(model, config, calibration=inputs, solver="wanda", allocation=shares).sparsity
        0.5
    """

    outlier: float = 5.0
    spread: float = 0.08

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "norms"

    def __post_init__(self) -> None:
        if not self.outlier > 0:
            raise ConfigError(f"outlier must be above 0, found {self.outlier}.")
        if not 0 <= self.spread <= 0.5:
            raise ConfigError(f"spread must lie in [0, 0.5], found {self.spread}.")

    def counts(self, task: AllocationTask) -> dict[str, int]:
        """See `Allocation.counts`."""
        of_part: list[dict[str, float]] = []
        of_layer: dict[str, float] = {}
        for _, problems in task.survey():
            scores = {name: own for problem in problems for name, own in scores_per_layer(problem).items()}
            if scores:
                of_part.append(dict.fromkeys(scores, self._outliers(list(scores.values()))))
                of_layer |= {name: self._outliers([own]) for name, own in scores.items()}
        outliers = of_layer if len(of_part) == 1 else {name: share for part in of_part for name, share in part.items()}
        low, high = min(outliers.values()), max(outliers.values())
        scale = 2 * self.spread / (high - low) if high > low else 0.0
        unit_share = float(task.pattern.budget.unit_share)
        shares = {name: (low - outliers[name]) * scale / unit_share for name in task.units}
        return apportion(shares, task)

    def _outliers(self, scores: Sequence[torch.Tensor]) -> float:
        """Share of the scores above so many times their mean."""
        count = sum(some.numel() for some in scores)
        mean = sum(float(some.sum(dtype=torch.float64)) for some in scores) / count
        return sum(int((some > self.outlier * mean).sum()) for some in scores) / count


def apportion(shares: Mapping[str, float], task: AllocationTask) -> dict[str, int]:
    """Units per layer that add up to the total: all shares plus one common shift, kept in bounds, rounded.

    What is lost by rounding down goes to the layers with the largest remainders, of equals to the first.

    Args:
        shares: Layer → share of its units that it is to lose; only the differences matter.
        task: The total, and the bounds of each layer.
    """
    size, share, low, high = (
        np.array([each[name] for name in task.units], dtype=np.float64)
        for each in (task.units, shares, task.lower, task.upper)
    )

    def shifted(shift: float) -> npt.NDArray[np.float64]:
        return np.clip(size * (share + shift), low, high)

    # The sum is linear between the shifts at which a layer comes to one of its bounds.
    bends = np.unique(np.concatenate([low / size - share, high / size - share]))
    wanted = shifted(float(np.interp(task.total, [shifted(bend).sum() for bend in bends], bends)))
    counts = [math.floor(count) for count in wanted]
    missing = task.total - sum(counts)
    largest_first = [int(place) for place in np.argsort(counts - wanted, kind="stable") if counts[place] < high[place]]
    for place in largest_first[:missing]:
        counts[place] += 1
    return dict(zip(task.units, counts, strict=True))
