"""N:M patterns that are N:M along the output channels, too, such as 2:4-transposable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import array_api_compat
import numpy as np

from secateur._array import Array, concat_chunks, namespace, to_numpy
from secateur.errors import ConfigError, LayerError
from secateur.frameworks.view import WeightView
from secateur.patterns.base import register_pattern
from secateur.patterns.block import explain_misfit
from secateur.patterns.nm import NMPattern
from secateur.patterns.reduction import Reduction
from secateur.patterns.selection import Scores
from secateur.patterns.tile_selection import MAX_TILE, select_tiles
from secateur.patterns.tiling import BlockTiling, Tiling

__all__ = ["TileTiling", "TransposableNMPattern"]


@dataclass(frozen=True, slots=True)
class TileTiling(Tiling):
    """Single weights, numbered tile by tile, and row by row within a tile.

    Attributes:
        shape: (O, K, I) of the weight.
        size: M: number of output channels, and of input channels, of a tile. O and I are multiples of it.

    Examples:
        >>> tiling = TileTiling((2, 1, 4), 2)
        >>> scores = np.arange(8).reshape(2, 1, 4)
        >>> np.concatenate(list(tiling.unit_scores(scores, None)))
        array([0, 1, 4, 5, 2, 3, 6, 7])
    """

    shape: tuple[int, int, int]
    size: int
    tiles: BlockTiling = field(init=False)
    count: int = field(init=False)
    unit_size: int = field(init=False, default=1)
    run: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tiles", BlockTiling(self.shape, (self.size, 1, self.size)))
        object.__setattr__(self, "run", self.size**2)
        object.__setattr__(self, "count", self.tiles.count * self.run)

    @property
    def span(self) -> int:
        """See `Tiling.span`: the columns of a tile."""
        return self.size

    def unit_scores(self, scores: Array, reduction: Reduction | None) -> Iterator[Array]:  # noqa: ARG002
        """See `Tiling.unit_scores`; a unit is one weight, so nothing is reduced."""
        for chunk in self.tiles.chunks(scores):
            split = self.tiles.split_blocks(chunk)
            yield namespace(chunk).permute_dims(split, (0, 2, 4, 1, 3, 5)).reshape((-1,))

    def expand(self, keep: Array) -> Array:
        """See `Tiling.expand`."""
        rows, positions, columns = self.tiles.grid
        split = keep.reshape((rows, positions, columns, self.size, self.size))
        return namespace(keep).permute_dims(split, (0, 3, 1, 2, 4)).reshape(self.shape)


@register_pattern("N:M-transposable")
class TransposableNMPattern(NMPattern):
    """Keep exactly N of every M consecutive input channels, and of every M consecutive output channels.

    The transpose of such a weight is N:M as well, so that the gradient of the inputs can be computed from N:M, too. In
    each tile of M output × M input channels, the mask with the highest sum of scores is selected, exactly. With a
    target below 1 - N/M, the tiles whose pruned weights have the lowest scores are pruned, and the others stay dense.

    Source:
        Hubara et al., "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
        Masks", arXiv:2102.08124.

    Examples:
        >>> import torch
        >>> from secateur.patterns import get_pattern
        >>> pattern = get_pattern("1:2-transposable", {"fc": torch.nn.Linear(2, 2)})
        >>> pattern.masks({"fc": torch.tensor([[5.0, 4.0], [4.0, 1.0]])})["fc"]
        tensor([[False,  True],
                [ True, False]])
    """

    suffix = "-transposable"

    @property
    def group_size(self) -> int:
        """Number of weights of a tile."""
        return self.group**2

    @property
    def kept_size(self) -> int:
        """Number of weights that are kept of a tile."""
        return self.keep * self.group

    def tile(self, view: WeightView) -> Tiling:
        """Tile into squares of M output × M input channels; see `BasePattern.tile`."""
        outputs, _, inputs = view.canonical_shape
        if self.group > MAX_TILE:
            raise ConfigError(f"pattern {self.pattern!r}: M must be at most {MAX_TILE}, found {self.group}.")
        if inputs % self.group:
            raise LayerError(explain_misfit(inputs, "input channels", "M", self.group, self.pattern, view))
        if (outputs := outputs // view.groups) % self.group:
            channels = "output channels" if view.groups == 1 else f"output channels in each of {view.groups} groups"
            raise LayerError(explain_misfit(outputs, channels, "M", self.group, self.pattern, view))
        return TileTiling(view.canonical_shape, self.group)

    def grow_units(self, growth: Scores, count: int) -> Array:  # noqa: ARG002
        """Fill each tile with the best of its units that are not retained, until every row and column keeps N."""
        growth.refuse_nan()
        parts = []
        for scores, alive in growth.read():
            assert alive is not None
            retained = 1 - to_numpy(alive).astype(np.int8)
            parts.append(self._select_tiles(scores, retained) & alive)
        return concat_chunks(parts)

    def _select_best(self, scores: Array, alive: Array | None, stride: int) -> list[Array]:
        pruned = None if alive is None else to_numpy(alive).astype(np.int8) - 1
        return self._split_positions(self._select_tiles(scores, pruned), stride)

    def _select_tiles(self, scores: Array, priority: Array | None) -> Array:
        """Return one boolean per unit; `priority`: see `select_tiles`."""
        shape = (-1, self.group, self.group)
        ranks = None if priority is None else priority.reshape(shape)
        kept = select_tiles(to_numpy(scores).reshape(shape), self.keep, ranks).reshape(-1)
        return namespace(scores).asarray(kept, device=array_api_compat.device(scores))

    def _find_alive(self, xp: Any, groups: Array) -> Array:
        """Return a mask with all nonzero weights of each tile, or all of its weights if there is no such mask."""
        tiles = groups.reshape((-1, self.group_size))
        kept = self._select_tiles(xp.astype(tiles, xp.float32), None).reshape(tiles.shape)
        return (kept | xp.any(tiles & ~kept, axis=1, keepdims=True)).reshape((-1,))

    def _find_broken(self, kept: Array, stride: int) -> Array:  # noqa: ARG002
        xp = namespace(kept)
        tiles = xp.astype(kept.reshape((-1, self.group, self.group)), xp.uint8)
        counts = [xp.sum(tiles, axis=axis, dtype=xp.int32) for axis in (1, 2)]
        return xp.any((counts[0] > self.keep) | (counts[1] > self.keep), axis=1)

    def _describe_excess(self) -> str:
        return f"tiles of {self.group}x{self.group} weights keep more than {self.keep} in a row or column"
