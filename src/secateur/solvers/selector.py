"""Select the weights of one layer, or of some of its columns: scores in, mask out.

Legend: O output channels, K kernel positions, I input channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import torch

from secateur._array import Array, count_true
from secateur.errors import UnsupportedModelError
from secateur.frameworks.view import WeightView
from secateur.patterns import BasePattern, get_pattern
from secateur.patterns.nm import NMPattern
from secateur.patterns.selection import Scores
from secateur.patterns.tiling import BlockTiling, Tiling
from secateur.patterns.verification import verify_masks

__all__ = ["Selector"]

NAME = "weight"
"""Internal name of the only layer of the pattern."""


@dataclass(frozen=True)
class Selector:
    """Selects weights by score so that an exact number of units is pruned.

    Attributes:
        pattern: Pattern specification.
        view: Shape of the weight, stored as (output channels, kernel positions, input channels).
        prune: Number of units to prune, as the pattern's budget counts them: blocks, or groups of N:M.
        reduction: How the scores of a unit's weights are reduced to one.
    """

    pattern: str
    view: WeightView
    prune: int
    reduction: str = "sum"
    _windows: dict[tuple[int, int], Selector] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def bound(self) -> BasePattern:
        """The pattern, bound to this shape alone.

        Raises:
            UnsupportedModelError: The pattern couples layers, so no layer can be pruned on its own.
        """
        settings = {"pattern": self.pattern, "pruning_scope": "local", "criterion_reduce_type": self.reduction}
        pattern = get_pattern(settings, {NAME: self.view})
        if pattern.units.keys() != {NAME}:
            raise UnsupportedModelError(
                f"pattern {self.pattern!r} couples layers, and solvers prune each layer on its own. "
                f"Prune without calibration data: secateur.prune(model, config, example_inputs=batch)."
            )
        return pattern

    @property
    def units(self) -> int:
        """Units in the weight, counted as `prune` is."""
        return self.bound.budget.units[NAME]

    @property
    def tiling(self) -> Tiling:
        """How the weight is tiled."""
        return self.bound.units[NAME].parts[NAME]

    def select(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the mask of the weights to keep, given one score per weight.

        Args:
            scores: In any shape that reshapes to the weight's, output channels first; higher scores survive.

        Returns:
            Booleans in the shape of `scores`.

        Raises:
            ScoreError: A score is ``nan``.
        """
        shaped = scores.reshape(self.view.shape)
        mask: torch.Tensor = self.bound.masks({NAME: shaped}, counts={NAME: self.prune})[NAME]
        return mask.reshape(scores.shape)

    def select_per_row(self, scores: torch.Tensor) -> torch.Tensor:
        """Like `select`, but prune the same share of every output channel, or of every row of blocks.

        This equals `select` if units span all input features or all output channels, and for groups of N:M.
        """
        tiling = self.tiling
        if not isinstance(tiling, BlockTiling) or tiling.grid[0] == 1 or tiling.grid[1] * tiling.grid[2] == 1:
            return self.select(scores)
        stream = self.bound.stream(NAME, {NAME: self.bound.framework.to_array(scores.reshape(self.view.shape))})
        stream.refuse_nan()
        units = torch.cat([torch.as_tensor(chunk) for chunk, _ in stream.read()]).reshape(tiling.grid[0], -1)
        order = units.argsort(dim=1, descending=True, stable=True)
        descending = torch.arange(units.shape[1], 0, -1, device=units.device, dtype=torch.float32).expand_as(units)
        ranks = self.bound.framework.to_array(torch.empty_like(descending).scatter_(1, order, descending).reshape(-1))
        ranked = Scores(NAME, lambda: iter([ranks]), tiling.count)
        keep = self.bound.select_units({NAME: ranked}, {NAME: self.prune})
        return torch.as_tensor(self.bound.weight_masks(keep)[NAME], device=scores.device).reshape(scores.shape)

    def check(self, mask: torch.Tensor, weight: torch.Tensor) -> str | None:
        """Return what is wrong with a mask and its weight, both in the shape of `view`; ``None`` if both are right."""
        return verify_masks(self.bound, {NAME: mask}, {NAME: weight}, counts={NAME: self.prune}).get(NAME)

    def count_pruned_units(self, mask: torch.Tensor) -> int:
        """Return the number of units of the tiling that a mask in the shape of `view` prunes completely."""
        return count_true(~self.bound.find_kept_units({NAME: mask})[NAME])

    def losses(self, name: str, scores: Callable[[], torch.Tensor]) -> Scores:
        """Return the loss of pruning each unit, as a stream of scores to rank.

        Args:
            name: The layer's name in errors.
            scores: Computes one score per weight, as for `select`, each time the stream is read.
        """

        def chunks() -> Iterator[Array]:
            shaped = self.bound.framework.to_array(scores().reshape(self.view.shape))
            yield from self.bound.rank_units(self.bound.stream(NAME, {NAME: shaped})).chunks()

        return Scores(name, chunks, self.units)

    @property
    def has_whole_rows(self) -> bool:
        """Whether units are whole output channels."""
        tiling = self.tiling
        return isinstance(tiling, BlockTiling) and tiling.grid[1:] == (1, 1)

    @property
    def is_grouped(self) -> bool:
        """Whether every N:M group is pruned, independently of the others; ``False`` for subclasses of `NMPattern`."""
        return type(self.bound) is NMPattern and self.prune == self.units

    def column_step(self, width: int) -> int | None:
        """Return the number of columns (input features) to select from together, close to `width`; ``None``: all."""
        span = self.tiling.span
        return None if span is None else max(1, width // span) * span

    def window(self, start: int, stop: int) -> Selector:
        """Return the selector for columns `start` to `stop`, which prunes their share of the units."""
        outputs, features = self.view.shape[0], self.view.shape[1] * self.view.shape[2]
        first, last = (round(Fraction(self.prune * column, features)) for column in (start, stop))
        key = (stop - start, last - first)
        if key not in self._windows:
            view = WeightView(shape=(outputs, 1, stop - start), output_axes=(0,), kernel_axes=(1,), input_axes=(2,))
            self._windows[key] = Selector(self.pattern, view, last - first, self.reduction)
        return self._windows[key]
