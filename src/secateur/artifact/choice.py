"""Which packing makes a tensor smallest, and with that, which pattern its zeros have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur._array import count_true
from secateur.artifact.packing import MOST_LISTED, BlockPacking, GroupPacking, Packing
from secateur.errors import ConfigError, LayerError
from secateur.patterns.base import BasePattern, pattern_class
from secateur.patterns.layout import BlockLayout, Layout, TurnedLayout
from secateur.patterns.nm import SPECIFICATION
from secateur.patterns.view import WeightView

__all__ = ["MOST_SAVED", "Choice", "Zeros", "choose"]

Flags = npt.NDArray[np.bool_]

CHANNELS = ("1xchannel", "channelx1")

BLOCKS = ("32x32", "16x16", "32x1", "1x32", "8x8", "16x1", "1x16", "4x4", "8x1", "1x8", "4x1", "1x4", "2x1", "1x2")
"""Blocks that are looked for, the largest first."""

GROUPS = (2, 4, 8, 16, 32)
"""Lengths of groups in which N:M is looked for."""

MOST_IN_UINT8 = 255
"""Weights of a group that may be counted in one byte."""

SINGLE = "1x1"

MAX_CACHED = 1000
"""Tilings that are remembered."""

SLACK = 1.01
"""A pattern with more structure is taken if by no more than this factor more is stored."""

LEAST_ZEROS = 0.01
"""Share of single zeros that is called a pattern."""

MOST_SAVED = 1024
"""How many times smaller than dense a packed tensor is at the most, so that a small file never fills the memory."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a tensor is stored.

    Attributes:
        pattern: The strictest pattern that its zeros have, ``None``: none.
        packing: What stores it; ``None``: dense.
        size: Bytes stored.
    """

    pattern: str | None
    packing: Packing | None
    size: int


class Zeros:
    """Where a tensor has anything but zeros, and what tilings make of it.

    Args:
        view: Where the tensor's channels lie.
        nonzero: Booleans in the tensor's shape as stored.
    """

    def __init__(self, view: WeightView, nonzero: Flags) -> None:
        self.view = view
        self.canonical = np.ascontiguousarray(view.canonical(nonzero))
        self.count = count_true(self.canonical)

    def blocks(self, block: tuple[int, int, int]) -> Flags:
        """Which blocks hold anything, in the shape of the tiling."""
        found = self.canonical
        for axis, step in enumerate(block):
            found = _any_of_neighbours(found, step, axis)
        return found

    def survivors(self, group: int) -> int:
        """The most that any group of so many input channels holds."""
        counts = self.canonical.reshape(-1, group).view(np.uint8)
        while counts.shape[1] % 2 == 0 and group <= MOST_IN_UINT8:
            counts = counts[:, 0::2] + counts[:, 1::2]
        if counts.shape[1] == 1:
            return int(counts.max())
        return int(counts.sum(axis=1, dtype=np.uint32).max())


def choose(zeros: Zeros, size: int, wanted: str | None = None) -> Choice:
    """The smallest packing; of those that are nearly as small, the one with the most structure.

    Args:
        zeros: Where the tensor has zeros.
        size: Bytes of one number.
        wanted: A pattern that is looked for besides the usual ones.
    """
    whole = zeros.canonical.size * size
    packings: dict[Packing, str] = {}
    if zeros.count < zeros.canonical.size:
        packings = _packings(zeros, [*([wanted] if wanted else []), *CHANNELS, *BLOCKS])
    sizes = {packing: _stored_bytes(packing, zeros.view, size) for packing in packings}
    fitting = {packing: stored for packing, stored in sizes.items() if stored < whole <= stored * MOST_SAVED}
    least = min(fitting.values(), default=whole)
    packing = next((packing for packing, stored in fitting.items() if stored <= least * SLACK), None)
    return Choice(_strictest(zeros, packings), packing, sizes[packing] if packing else whole)


def _strictest(zeros: Zeros, packings: Mapping[Packing, str]) -> str | None:
    """The first pattern that keeps hardly more than what is not zero."""
    for packing, pattern in packings.items():
        if math.prod(packing.values_shape(zeros.view)) <= zeros.count * SLACK:
            is_worth_a_word = pattern != SINGLE or zeros.count <= zeros.canonical.size * (1 - LEAST_ZEROS)
            return pattern if is_worth_a_word else None
    return None


def _stored_bytes(packing: Packing, view: WeightView, size: int) -> int:
    return math.prod(packing.values_shape(view)) * size + packing.index_bytes(view)


def _packings(zeros: Zeros, specifications: Sequence[str]) -> dict[Packing, str]:
    """Every packing that leaves anything out → its pattern, those with the most structure first."""
    blocks = {
        packing: specification
        for specification in dict.fromkeys(specifications)
        for packing in _block_packings(zeros, specification)
    }
    groups = {packing: packing.name for packing in _group_packings(zeros, specifications)}
    return blocks | groups | dict.fromkeys(_block_packings(zeros, SINGLE), SINGLE)


def _block_packings(zeros: Zeros, specification: str) -> Iterator[Packing]:
    layout = layout_of(specification, zeros.view)
    if isinstance(layout, TurnedLayout):
        layout = BlockLayout(layout.shape, (1, 1, 1))
    if not isinstance(layout, BlockLayout):
        return
    kept = count_true(zeros.blocks(layout.block))
    if kept < layout.count:
        yield BlockPacking(layout.block, kept, is_list=False, label=specification)
        if layout.count <= MOST_LISTED:
            yield BlockPacking(layout.block, kept, is_list=True, label=specification)


def _group_packings(zeros: Zeros, specifications: Iterable[str]) -> Iterator[Packing]:
    wanted = [int(text.partition(":")[2]) for text in specifications if SPECIFICATION.fullmatch(text)]
    for group in (*wanted, *GROUPS):
        if zeros.view.canonical_shape[2] % group == 0 and 0 < (keep := zeros.survivors(group)) < group:
            yield GroupPacking(keep, group)


def layout_of(specification: str, view: WeightView) -> Layout | None:
    """How a pattern tiles a weight; ``None``: it does not fit."""
    try:
        return _layout(pattern_class(specification), specification, view)
    except ConfigError:
        return None


@lru_cache(maxsize=MAX_CACHED)
def _layout(pattern: type[BasePattern], specification: str, view: WeightView) -> Layout | None:
    """Cached: a model has many weights of few shapes, and a file may have very many small ones."""
    try:
        return pattern({"pattern": specification, "target_sparsity": 0.0}, {}).layout(view)
    except (ConfigError, LayerError):
        return None


def _any_of_neighbours(flags: Flags, step: int, axis: int) -> Flags:
    """Whether any of `step` neighbours is true."""
    while step > 1 and step % 2 == 0:
        even = tuple(slice(None) if place != axis else slice(0, None, 2) for place in range(flags.ndim))
        odd = tuple(slice(None) if place != axis else slice(1, None, 2) for place in range(flags.ndim))
        flags, step = flags[even] | flags[odd], step // 2
    if step == 1:
        return flags
    shape = (*flags.shape[:axis], flags.shape[axis] // step, step, *flags.shape[axis + 1 :])
    found: Any = np.logical_or.reduce(flags.reshape(shape), axis=axis + 1)
    return np.asarray(found, np.bool_)
