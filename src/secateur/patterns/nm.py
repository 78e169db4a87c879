"""N:M patterns, such as 2:4, which keep N of every M consecutive weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import combinations
from typing import Any, ClassVar

from secateur._array import Array, concat_chunks, count_true, mask_values, namespace
from secateur.errors import ConfigError, LayerError
from secateur.frameworks.view import WeightView
from secateur.patterns.base import BasePattern, register_pattern
from secateur.patterns.block import explain_misfit
from secateur.patterns.budget import Budget
from secateur.patterns.reduction import REDUCTIONS, Reduction
from secateur.patterns.selection import Cut, Scores, keep_above, to_sort_keys
from secateur.patterns.tiling import BlockTiling, OutputsLastTiling, Tiling

__all__ = ["NMPattern", "fill_nm_groups"]

MAX_INT8_GROUP = 128
"""Largest group whose indices fit into int8."""

CHUNK = 1 << 18
"""Weights processed at a time by operations that need more memory than the weights."""

SPECIFICATION = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class NMTiling(Tiling):
    """Single weights, streamed in chunks of whole groups.

    Attributes:
        shape: (O, K, I) of the weight.
        group: Length of a group, in input channels. I is a multiple of it.
        is_outputs_last: Whether weights are streamed in memory order; see `OutputsLastTiling`.
    """

    shape: tuple[int, int, int]
    group: int
    is_outputs_last: bool = False
    base: BlockTiling | OutputsLastTiling = field(init=False)
    count: int = field(init=False)
    unit_size: int = field(init=False, default=1)
    stride: int = field(init=False)
    run: int = field(init=False)

    def __post_init__(self) -> None:
        blocks, outputs_last = BlockTiling(self.shape, (1, 1, self.group)), OutputsLastTiling(self.shape, self.group)
        object.__setattr__(self, "base", outputs_last if self.is_outputs_last else blocks)
        object.__setattr__(self, "count", outputs_last.count)
        object.__setattr__(self, "stride", outputs_last.stride if self.is_outputs_last else 1)
        object.__setattr__(self, "run", self.group * self.stride)

    @property
    def span(self) -> int:
        """See `Tiling.span`: a group."""
        return self.group

    def unit_scores(self, scores: Array, reduction: Reduction) -> Iterator[Array]:  # noqa: ARG002
        """See `Tiling.unit_scores`; a unit is one weight, so nothing is reduced."""
        for chunk in self.base.chunks(scores):
            yield chunk.reshape((-1,))

    def expand(self, keep: Array) -> Array:
        """See `Tiling.expand`."""
        return self.base.expand(keep) if self.is_outputs_last else keep.reshape(self.shape)


@register_pattern("N:M")
class NMPattern(BasePattern):
    """Keep exactly N of every M consecutive input channels.

    N is the number of kept weights, as in NVIDIA's 2:4. In Intel Neural Compressor, SparseGPT and others, it is the
    number of *pruned* weights. With a target below 1 - N/M, the groups whose pruned weights have the lowest scores are
    pruned, and the others stay dense.

    Source:
        Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378; Zhou et al., "Learning N:M
        Fine-grained Structured Sparse Neural Networks From Scratch", arXiv:2102.04010.

    Examples:
        >>> import torch
        >>> from secateur.patterns import get_pattern
        >>> pattern = get_pattern({"pattern": "2:4"}, {"fc": torch.nn.Linear(4, 1)})
        >>> pattern.masks({"fc": torch.tensor([[4.0, 1.0, 1.0, 1.0]])})["fc"]
        tensor([[ True,  True, False, False]])
    """

    suffix: ClassVar[str] = ""
    """The end of every specification of the class, after ``N:M``."""

    @classmethod
    def serves(cls, specification: str) -> bool:
        """Whether the specification has the form ``N:M``, with the suffix of the class."""
        counts = specification.removesuffix(cls.suffix)
        return SPECIFICATION.fullmatch(counts) is not None and specification == counts + cls.suffix

    @property
    def keep(self) -> int:
        """N: number of weights that are kept of every `group` consecutive input channels."""
        return self._parse_specification()[0]

    @property
    def group(self) -> int:
        """M: number of consecutive input channels of which `keep` are kept."""
        return self._parse_specification()[1]

    @property
    def group_size(self) -> int:
        """Number of weights that are selected together: M for N:M."""
        return self.group

    @property
    def kept_size(self) -> int:
        """Number of weights that are kept of each `group_size`."""
        return self.keep

    @property
    def unit_share(self) -> Fraction:
        """See `Specification.unit_share`."""
        keep, group = self._parse_specification()
        return Fraction(group - keep, group)

    def default_target_sparsity(self) -> float:
        """Return the sparsity if every group is pruned."""
        return float(self.unit_share)

    def count_budget_units(self, units: int) -> int:
        """Return the number of groups."""
        return units // self.group_size

    def tile(self, view: WeightView) -> Tiling:
        """Tile into groups along the input channels; see `BasePattern.tile`."""
        inputs = view.canonical_shape[2]
        if inputs % self.group:
            raise LayerError(explain_misfit(inputs, "input channels", "M", self.group, self.pattern, view))
        return NMTiling(view.canonical_shape, self.group, is_outputs_last=view.outputs_last)

    def rank_units(self, layer: Scores) -> Scores:
        """Return one score per group: the reduced scores of the weights that would be pruned."""
        alive = None if layer.alive is None else self._count_survivors(layer.alive, layer.stride) > self.kept_size
        count = self.count_budget_units(layer.count)
        return replace(layer, chunks=lambda: self._iterate_losses(layer), count=count, alive=alive)

    def cut_all(self, layer: Scores) -> Cut:
        """Return the cut that prunes all groups. It needs no ranking, because each group is pruned independently."""
        groups = self.count_budget_units(layer.count)
        return Cut(threshold=None, pruned=groups, below=groups, tied=0)

    def keep_units(self, layer: Scores, cut: Cut) -> Array:
        """Keep the best N of each pruned group, and every weight of the others."""
        prunes_all = cut.pruned == self.count_budget_units(layer.count)
        return self._keep_best_of_groups(layer, None if prunes_all else keep_above(self.rank_units(layer), cut))

    def grow_units(self, growth: Scores, count: int) -> Array:  # noqa: ARG002
        """Fill each group with the best of its units that are not retained, until it keeps N."""
        growth.refuse_nan()
        parts = []
        for scores, alive in growth.read():
            assert alive is not None
            xp = namespace(scores)
            keys = to_sort_keys(scores, None)
            retained_first = xp.where(alive, keys, xp.iinfo(keys.dtype).max)
            best = self.keep_best(self._split_positions(retained_first, growth.stride))
            parts.append(xp.stack(best, axis=1).reshape((-1,)) & alive)
        return concat_chunks(parts)

    def find_nonzero_units(self, nonzero: Mapping[str, Any]) -> dict[str, Array]:
        """Find the weights that count as kept. Zeros count as pruned only in groups with at most N nonzero weights.

        In these groups N weights are kept: the nonzero weights, then the first zeros.
        """
        alive = {}
        for name, kept in super().find_nonzero_units(nonzero).items():
            xp = namespace(kept)
            groups = kept.reshape((-1, self.group_size, self.units[name].stride))
            step = max(1, CHUNK // (self.group_size * self.units[name].stride))
            parts = [self._find_alive(xp, groups[start : start + step, ...]) for start in range(0, len(groups), step)]
            alive[name] = concat_chunks(parts or [kept])
        return alive

    def _find_alive(self, xp: Any, groups: Array) -> Array:
        survivors = xp.sum(xp.astype(groups, xp.int32), axis=1, keepdims=True)
        return (fill_nm_groups(groups, self.keep, axis=1) | (survivors > self.keep)).reshape((-1,))

    def count_pruned_units(self, sparsity: float) -> int:
        """Return how many weights are pruned at a sparsity, over all layers."""
        return super().count_pruned_units(sparsity) * (self.group_size - self.kept_size)

    def violations(
        self, masks: Mapping[str, Any], sparsity: float | None = None, *, counts: Mapping[str, int] | None = None
    ) -> dict[str, str]:
        """Find layers with groups that are neither N:M nor dense, or that are dense although all must be pruned."""
        prunes_all = self._prunes_all(sparsity, counts)
        wrong: dict[str, str] = {}
        for name, kept in self.find_kept_units(masks).items():
            may_be_dense = self.is_frozen(name) or not prunes_all
            broken = self._find_broken(kept, self.units[name].stride)
            if may_be_dense:
                broken = broken & (self._count_survivors(kept, self.units[name].stride) < self.group_size)
            if count := count_true(broken):
                reason = f"{count} of {broken.shape[0]} {self._describe_excess()}"
                wrong |= dict.fromkeys(self.units[name].parts, reason + (" but not all" if may_be_dense else ""))
        return wrong

    def _find_broken(self, kept: Array, stride: int) -> Array:
        """Return one boolean per group: whether it keeps more than the pattern."""
        return self._count_survivors(kept, stride) > self.keep

    def _describe_excess(self) -> str:
        return f"groups of {self.group} weights keep more than {self.keep}"

    def _keep_best_of_groups(self, layer: Scores, dense_groups: Array | None = None) -> Array:
        layer.refuse_nan()
        parts, start = [], 0
        for scores, alive in layer.read():
            stop = start + scores.shape[0] // self.group_size
            best = self._select_best(scores, alive, layer.stride)
            if dense_groups is not None:
                dense = dense_groups[start:stop].reshape((-1, layer.stride))
                best = [position | dense for position in best]
            kept = namespace(scores).stack(best, axis=1).reshape((-1,))
            parts.append(kept if alive is None else kept & alive)
            start = stop
        return concat_chunks(parts)

    def _iterate_losses(self, layer: Scores) -> Iterator[Array]:
        """Yield, in chunks, the reduced scores of the weights that each group would lose."""
        reduction = REDUCTIONS.find(self.reduction)
        mask_kept = _fill_with_minimum if self.reduction == "max" else mask_values
        for scores, alive in layer.read():
            best = self._select_best(scores, alive, layer.stride)
            if alive is not None:
                alive_by_position = self._split_positions(alive, layer.stride)
                best = [kept | ~flags for kept, flags in zip(best, alive_by_position, strict=True)]
            positions = self._split_positions(scores, layer.stride)
            losses = [mask_kept(values, ~kept) for kept, values in zip(best, positions, strict=True)]
            yield reduction(namespace(scores).stack(losses), (0,)).reshape((-1,))

    def _count_survivors(self, alive: Array, stride: int) -> Array:
        """Count the weights of each group that are kept."""
        xp = namespace(alive)
        flags = xp.astype(alive.reshape((-1, self.group_size, stride)), xp.uint8)
        return xp.sum(flags, axis=1, dtype=xp.int32).reshape((-1,))

    def _split_positions(self, values: Array, stride: int) -> list[Array]:
        """Return, for each position in a group, the values over all groups; `stride`: see `Tiling`."""
        groups = values.reshape((-1, self.group_size, stride))
        positions = [groups[:, position, :] for position in range(self.group_size)]
        # Computing with strided values is slow.
        return positions if stride > 1 else [namespace(values).asarray(strided, copy=True) for strided in positions]

    def _select_best(self, scores: Array, alive: Array | None, stride: int) -> list[Array]:
        """Return, for each position in a group, whether it is among the best N; ties go to the lower index."""
        return self.keep_best(self._split_positions(scores if alive is None else to_sort_keys(scores, alive), stride))

    def keep_best(self, positions: Sequence[Array]) -> list[Array]:
        """Select the N best weights of each group; ties go to the lower index.

        Args:
            positions: For each position in a group, the scores over all groups; not ``nan``.

        Returns:
            For each position, one boolean per group.
        """
        xp, keep, group = namespace(positions[0]), self.keep, len(positions)
        number = xp.int8 if group <= MAX_INT8_GROUP else xp.int16
        # For each position, the number of better ones. Later positions count as better until they are compared.
        better: list[Any] = [group - 1 - position for position in range(group)]
        for left, right in combinations(range(group), 2):
            flags = positions[left] >= positions[right]
            wins = flags.view(xp.int8) if number == xp.int8 else xp.astype(flags, number)
            better[right] = better[right] + wins
            better[left] = better[left] - wins
        return [count < keep for count in better]

    def _parse_specification(self) -> tuple[int, int]:
        if not self.serves(self.pattern):
            raise ConfigError(
                f"pattern {self.pattern!r} is a pattern type, not a specification. Use 2:4{self.suffix}, for example."
            )
        keep, group = (int(number) for number in self.pattern.removesuffix(self.suffix).split(":"))
        if keep >= group:
            raise ConfigError(
                f"pattern {self.pattern!r}: N must be less than M, because N of every M weights are kept. "
                f"Use 2:4{self.suffix}, for example."
            )
        return keep, group

    def _make_budget(self) -> Budget:
        share = self.unit_share
        if self.target_sparsity > float(share):
            raise ConfigError(
                f"target_sparsity={self.target_sparsity} is out of reach for {self.pattern!r}, which keeps {self.keep} "
                f"of every {self.group} weights and so prunes at most {float(share):.6g}. Lower the target or N."
            )
        return super()._make_budget()


def fill_nm_groups(nonzero: Array, keep: int, *, axis: int = -1) -> Array:
    """Select exactly `keep` weights of each group: all nonzero weights, then the first zeros.

    Groups that have more than `keep` nonzero weights do not change.

    Args:
        nonzero: Booleans, ``True`` where a weight is not zero.
        keep: N of N:M.
        axis: The axis of the weights of a group.

    Examples:
        >>> import numpy as np
        >>> fill_nm_groups(np.array([[False, False, False, True]]), 2)
        array([[ True, False, False,  True]])
    """
    xp = namespace(nonzero)
    missing = keep - xp.sum(xp.astype(nonzero, xp.uint8), axis=axis, keepdims=True, dtype=xp.int32)
    if not bool(xp.any(missing > 0)):
        return nonzero
    return nonzero | (xp.cumulative_sum(xp.astype(~nonzero, xp.int32), axis=axis, dtype=xp.int32) <= missing)


def _fill_with_minimum(values: Array, keep: Array) -> Array:
    return namespace(values).where(keep, values, -math.inf)
