"""A pattern on one layer or on a piece of it: scores in, booleans out.

Legend: O output channels, K kernel positions, I input channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import torch

from secateur._array import Array
from secateur.errors import UnsupportedModelError
from secateur.frameworks.view import WeightView
from secateur.patterns import BasePattern, get_pattern
from secateur.patterns.nm import NMPattern
from secateur.patterns.selection import Scores
from secateur.patterns.tiling import BlockTiling, Tiling

__all__ = ["Selector"]

NAME = "weight"
"""What the one layer is called among its pattern's layers, where nobody sees it."""


@dataclass(frozen=True)
class Selector:
    """Chooses what stays in one weight of a given shape, exactly so many units of it.

    Attributes:
        pattern: Pattern specification.
        view: Shape of the weight, stored as (output channels, kernel positions, input channels).
        prune: Units to prune, counted as the pattern's budget does: blocks, or groups of N:M.
        reduction: How the scores of a unit's weights become one.
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
            UnsupportedModelError: The pattern couples layers, so that one alone cannot be decided on.
        """
        settings = {"pattern": self.pattern, "pruning_scope": "local", "criterion_reduce_type": self.reduction}
        found = get_pattern(settings, {NAME: self.view})
        if found.units.keys() != {NAME}:
            raise UnsupportedModelError(
                f"pattern {self.pattern!r} couples layers, and solvers decide layer by layer. "
                f"Prune it without a solver: secateur.prune(model, config)."
            )
        return found

    @property
    def units(self) -> int:
        """Units in the weight, counted as `prune` is."""
        return self.bound.budget.units[NAME]

    @property
    def tiling(self) -> Tiling:
        """How the weight is tiled."""
        return self.bound.units[NAME].parts[NAME]

    @cached_property
    def sparsity(self) -> float:
        """Share of weights that go."""
        return float(Fraction(self.prune, self.units) * self.bound.budget.unit_share)

    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        """What stays, for one score per weight.

        Args:
            scores: In any shape that reshapes to the weight's, output channels first; the higher survive.

        Returns:
            Booleans in the shape of `scores`.

        Raises:
            ScoreError: A score is ``nan``.
        """
        shaped = scores.reshape(self.view.shape)
        mask: torch.Tensor = self.bound.masks({NAME: shaped}, counts={NAME: self.prune})[NAME]
        return mask.reshape(scores.shape)

    def select_per_row(self, scores: torch.Tensor) -> torch.Tensor:
        """`keep`, with the same share from every output channel, or from every row of blocks.

        Where units span all input features or all output channels, and in groups of N:M, that is `keep` itself.
        """
        tiling = self.tiling
        if not isinstance(tiling, BlockTiling) or tiling.grid[0] == 1 or tiling.grid[1] * tiling.grid[2] == 1:
            return self.keep(scores)
        wide = self.bound.stream(NAME, {NAME: self.bound.framework.to_array(scores.reshape(self.view.shape))})
        wide.refuse_nan()
        units = torch.cat([torch.as_tensor(chunk) for chunk, _ in wide.read()]).reshape(tiling.grid[0], -1)
        order = units.argsort(dim=1, descending=True, stable=True)
        places = torch.arange(units.shape[1], 0, -1, device=units.device, dtype=torch.float32).expand_as(units)
        ranks = self.bound.framework.to_array(torch.empty_like(places).scatter_(1, order, places).reshape(-1))
        ranked = Scores(NAME, lambda: iter([ranks]), tiling.count)
        chosen = self.bound.select_units({NAME: ranked}, {NAME: self.prune})
        return torch.as_tensor(self.bound.weight_masks(chosen)[NAME], device=scores.device).reshape(scores.shape)

    def losses(self, name: str, scores: Callable[[], torch.Tensor]) -> Scores:
        """What each unit would lose, as a stream to rank.

        Args:
            name: What to call the layer in errors.
            scores: Makes one score per weight, as for `keep`, whenever the stream is read.
        """

        def chunks() -> Iterator[Array]:
            shaped = self.bound.framework.to_array(scores().reshape(self.view.shape))
            yield from self.bound.rank_units(self.bound.stream(NAME, {NAME: shaped})).chunks()

        return Scores(name, chunks, self.units)

    @property
    def is_of_rows(self) -> bool:
        """Whether a unit has all weights of its output channels."""
        tiling = self.tiling
        return isinstance(tiling, BlockTiling) and tiling.grid[1:] == (1, 1)

    @property
    def is_grouped(self) -> bool:
        """Whether every group of N:M is pruned, each decided on by itself; a subclass may differ."""
        return type(self.bound) is NMPattern and self.prune == self.units

    def column_step(self, width: int) -> int | None:
        """Columns (input features) to decide on together, about `width`; ``None``: only all of them."""
        span = self.tiling.span
        return None if span is None else max(1, width // span) * span

    def window(self, start: int, stop: int) -> Selector:
        """The same pattern on columns `start` to `stop`, which prunes its share of the units."""
        outputs, features = self.view.shape[0], self.view.shape[1] * self.view.shape[2]
        done = [round(Fraction(self.prune * column, features)) for column in (start, stop)]
        key = (stop - start, done[1] - done[0])
        if key not in self._windows:
            view = WeightView(shape=(outputs, 1, stop - start), output_axes=(0,), kernel_axes=(1,), input_axes=(2,))
            self._windows[key] = Selector(self.pattern, view, done[1] - done[0], self.reduction)
        return self._windows[key]
