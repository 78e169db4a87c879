"""Accumulate the scores of the units of one pattern from step to step.

If the sum over steps and the reduction to units commute, one value per unit is stored, and otherwise one per weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import array_api_compat

from secateur._array import Array, concat_chunks, namespace
from secateur.config import PruningConfig
from secateur.criteria import BaseCriterion, get_criterion
from secateur.errors import ScoreError
from secateur.patterns import BasePattern
from secateur.patterns.reduction import REDUCTIONS, Reduction
from secateur.patterns.selection import Scores
from secateur.patterns.tiling import CHUNK

__all__ = ["AccumulatedScores"]

LINEAR = frozenset({"mean", "sum"})
"""Reductions that commute with a sum over steps."""


class AccumulatedScores:
    """The accumulated scores of the layers of one pattern.

    Args:
        pattern: The pattern with its layers.
        weight: Returns the current weight of a layer as an (O, K, I) array.
        config: The configuration of the criterion; ``None``: that of the pattern.

    Attributes:
        totals: Name of units, or of a layer if scores are stored per weight → accumulated scores.
    """

    def __init__(
        self, pattern: BasePattern, weight: Callable[[str], Array], *, config: PruningConfig | None = None
    ) -> None:
        self.pattern = pattern
        self.weight = weight
        self.totals: dict[str, Array] = {}
        self.criteria: dict[str, BaseCriterion] = {
            layer: get_criterion(config or pattern.config, layer) for layer in pattern.views
        }
        sample = next(iter(self.criteria.values()))
        self.needs_gradient = sample.needs_gradient
        self.decay = sample.decay
        self.sees_every_step = sample.sees_every_step
        self.unit_score = sample.unit_score
        name = sample.reduction or pattern.config.criterion_reduce_type
        self.reduction = REDUCTIONS.find(name)
        self._cache: dict[str, list[Array]] | None = None
        self.is_per_unit = sample.reduction is not None or self.decay == 0.0 or name in LINEAR
        # Layer → the units with which scores that are stored per weight are added, so that they are added once.
        self._owners = {layer: next(iter(parts)) for layer, parts in pattern.list_parts().items()}

    @property
    def is_accumulated(self) -> bool:
        """Whether scores accumulate over steps; otherwise they are computed from the weights when they are read."""
        return self.needs_gradient or self.decay > 0 or self.sees_every_step

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `totals`: name of units, or of a layer if scores are stored per weight → shape."""
        if self.is_per_unit:
            return {name: (units.count,) for name, units in self.pattern.units.items()}
        return {name: view.canonical_shape for name, view in self.pattern.views.items()}

    def add(self, name: str, gradients: Mapping[str, Array]) -> None:
        """Add the scores of one step.

        Add those of all units of the pattern in each step: if scores are stored per weight, those of a layer with parts
        of several units are added with the first of them.

        Args:
            name: Name of units.
            gradients: Layer → its gradient as an (O, K, I) array, for each layer that has a part in the units.

        Raises:
            ScoreError: A score is ``nan``. In this case nothing is added. If processes share the units, the next
                ranking detects it, so that all of them raise.
        """
        scores = self.score_step(
            name,
            {
                layer: self.criteria[layer].score(self.weight(layer), gradient)
                for layer, gradient in gradients.items()
                if self.is_per_unit or self._owners[layer] == name
            },
        )
        for key, score in scores.items() if self.pattern.units[name].peers is None else ():
            chunk = score.reshape((-1,))
            Scores(key, partial(_once, chunk), chunk.shape[0]).refuse_nan()
        self.totals |= {key: self.accumulate(self.totals.get(key), score) for key, score in scores.items()}

    def score_step(self, name: str, scores: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the scores of one step, under the keys of `totals`, with array operations that can be compiled.

        Args:
            name: Name of units.
            scores: Layer → one score per weight as an (O, K, I) array, for each layer that has a part in the units.
        """
        if not self.is_per_unit:
            return {layer: score for layer, score in scores.items() if self._owners[layer] == name}
        return {name: concat_chunks(list(self._unit_chunks(name, scores, self.reduction)))}

    def accumulate(self, total: Array | None, score: Array) -> Array:
        """Return the sum of a total and the score of one more step, in new memory."""
        xp = namespace(score)
        dtype = getattr(xp, self.pattern.config.score_dtype)
        is_first = total is None or not self.decay
        if not is_first:
            score = xp.astype(total, score.dtype, copy=False) * self.decay + score
        # A criterion may return the gradient itself, whose memory belongs to the optimizer.
        return xp.astype(score, dtype, copy=is_first)

    def stream(self, name: str, alive: Mapping[str, Array] | None) -> Scores:
        """Return the stream of scores to rank the units `name` by.

        Raises:
            ScoreError: The criterion needs gradients, and there have been none.
        """
        units, flags = self.pattern.units[name], None if alive is None else alive[name]
        keys = [name] if self.is_per_unit else units.parts
        if self.needs_gradient and (missing := [key for key in keys if key not in self.totals]):
            raise ScoreError(
                f"layer {missing[0]!r}: {self.pattern.config.criterion!r} ranks by gradients, and none has reached "
                f"this layer. Train it first (start_step later), exclude it, or rank by 'magnitude'."
            )
        return units.rank(name, lambda: self._chunks(name), flags)

    def stream_equal(self, name: str, alive: Mapping[str, Array] | None) -> Scores:
        """Return equal scores of the units `name`, for a selection that prunes no more of them."""
        units, flags = self.pattern.units[name], None if alive is None else alive[name]
        weight = self.pattern.framework.to_array(self.weight(next(iter(units.parts))))
        xp = namespace(weight)
        equal = xp.zeros((units.count,), dtype=weight.dtype, device=array_api_compat.device(weight))
        return units.rank(name, partial(_once, equal), flags)

    @contextmanager
    def replace_totals(self, scores: Mapping[str, Array]) -> Iterator[None]:
        """Rank by other scores until the end of the block.

        Args:
            scores: Layer → scores as an (O, K, I) array, or with one axis and one score per unit.
        """
        before, self.totals = self.totals, {}
        try:
            for name, units in self.pattern.units.items():
                parts = {layer: scores[layer] for layer in units.parts}
                whole = next(iter(parts.values()))
                is_reduced = len(whole.shape) == 1
                self.totals |= {name: whole} if is_reduced else self.score_step(name, parts)
            yield
        finally:
            self.totals = before

    @contextmanager
    def cache(self) -> Iterator[None]:
        """Cache the scores that `stream` computes until the end of the block.

        The cache holds one score per unit and halves the time of a selection.
        """
        self._cache = {}
        try:
            yield
        finally:
            self._cache = None

    def _chunks(self, name: str) -> Iterator[Array]:
        if self._cache is None:
            return self._compute(name)
        if name not in self._cache:
            self._cache[name] = list(self._compute(name))
        return iter(self._cache[name])

    def _compute(self, name: str) -> Iterator[Array]:
        if name in self.totals and self.is_per_unit:
            total, run = self.pattern.framework.to_array(self.totals[name]), self.pattern.units[name].run
            step = max(1, CHUNK // run) * run
            yield from (total[start : start + step] for start in range(0, total.shape[0], step))
            return
        (layer, tiling), *others = self.pattern.units[name].parts.items()
        criterion = self.criteria[layer]
        if others or self._has_total(layer) or not (tiling.reduces_all and criterion.is_elementwise):
            scores = {layer: self._weight_score(layer) for layer in self.pattern.units[name].parts}
            yield from self._unit_chunks(name, scores, self.reduction)
            return

        def score_and_reduce(weights: Array, axes: tuple[int, ...]) -> Array:
            return self.reduction(criterion.score(weights, None), axes)

        yield from self._unit_chunks(
            name, {layer: self.pattern.framework.to_array(self.weight(layer))}, score_and_reduce
        )

    def _weight_score(self, layer: str) -> Array:
        if self._has_total(layer):
            return self.pattern.framework.to_array(self.totals[layer])
        return self.criteria[layer].score(self.pattern.framework.to_array(self.weight(layer)), None)

    def _has_total(self, layer: str) -> bool:
        """Whether scores have been stored per weight of a layer. Units can have the same name as a layer."""
        return not self.is_per_unit and layer in self.totals

    def _unit_chunks(self, name: str, scores: Mapping[str, Array], reduction: Reduction) -> Iterator[Array]:
        for chunk in self.pattern.units[name].scores(scores, reduction):
            yield self.unit_score(chunk)


def _once(chunk: Array) -> Iterator[Array]:
    yield chunk
