"""The specification of a pattern such as ``4x1`` or ``2:4``: how it tiles a weight, and selects units by count."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction

from secateur._array import Array
from secateur._deprecated import warn_deprecated
from secateur.errors import ConfigError
from secateur.frameworks import WeightView
from secateur.patterns.selection import Cut, Scores, find_cuts, keep_above, unify_precision
from secateur.patterns.tiling import Tiling

__all__ = ["Specification"]


class Specification(ABC):
    """Tile weights into units, and select units so that an exact number of them is pruned.

    A specification depends neither on layers nor on a framework, and counts are integers. They count *budget units*: a
    budget unit is a unit of the tiling, or a group of N:M.

    Attributes:
        pattern: The specification, such as ``"4x1"``.
        reduction: How the scores of a unit's weights are reduced to one: ``"mean"``, ``"sum"``, ``"max"`` or ``"l2"``.
    """

    pattern: str
    reduction: str

    @classmethod
    def serves(cls, specification: str) -> bool:  # noqa: ARG003
        """Whether this pattern handles a specification that is not itself a registered name."""
        return False

    def default_target_sparsity(self) -> float:
        """Return the target for configurations that do not set one."""
        return 0.9

    def tile(self, view: WeightView) -> Tiling:
        """Tile one weight.

        Args:
            view: The canonical view of the weight.

        Raises:
            LayerError: The weight does not fit the pattern; the message says why.
            ConfigError: The class does not override this method.
        """
        old_hook = getattr(self, "layout", None)
        if callable(old_hook):
            warn_deprecated("Pattern.layout(view)", "tile(view)")
            tiling: Tiling = old_hook(view)
            return tiling
        raise ConfigError(f"{type(self).__name__} does not define how to tile a weight. Override tile(view).")

    @property
    def unit_share(self) -> Fraction:
        """Share of the weights in a budget unit that are pruned with it: 1, or (M-N)/M for a group of N:M."""
        return Fraction(1)

    def count_budget_units(self, units: int) -> int:
        """Return the number of budget units in a weight of `units` units."""
        return units

    def rank_units(self, layer: Scores) -> Scores:
        """Return one score per budget unit. The lowest are pruned first."""
        return layer

    def cut_all(self, layer: Scores) -> Cut | None:  # noqa: ARG002
        """Return the cut that prunes every budget unit; ``None`` if it requires a ranking."""
        return None

    def keep_units(self, layer: Scores, cut: Cut) -> Array:
        """Return one boolean per unit, ``True`` = kept.

        Args:
            layer: One score per unit.
            cut: The cut in the ranking of `rank_units`.
        """
        return keep_above(self.rank_units(layer), cut)

    def select_units(self, scores: Mapping[str, Scores], counts: Mapping[str, int]) -> dict[str, Array]:
        """Prune exactly `counts` budget units, separately for each layer.

        Units that are already pruned stay pruned and are included in the count. Ties go to the lower index.

        Args:
            scores: Name of units → the stream of their scores.
            counts: Name of units → number of budget units to prune.

        Returns:
            Name of units → one boolean per unit, ``True`` = kept.

        Raises:
            ScoreError: A score is ``nan``.
        """
        scores = unify_precision(scores)
        return {name: self.keep_units(layer, self._find_cut(layer, counts[name])) for name, layer in scores.items()}

    def regrow_units(self, layer: Scores, growth: Scores, count: int) -> Array:
        """Prune the `count` kept units with the lowest scores, and regrow as many of the others.

        Args:
            layer: One score per unit, and which units are kept now.
            growth: One score per unit; those with the highest regrow. Ties go to the lower index.
            count: Number of units, at most the number of kept ones.

        Returns:
            One boolean per unit, ``True`` = kept. Units that were just pruned can regrow.

        Raises:
            ScoreError: A score is ``nan``.
        """
        pruned = layer.count_pruned() + count
        retained = keep_above(layer, find_cuts({layer.name: layer}, {layer.name: pruned})[layer.name])
        return retained | self.grow_units(replace(growth, alive=~retained), count)

    def grow_units(self, growth: Scores, count: int) -> Array:
        """Select `count` of the units that are not retained.

        Args:
            growth: One score per unit, and which units can be selected: all that are not retained.
            count: Number of units.

        Returns:
            One boolean per unit, ``True`` = selected.
        """
        return keep_above(growth, find_cuts({growth.name: growth}, {growth.name: growth.count - count})[growth.name])

    def interpolate_masks(
        self,
        stream: Callable[[str], Scores],  # noqa: ARG002
        between: tuple[Mapping[str, Array], Mapping[str, Array]],  # noqa: ARG002
        part: tuple[int, int],  # noqa: ARG002
    ) -> dict[str, Array] | None:
        """Select the weights that a progressive run prunes between two updates.

        Args:
            stream: Returns the current scores of units, given their name.
            between: For the last and the next update: name of units → one boolean per unit, ``True`` = kept.
            part: Number of parts of the weights between them to prune, and number of all parts.

        Returns:
            Layer → booleans in the weight's shape; by default ``None``, which means the smallest weights of each layer.
        """
        return None

    def _find_cut(self, layer: Scores, count: int) -> Cut:
        if count >= self.count_budget_units(layer.count) and (cut := self.cut_all(layer)) is not None:
            return cut
        return find_cuts({layer.name: self.rank_units(layer)}, {layer.name: count})[layer.name]
