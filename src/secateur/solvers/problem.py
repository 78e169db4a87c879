"""The layer-wise pruning problem: weights that read the same inputs, and statistics of those inputs.

Legend: G groups (1 except in grouped convolutions), R rows (output channels of one group, over all layers that share
the inputs), F input features (kernel positions × input channels).
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
    """The rows of one layer in a problem.

    Attributes:
        name: Layer name.
        rows: First row and end of the range (exclusive).
        selector: Selects the weights of this layer by score.
        criterion: Computes the scores of the configured criterion, such as |weights|, from (O, K, I) weights.
    """

    name: str
    rows: tuple[int, int]
    selector: Selector
    criterion: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Find the W that fits the pattern and minimizes ``‖X (W − Ŵ)ᵀ‖``.

    Attributes:
        weight: The dense weights Ŵ, float32, of shape (G, R, F).
        norms: Norm of each input feature over all calibration tokens, ≥ 0, of shape (G, F).
        gram: ``Xᵀ X``, float32, of shape (G, F, F); ``None`` if the solver does not need it.
        layers: The layers, in the order of their rows.
        means: Mean of each input feature over all calibration tokens, of shape (G, F); ``None``: unknown.
        variances: Variance of each input feature, ≥ 0, of the same shape; ``None``: unknown.
    """

    weight: torch.Tensor
    norms: torch.Tensor
    gram: torch.Tensor | None
    layers: Sequence[LayerRows]
    means: torch.Tensor | None = None
    variances: torch.Tensor | None = None

    @property
    def known_gram(self) -> torch.Tensor:
        """The Gram matrices, for a solver that needs them."""
        assert self.gram is not None
        return self.gram

    def select(self, scores_GRF: torch.Tensor) -> torch.Tensor:
        """Return the mask of the weights to keep, selected within each layer, given one score per weight."""
        return self._select_by_layer(scores_GRF, lambda layer, scores: layer.selector.select(scores))

    def select_per_row(self, scores_GRF: torch.Tensor) -> torch.Tensor:
        """Return a mask that prunes the same share of every output channel; see `Selector.select_per_row`."""
        return self._select_by_layer(scores_GRF, lambda layer, scores: layer.selector.select_per_row(scores))

    def select_in_columns(self, scores_GRC: torch.Tensor, start: int) -> torch.Tensor:
        """Return the mask of the columns that the scores belong to, which start at column `start`."""
        stop = start + scores_GRC.shape[-1]
        return self._select_by_layer(
            scores_GRC, lambda layer, scores: layer.selector.window(start, stop).select(scores)
        )

    def select_in_group(self, scores_GMR: torch.Tensor) -> torch.Tensor:
        """Return the mask of one group of N:M in every row if all groups are pruned; M is the length of a group."""
        pattern = self.layers[0].selector.bound
        assert isinstance(pattern, NMPattern)
        array = pattern.framework.to_array(scores_GMR)
        kept = pattern.keep_best([array[:, position] for position in range(array.shape[1])])
        return torch.as_tensor(namespace(array).stack(kept, axis=1), device=scores_GMR.device)

    def keep(self, scores_GRF: torch.Tensor) -> torch.Tensor:
        """Old name of `select`."""
        warn_deprecated("Problem.keep", "Problem.select")
        return self.select(scores_GRF)

    def keep_of_rows(self, scores_GRF: torch.Tensor) -> torch.Tensor:
        """Old name of `select_per_row`."""
        warn_deprecated("Problem.keep_of_rows", "Problem.select_per_row")
        return self.select_per_row(scores_GRF)

    def column_step(self, width: int) -> int | None:
        """Return the number of columns that every layer can select from independently; see `Selector.column_step`."""
        steps = {layer.selector.column_step(width) for layer in self.layers}
        return steps.pop() if len(steps) == 1 else None

    def solve_by_rows(self) -> Solution | None:
        """Return the optimum if units are whole output channels, else ``None``.

        Rows do not compensate for each other, so pruning a row loses all of its output energy, ``wᵀ Xᵀ X w``, and
        the kept rows stay as they are.
        """
        if not all(layer.selector.has_whole_rows for layer in self.layers):
            return None
        keep = self.select((self.weight @ self.known_gram).mul_(self.weight))
        return Solution(weight=self.weight * keep, keep=keep)

    @property
    def is_grouped(self) -> bool:
        """Whether all layers prune every group of the same N:M, so that groups are independent."""
        return (
            all(layer.selector.is_grouped for layer in self.layers)
            and len({layer.selector.pattern for layer in self.layers}) == 1
        )

    def criterion_scores(self) -> torch.Tensor:
        """Return the scores of the configured criterion, which ignores the inputs."""
        scores = []
        for layer in self.layers:
            rows = self.weight[:, slice(*layer.rows)]
            scores.append(layer.criterion(rows.reshape(layer.selector.view.shape)).reshape(rows.shape))
        return torch.cat(scores, dim=1)

    def errors_per_layer(self, weight_GRF: torch.Tensor) -> dict[str, float]:
        """Return layer → relative error of its outputs, ``‖X (W − Ŵ)ᵀ‖² / ‖X Ŵᵀ‖²``.

        Layers whose dense outputs are all zero have no relative error and are left out.
        """
        lost, total = (self.energy(weights) for weights in (self.weight - weight_GRF, self.weight))
        errors = {}
        for layer in self.layers:
            rows = slice(*layer.rows)
            if (energy := float(total[:, rows].sum())) > 0:
                errors[layer.name] = float(lost[:, rows].sum()) / energy
        return errors

    def energy(self, weight_GRF: torch.Tensor) -> torch.Tensor:
        """Return the squared norm of each row's outputs; without a Gram matrix, features count as uncorrelated."""
        if self.gram is None:
            return (weight_GRF * self.norms[:, None]).square().sum(dim=-1)
        return (weight_GRF @ self.gram).mul_(weight_GRF).sum(dim=-1).clamp_(min=0)

    def _select_by_layer(
        self, scores_GRF: torch.Tensor, select: Callable[[LayerRows, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        masks = [select(layer, scores_GRF[:, slice(*layer.rows)]) for layer in self.layers]
        return masks[0] if len(masks) == 1 else torch.cat(masks, dim=1)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The result of a solver.

    Attributes:
        weight: The new weights, of shape (G, R, F); exactly 0.0 where pruned.
        keep: The mask of the kept weights, of the same shape.
    """

    weight: torch.Tensor
    keep: torch.Tensor
