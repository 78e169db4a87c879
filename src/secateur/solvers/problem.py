"""What a solver solves: weights that read the same inputs, and what is known of those inputs.

Legend: G groups (1 but for grouped convolutions), R rows (output channels of one group, of all layers that share the
inputs), F input features (kernel positions × input channels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from secateur._array import namespace
from secateur._deprecated import warn_deprecated
from secateur.patterns.nm import NMPattern
from secateur.solvers.selector import Selector

__all__ = ["LayerRows", "Problem", "Solution"]


@dataclass(frozen=True, kw_only=True)
class LayerRows:
    """One layer's rows in a problem.

    Attributes:
        name: Layer name.
        rows: First row and the one behind the last.
        selector: Chooses what stays in this layer.
        criterion: |Weights|, or whatever the configuration ranks by without calibration, from (O, K, I) weights.
    """

    name: str
    rows: tuple[int, int]
    selector: Selector
    criterion: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Find W that a pattern allows and that brings ``‖X (W − Ŵ)ᵀ‖`` near its minimum.

    Attributes:
        weight: The dense weights, float32, of shape (G, R, F).
        norms: Norm of each input feature over all calibration tokens, ≥ 0, of shape (G, F).
        gram: ``Xᵀ X``, float32, of shape (G, F, F); ``None`` where nobody asked for it.
        parts: The layers, in the order of their rows.
    """

    weight: torch.Tensor
    norms: torch.Tensor
    gram: torch.Tensor | None
    parts: Sequence[LayerRows]

    @property
    def known_gram(self) -> torch.Tensor:
        """The Gram matrices, for a solver that needs them."""
        assert self.gram is not None
        return self.gram

    def keep(self, scores_GRF: torch.Tensor) -> torch.Tensor:
        """What stays, layer by layer, for one score per weight."""
        return self._by_part(scores_GRF, lambda part, scores: part.selector.keep(scores))

    def select_per_row(self, scores_GRF: torch.Tensor) -> torch.Tensor:
        """What stays where every output channel loses the same share; see `Selector.select_per_row`."""
        return self._by_part(scores_GRF, lambda part, scores: part.selector.select_per_row(scores))

    def keep_of_rows(self, scores_GRF: torch.Tensor) -> torch.Tensor:
        """Old name of `select_per_row`."""
        warn_deprecated("Problem.keep_of_rows", "Problem.select_per_row")
        return self.select_per_row(scores_GRF)

    def select_in_columns(self, scores_GRC: torch.Tensor, start: int) -> torch.Tensor:
        """What stays in the columns of which the scores are given, from column `start` on."""
        stop = start + scores_GRC.shape[-1]
        return self._by_part(scores_GRC, lambda part, scores: part.selector.window(start, stop).keep(scores))

    def column_step(self, width: int) -> int | None:
        """Columns that every layer can decide on by themselves; see `Selector.column_step`."""
        steps = {part.selector.column_step(width) for part in self.parts}
        return steps.pop() if len(steps) == 1 else None

    def select_in_group(self, scores_GMR: torch.Tensor) -> torch.Tensor:
        """What stays of one group of N:M in every row, where all groups are pruned; M places of G × R groups."""
        pattern = self.parts[0].selector.bound
        assert isinstance(pattern, NMPattern)
        array = pattern.framework.to_array(scores_GMR)
        kept = pattern.keep_best([array[:, place] for place in range(array.shape[1])])
        return torch.as_tensor(namespace(array).stack(kept, axis=1), device=scores_GMR.device)

    def solve_by_rows(self) -> Solution | None:
        """The best there is where units are whole output channels; ``None``: they are not.

        Rows do not make up for each other, so the loss of one is all of its output energy,
        ``wᵀ Xᵀ X w``, and what is kept of the dense weights cannot be bettered.
        """
        if not all(part.selector.is_of_rows for part in self.parts):
            return None
        keep = self.keep((self.weight @ self.known_gram).mul_(self.weight))
        return Solution(weight=self.weight * keep, keep=keep)

    @property
    def is_grouped(self) -> bool:
        """Whether every group of N:M is pruned, in all layers alike, so that groups do not depend on each other."""
        return (
            all(part.selector.is_grouped for part in self.parts)
            and len({part.selector.pattern for part in self.parts}) == 1
        )

    def criterion_scores(self) -> torch.Tensor:
        """The scores of the configured criterion, which knows nothing of inputs."""
        scores = []
        for part in self.parts:
            rows = self.weight[:, slice(*part.rows)]
            scores.append(part.criterion(rows.reshape(part.selector.view.shape)).reshape(rows.shape))
        return torch.cat(scores, dim=1)

    def errors_per_layer(self, weight_GRF: torch.Tensor) -> dict[str, float]:
        """Layer → share lost of its outputs, ``‖X (W − Ŵ)ᵀ‖² / ‖X Wᵀ‖²``."""
        lost, whole = (self.energy(weights) for weights in (self.weight - weight_GRF, self.weight))
        found = {}
        for part in self.parts:
            rows = slice(*part.rows)
            total = float(whole[:, rows].sum())
            found[part.name] = float(lost[:, rows].sum()) / total if total > 0 else 0.0
        return found

    def energy(self, weight_GRF: torch.Tensor) -> torch.Tensor:
        """Squared norm of what each row gives out; without a Gram matrix, as if input features were uncorrelated."""
        if self.gram is None:
            return (weight_GRF * self.norms[:, None]).square().sum(dim=-1)
        return (weight_GRF @ self.gram).mul_(weight_GRF).sum(dim=-1).clamp_(min=0)

    def _by_part(
        self, scores_GRF: torch.Tensor, decide: Callable[[LayerRows, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        kept = []
        for part in self.parts:
            rows = scores_GRF[:, slice(*part.rows)]
            kept.append(decide(part, rows))
        return kept[0] if len(kept) == 1 else torch.cat(kept, dim=1)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a solver found.

    Attributes:
        weight: The new weights, of shape (G, R, F); exactly 0.0 where not kept.
        keep: What stays, of the same shape.
    """

    weight: torch.Tensor
    keep: torch.Tensor
