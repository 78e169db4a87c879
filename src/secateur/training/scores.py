"""The scores of one pattern's units, gathered from step to step.

Where the criterion's sum over steps and the reduction to units commute, one number per unit is kept, else one per
weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from secateur._array import Array, joined, namespace
from secateur.criteria import BaseCriterion, get_criterion
from secateur.errors import ScoreError
from secateur.patterns import BasePattern
from secateur.patterns.layout import CHUNK
from secateur.patterns.reduction import REDUCTIONS
from secateur.patterns.selection import Scores

__all__ = ["GatheredScores"]

LINEAR = frozenset({"mean", "sum"})
"""Reductions that a sum over steps commutes with."""


class GatheredScores:
    """What a criterion has seen so far of the layers of one pattern.

    Args:
        pattern: The pattern, bound to the layers.
        weight: Layer → its weight as an (O, K, I) array, now.

    Attributes:
        totals: Name of units (or layer, where gathered per weight) → scores gathered so far.
    """

    def __init__(self, pattern: BasePattern, weight: Callable[[str], Array]) -> None:
        self.pattern = pattern
        self.weight = weight
        self.totals: dict[str, Array] = {}
        self.criteria: dict[str, BaseCriterion] = {
            layer: get_criterion(pattern.config, layer) for layer in pattern.views
        }
        sample = next(iter(self.criteria.values()))
        self.needs_gradient = sample.needs_gradient
        self.decay = sample.decay
        self.unit_score = sample.unit_score
        name = sample.reduction or pattern.config.criterion_reduce_type
        self.reduction = REDUCTIONS.find(name)
        self.is_per_unit = sample.reduction is not None or self.decay == 0.0 or name in LINEAR

    def add(self, name: str, gradients: Mapping[str, Array]) -> None:
        """Take in one step: `gradients` holds an (O, K, I) array for each layer that has a part in the units `name`.

        Raises:
            ScoreError: A score is ``nan``; nothing is taken in then.
        """
        scores = {
            layer: self.criteria[layer].score(self.weight(layer), gradient) for layer, gradient in gradients.items()
        }
        if self.is_per_unit:
            self._add_to(name, joined(list(self._unit_chunks(name, scores))))
        else:
            for layer, score in scores.items():
                self._add_to(layer, score)

    def stream(self, name: str, alive: Mapping[str, Array] | None) -> Scores:
        """The scores to rank the units `name` by.

        Raises:
            ScoreError: The criterion needs gradients and none has come yet.
        """
        parts = self.pattern.units[name].parts
        if self.needs_gradient and not ({name, *parts} & self.totals.keys()):
            raise ScoreError(
                f"layer {name!r}: {self.pattern.config.criterion!r} ranks by gradients, and none has reached this "
                f"layer. Train it first (start_step later), exclude it, or rank by 'magnitude'."
            )
        flags = None if alive is None else alive[name]
        return Scores(name, lambda: self._chunks(name), self.pattern.units[name].count, flags)

    def _chunks(self, name: str) -> Iterator[Array]:
        if name in self.totals and self.is_per_unit:
            total = self.pattern.as_array(self.totals[name])
            yield from (total[start : start + CHUNK] for start in range(0, total.shape[0], CHUNK))
            return
        yield from self._unit_chunks(
            name, {layer: self._weight_score(layer) for layer in self.pattern.units[name].parts}
        )

    def _weight_score(self, layer: str) -> Array:
        if layer in self.totals:
            return self.pattern.as_array(self.totals[layer])
        return self.criteria[layer].score(self.pattern.as_array(self.weight(layer)), None)

    def _unit_chunks(self, name: str, scores: Mapping[str, Array]) -> Iterator[Array]:
        for chunk in self.pattern.units[name].scores(scores, self.reduction):
            yield self.unit_score(chunk)

    def _add_to(self, key: str, score: Array) -> None:
        Scores(key, lambda: iter([score.reshape((-1,))]), math.prod(score.shape)).refuse_nan()
        xp = namespace(score)
        dtype = getattr(xp, self.pattern.config.score_dtype)
        is_first = key not in self.totals or not self.decay
        if not is_first:
            score = xp.astype(self.totals[key], score.dtype, copy=False) * self.decay + score
        # A criterion may hand out the gradient itself, and that memory is not ours.
        self.totals[key] = xp.astype(score, dtype, copy=is_first)
