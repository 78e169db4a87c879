"""Pack tensors: store the blocks that are kept, and an index of where they belong.

A tensor is seen as output channels × kernel positions × input channels (O, K, I) and tiled into blocks. Stored are an
*index*, which says which blocks stay, and the numbers in these, one block after another in the order of the tiling.

Legend: O, K, I as in `WeightView`; B blocks; a *keep* array holds one boolean per block, of shape (rows, positions,
columns) of the tiling.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur._array import count_true
from secateur._wording import format_count
from secateur.artifact.dtypes import Bits
from secateur.errors import ArtifactError
from secateur.frameworks.view import WeightView
from secateur.patterns.nm import fill_nm_groups

__all__ = ["MAX_LISTED_BLOCKS", "BlockPacking", "GroupPacking", "Packing"]

Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
Place = tuple[slice, slice, slice]

BITS = 8
"""In a byte."""

INDEX_ALIGNMENT = 8
"""Bytes of an index are padded with zeros to a multiple of this."""

NUMBER = np.dtype("<u4")
"""A block's number in a list."""

MAX_LISTED_BLOCKS = (1 << 32) - 1
"""Blocks of a tensor that a list can have numbers for."""

CHUNK = 1 << 18
"""Weights packed or unpacked together, so that what that takes besides the result does not grow with the tensor."""


class Packing(ABC):
    """Which weights are stored, and how the index says where they belong.

    Attributes:
        block: Weights of a block along O, K and I.
    """

    block: tuple[int, int, int]

    @property
    def run(self) -> int:
        """Neighbouring blocks along I that are decoded together; it divides their number."""
        return 1

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in reports."""

    @abstractmethod
    def kept(self, view: WeightView) -> int:
        """Count the stored blocks."""

    @abstractmethod
    def index_bytes(self, view: WeightView) -> int:
        """Count the bytes of the index, including padding."""

    @abstractmethod
    def keep(self, nonzero: Flags) -> Flags:
        """Choose the blocks to store: all that are not zero, and others that the packing needs."""

    @abstractmethod
    def encode(self, keep: Flags) -> Bytes:
        """Encode the index, without padding."""

    @abstractmethod
    def decode(self, index: Bytes, start: int, stop: int) -> Numbers:
        """The inverse of `encode`: which blocks stay, in ascending order and counted from `start`.

        Args:
            index: The index.
            start: First block that is asked for; a multiple of `run` counted from the beginning of a row of the tiling.
            stop: Block behind the last.

        Raises:
            ArtifactError: The index is not valid.
        """

    @abstractmethod
    def check_padding(self, index: Bytes, view: WeightView) -> None:
        """Raise `ArtifactError` if the padding after the index is not zero."""

    def check(self, view: WeightView) -> None:
        """Raise `ArtifactError` if the blocks do not tile a weight."""
        sizes = view.canonical_shape
        if any(size % step for size, step in zip(sizes, self.block, strict=True)):
            raise ArtifactError(f"blocks of {self.block} do not tile a weight of {sizes} (O, K, I)")

    def grid(self, view: WeightView) -> tuple[int, int, int]:
        """Blocks along O, K and I."""
        rows, positions, columns = (size // step for size, step in zip(view.canonical_shape, self.block, strict=True))
        return rows, positions, columns

    def values_shape(self, view: WeightView) -> tuple[int, int]:
        """Shape of the stored numbers: blocks × weights of a block."""
        return self.kept(view), math.prod(self.block)

    def pack(self, bits: Bits, view: WeightView, nonzero: Flags) -> tuple[Bits, Bytes]:
        """Pack a tensor into its stored numbers and the index.

        Args:
            bits: The tensor's bit patterns as stored.
            view: Where its channels are.
            nonzero: Which blocks have any nonzero bits, in the shape of the tiling.
        """
        keep = self.keep(nonzero)
        index = self.encode(keep)
        padded = np.zeros(self.index_bytes(view), np.uint8)
        padded[: index.size] = index
        blocked = self._split_blocks(view.to_canonical(bits))
        values = np.empty((count_true(keep), math.prod(self.block)), bits.dtype)
        flags, taken = keep.reshape(-1), 0
        for place, start, stop in self._chunks(view):
            some = blocked[place].reshape(stop - start, -1)[flags[start:stop]]
            values[taken : taken + len(some)] = some
            taken += len(some)
        return values, padded

    def unpack(self, values: Bits, index: Bytes, view: WeightView) -> Bits:
        """The inverse of `pack`: the dense tensor as stored.

        Raises:
            ArtifactError: The index does not match the stored numbers.
        """
        self.check_padding(index, view)
        dense = np.empty(view.shape, values.dtype)
        blocked = self._split_blocks(view.to_canonical(dense))
        assert np.shares_memory(blocked, dense)
        taken = 0
        for place, start, stop in self._chunks(view):
            kept = self.decode(index, start, stop)
            some = values[taken : taken + len(kept)]
            taken += len(kept)
            if taken > len(values):
                break
            chunk = np.zeros((stop - start, values.shape[1]), values.dtype)
            chunk[kept] = some
            part = blocked[place]
            part[...] = chunk.reshape(part.shape)
        if taken != len(values):
            raise ArtifactError(f"the index does not keep the {format_count(len(values), 'block')} that are stored")
        return dense

    def _chunks(self, view: WeightView) -> Iterator[tuple[Place, int, int]]:
        """Parts of the tiling of about `CHUNK` weights: the slices, the first block and the end."""
        rows, positions, columns = self.grid(view)
        weights = math.prod(self.block)
        for row, end in _ranges(rows, CHUNK // (positions * columns * weights)):
            is_whole = end > row + 1 or positions * columns * weights <= CHUNK
            for position, last in _ranges(positions, positions if is_whole else CHUNK // (columns * weights)):
                is_whole = is_whole or last > position + 1 or columns * weights <= CHUNK
                step = columns if is_whole else CHUNK // weights // self.run * self.run
                for column, behind in _ranges(columns, max(step, self.run)):
                    start = (row * positions + position) * columns + column
                    count = (end - row) * (last - position) * (behind - column)
                    yield (slice(row, end), slice(position, last), slice(column, behind)), start, start + count

    def _split_blocks(self, canonical: Bits) -> Bits:
        """(O, K, I) as (rows, positions, columns, O in a block, K in a block, I in a block), of the same memory.

        Axes that a block has one weight of are left out.
        """
        outputs, positions, inputs = self.block
        sizes = canonical.shape
        split = canonical.reshape(
            sizes[0] // outputs, outputs, sizes[1] // positions, positions, sizes[2] // inputs, inputs
        )
        blocks = split.transpose(0, 2, 4, 1, 3, 5)
        return blocks.squeeze(tuple(3 + axis for axis, step in enumerate(self.block) if step == 1))


@dataclass(frozen=True, slots=True)
class BlockPacking(Packing):
    """Blocks of equal shape, of which those that are all zero are left out.

    Single weights are blocks too (a bitmask), and so are whole channels.

    Attributes:
        block: See `Packing`.
        stored: Blocks that stay.
        is_list: Whether the index is a list of the numbers of blocks that stay, four bytes each, in ascending order;
            or else a bitmap with one bit per block, the lowest bit of a byte first.
        label: The name in reports.

    Example:
        >>> view = WeightView(shape=(4, 2), output_axes=(0,), input_axes=(1,))
        >>> packing = BlockPacking((4, 1, 1), 1, is_list=False, label="4x1")
        >>> bits = np.array([[0, 1], [0, 2], [0, 3], [0, 4]], "<u2")
        >>> values, index = packing.pack(bits, view, np.array([[[False, True]]]))
        >>> values, index[0]
        (array([[1, 2, 3, 4]], dtype=uint16), np.uint8(2))
    """

    block: tuple[int, int, int]
    stored: int
    is_list: bool
    label: str = ""

    @property
    def name(self) -> str:
        """See `Packing.name`."""
        if self.block == (1, 1, 1):
            return "index list" if self.is_list else "bitmask"
        return f"{self.label}{'' if 'channel' in self.label else ' blocks'}{', listed' if self.is_list else ''}"

    def check(self, view: WeightView) -> None:
        """See `Packing.check`; a list has numbers for so many blocks only."""
        super(BlockPacking, self).check(view)
        if self.is_list and (count := math.prod(self.grid(view))) > MAX_LISTED_BLOCKS:
            raise ArtifactError(f"a list numbers {MAX_LISTED_BLOCKS:,} blocks at the most, found {count:,}")

    def kept(self, view: WeightView) -> int:  # noqa: ARG002
        """See `Packing.kept`."""
        return self.stored

    def index_bytes(self, view: WeightView) -> int:
        """See `Packing.index_bytes`."""
        return _pad(NUMBER.itemsize * self.stored if self.is_list else -(-math.prod(self.grid(view)) // BITS))

    def keep(self, nonzero: Flags) -> Flags:
        """See `Packing.keep`."""
        return nonzero

    def encode(self, keep: Flags) -> Bytes:
        """See `Packing.encode`."""
        if self.is_list:
            return np.flatnonzero(keep).astype(NUMBER).view(np.uint8)
        return np.packbits(keep, bitorder="little")

    def decode(self, index: Bytes, start: int, stop: int) -> Numbers:
        """See `Packing.decode`."""
        if not self.is_list:
            return np.flatnonzero(_unpack_bits(index, start, stop))
        numbers = index[: NUMBER.itemsize * self.stored].view(NUMBER)
        if start == 0 and np.any(numbers[1:] <= numbers[:-1]):
            raise ArtifactError("the numbers of the blocks that are stored must be in ascending order")
        first, last = np.searchsorted(numbers, np.array([start, stop], NUMBER))
        return numbers[first:last].astype(np.int64) - start

    def check_padding(self, index: Bytes, view: WeightView) -> None:
        """See `Packing.check_padding`."""
        if self.is_list:
            _check_rest(index, NUMBER.itemsize * self.stored * BITS)
        else:
            _check_rest(index, math.prod(self.grid(view)))


@dataclass(frozen=True, slots=True)
class GroupPacking(Packing):
    """N of every M consecutive input channels (N:M), with the place of each within its group.

    The index is a sequence of places, each in as many bits as M - 1 needs, the lowest bit first, N for each group in
    ascending order. If a group has fewer nonzero weights than N, its first zeros are stored too.

    Attributes:
        count: N, the weights stored of a group.
        group: M, the length of a group.

    Example:
        >>> view = WeightView(shape=(1, 4), output_axes=(0,), input_axes=(1,))
        >>> bits = np.array([[7, 0, 9, 0]], "<u2")
        >>> values, index = GroupPacking(2, 4).pack(bits, view, bits[:, None] != 0)
        >>> values.ravel(), bin(index[0])
        (array([7, 9], dtype=uint16), '0b1000')
    """

    count: int
    group: int

    @property
    def block(self) -> tuple[int, int, int]:  # type: ignore[override]
        """See `Packing.block`: single weights."""
        return 1, 1, 1

    @property
    def run(self) -> int:
        """See `Packing.run`: a group."""
        return self.group

    @property
    def name(self) -> str:
        """See `Packing.name`."""
        return f"{self.count}:{self.group}"

    def check(self, view: WeightView) -> None:
        """See `Packing.check`."""
        if view.canonical_shape[2] % self.group or self.count >= self.group:
            raise ArtifactError(f"{self.name} does not fit a weight of {view.canonical_shape} (O, K, I)")

    def kept(self, view: WeightView) -> int:
        """See `Packing.kept`."""
        return math.prod(view.canonical_shape) // self.group * self.count

    def index_bytes(self, view: WeightView) -> int:
        """See `Packing.index_bytes`."""
        return _pad(-(-self.kept(view) * self._place_bits // BITS))

    def keep(self, nonzero: Flags) -> Flags:
        """See `Packing.keep`.

        Raises:
            ArtifactError: A group has more weights than N.
        """
        groups = nonzero.reshape(-1, self.group)
        kept = np.empty_like(groups)
        for start in range(0, len(groups), self._groups_per_chunk):
            stop = start + self._groups_per_chunk
            kept[start:stop] = self._fill(groups[start:stop])
        return kept.reshape(nonzero.shape)

    def _fill(self, groups: Flags) -> Flags:
        """Keep the first zeros too of groups with fewer weights than N."""
        survivors = groups.sum(axis=1, dtype=np.int32)
        if survivors.max() > self.count:
            raise ArtifactError(f"a group of {self.group} keeps {survivors.max()}, and {self.name} stores {self.count}")
        kept: Flags = fill_nm_groups(groups, self.count, axis=1)
        return kept

    def encode(self, keep: Flags) -> Bytes:
        """See `Packing.encode`."""
        groups, bits = keep.reshape(-1, self.group), self._place_bits
        dtype = np.uint8 if bits <= BITS else np.uint32
        index = np.empty(-(-len(groups) * self.count * bits // BITS), np.uint8)
        filled = 0
        for start in range(0, len(groups), self._groups_per_chunk):
            places = np.flatnonzero(groups[start : start + self._groups_per_chunk]) % self.group
            part = _pack_numbers(places.astype(dtype), bits)
            index[filled : filled + part.size] = part
            filled += part.size
        return index

    def decode(self, index: Bytes, start: int, stop: int) -> Numbers:
        """See `Packing.decode`."""
        groups, bits = (stop - start) // self.group, self._place_bits
        first = start // self.group * self.count * bits
        flags = _unpack_bits(index, first, first + groups * self.count * bits)
        places = _read_numbers(flags.reshape(-1, bits)).reshape(groups, self.count)
        if np.any(places >= self.group) or np.any(places[:, 1:] <= places[:, :-1]):
            raise ArtifactError(f"the places in a group of {self.group} must be below that and in ascending order")
        numbers: Numbers = (np.arange(0, stop - start, self.group)[:, None] + places).reshape(-1)
        return numbers

    def check_padding(self, index: Bytes, view: WeightView) -> None:
        """See `Packing.check_padding`."""
        _check_rest(index, self.kept(view) * self._place_bits)

    @property
    def _groups_per_chunk(self) -> int:
        """A multiple of the bits of a byte, so that the places of a chunk fill whole bytes."""
        return max(1, CHUNK // self.group // BITS) * BITS

    @property
    def _place_bits(self) -> int:
        return (self.group - 1).bit_length()


def _ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover `count` places, each of `step` at the most and of one at least."""
    step = max(1, step)
    return ((start, min(start + step, count)) for start in range(0, count, step))


def _pad(size: int) -> int:
    return size + -size % INDEX_ALIGNMENT


def _pack_numbers(numbers: npt.NDArray[Any], bits: int) -> Bytes:
    """Pack numbers into that many bits each, the lowest bit first."""
    flags = np.empty((numbers.size, bits), np.uint8)
    for place in range(bits):
        flags[:, place] = numbers >> numbers.dtype.type(place) & 1
    return np.packbits(flags.reshape(-1), bitorder="little")


def _read_numbers(flags: Bytes) -> npt.NDArray[Any]:
    """Compute numbers from their bits, the lowest first, of shape (numbers, bits)."""
    bits = flags.shape[1]
    numbers: npt.NDArray[Any] = np.zeros(len(flags), np.uint8 if bits <= BITS else np.uint32)
    for place in range(bits):
        numbers = numbers | flags[:, place].astype(numbers.dtype) << numbers.dtype.type(place)
    return numbers


def _unpack_bits(index: Bytes, start: int, stop: int) -> Bytes:
    """Unpack the bits of an index from `start` up to `stop` into one byte each."""
    first = start // BITS
    return np.unpackbits(index[first : -(-stop // BITS)], bitorder="little")[start - first * BITS :][: stop - start]


def _check_rest(index: Bytes, used: int) -> None:
    """Raise `ArtifactError` if any bit after the used ones is set."""
    if np.unpackbits(index[used // BITS :], bitorder="little")[used % BITS :].any():
        raise ArtifactError("the padding after the index must be zero")
