"""Pack tensors: store the blocks that are not zero, and an index of their positions.

A tensor is viewed as output channels × kernel positions × input channels (O, K, I) and tiled into blocks. Two arrays
are stored: the *index*, which says which blocks are stored, and the numbers in these blocks, in the order of tiling.

Legend: O, K, I as in `WeightView`; B blocks; a *keep* array has one boolean per block, True if the block is stored, of
shape (rows, positions, columns) of the tiling.
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

BITS_PER_BYTE = 8

INDEX_ALIGNMENT = 8
"""The index is padded with zeros to a multiple of this many bytes."""

BLOCK_NUMBER = np.dtype("<u4")
"""Data type of the numbers of blocks in a list."""

MAX_LISTED_BLOCKS = (1 << 32) - 1
"""Maximum blocks of a tensor whose index is a list."""

CHUNK = 1 << 18
"""Weights to pack or unpack at once, so that temporary memory does not grow with the tensor."""


class Packing(ABC):
    """Defines which weights are stored, and how the index encodes their positions.

    Attributes:
        block: Size of a block along O, K and I.
    """

    block: tuple[int, int, int]

    @property
    def decode_step(self) -> int:
        """Adjacent blocks along I that must be decoded together; it divides the number of blocks along I."""
        return 1

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in reports."""

    @abstractmethod
    def count_stored_blocks(self, view: WeightView) -> int:
        """Count the stored blocks."""

    @abstractmethod
    def count_index_bytes(self, view: WeightView) -> int:
        """Count the bytes of the index, including padding."""

    @abstractmethod
    def select_blocks(self, nonzero: Flags) -> Flags:
        """Select the blocks to store: all that are not zero, and others that the packing requires."""

    @abstractmethod
    def encode(self, keep: Flags) -> Bytes:
        """Encode the index, without padding."""

    @abstractmethod
    def decode(self, index: Bytes, start: int, stop: int) -> Numbers:
        """Decode the numbers of the stored blocks in a range, in ascending order and counted from `start`.

        Args:
            index: The index.
            start: First block of the range; a multiple of `decode_step` from the beginning of a row of the tiling.
            stop: End of the range, exclusive.

        Raises:
            ArtifactError: The index is not valid.
        """

    @abstractmethod
    def check_padding(self, index: Bytes, view: WeightView) -> None:
        """Raise `ArtifactError` if the padding after the index is not zero."""

    def check_view(self, view: WeightView) -> None:
        """Raise `ArtifactError` if the blocks do not tile a weight."""
        sizes = view.canonical_shape
        if any(size % step for size, step in zip(sizes, self.block, strict=True)):
            raise ArtifactError(f"blocks of {self.block} do not tile a weight of {sizes} (O, K, I)")

    def compute_grid(self, view: WeightView) -> tuple[int, int, int]:
        """Compute the number of blocks along O, K and I."""
        rows, positions, columns = (size // step for size, step in zip(view.canonical_shape, self.block, strict=True))
        return rows, positions, columns

    def compute_values_shape(self, view: WeightView) -> tuple[int, int]:
        """Compute the shape of the stored numbers: blocks × weights per block."""
        return self.count_stored_blocks(view), math.prod(self.block)

    def pack(self, bits: Bits, view: WeightView, nonzero: Flags) -> tuple[Bits, Bytes]:
        """Pack a tensor into its stored numbers and the index.

        Args:
            bits: The bit patterns of the tensor, in its dense shape.
            view: The axes of the tensor.
            nonzero: Which blocks have nonzero bits, in the shape of the tiling.
        """
        keep = self.select_blocks(nonzero)
        index = self.encode(keep)
        padded = np.zeros(self.count_index_bytes(view), np.uint8)
        padded[: index.size] = index
        blocked = self._split_blocks(view.to_canonical(bits))
        values = np.empty((count_true(keep), math.prod(self.block)), bits.dtype)
        flags, filled = keep.reshape(-1), 0
        for place, start, stop in self._iterate_chunks(view):
            selected = blocked[place].reshape(stop - start, -1)[flags[start:stop]]
            values[filled : filled + len(selected)] = selected
            filled += len(selected)
        return values, padded

    def unpack(self, values: Bits, index: Bytes, view: WeightView) -> Bits:
        """Unpack the dense tensor; the inverse of `pack`.

        Raises:
            ArtifactError: The index does not match the stored numbers.
        """
        self.check_padding(index, view)
        dense = np.empty(view.shape, values.dtype)
        canonical = view.to_canonical(dense)
        is_copy = not np.shares_memory(canonical, dense)  # axes that are not adjacent in memory cannot be merged
        blocked = self._split_blocks(canonical)
        used = 0
        for place, start, stop in self._iterate_chunks(view):
            numbers = self.decode(index, start, stop)
            chunk_values = values[used : used + len(numbers)]
            used += len(numbers)
            if used > len(values):
                break
            chunk = np.zeros((stop - start, values.shape[1]), values.dtype)
            chunk[numbers] = chunk_values
            part = blocked[place]
            part[...] = chunk.reshape(part.shape)
        if used != len(values):
            raise ArtifactError(f"the index does not keep the {format_count(len(values), 'block')} that are stored")
        return np.ascontiguousarray(view.to_stored(canonical)) if is_copy else dense

    def _iterate_chunks(self, view: WeightView) -> Iterator[tuple[Place, int, int]]:
        """Split the tiling into chunks of about `CHUNK` weights; yield slices, first block and end of each."""
        rows, positions, columns = self.compute_grid(view)
        weights = math.prod(self.block)
        for row, end in _split_range(rows, CHUNK // (positions * columns * weights)):
            is_whole = end > row + 1 or positions * columns * weights <= CHUNK
            for position, last in _split_range(positions, positions if is_whole else CHUNK // (columns * weights)):
                is_whole = is_whole or last > position + 1 or columns * weights <= CHUNK
                step = columns if is_whole else CHUNK // weights // self.decode_step * self.decode_step
                for column, edge in _split_range(columns, max(step, self.decode_step)):
                    start = (row * positions + position) * columns + column
                    count = (end - row) * (last - position) * (edge - column)
                    yield (slice(row, end), slice(position, last), slice(column, edge)), start, start + count

    def _split_blocks(self, canonical: Bits) -> Bits:
        """Reshape (O, K, I) to (rows, positions, columns, block O, block K, block I), without copying.

        Block axes of size 1 are omitted.
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
    """Stores the blocks that are not all zero, where all blocks have the same shape.

    A block can be a single weight (a bitmask) or a whole channel.

    Attributes:
        block: See `Packing`.
        stored_blocks: Number of stored blocks.
        is_list: Whether the index is a list of the numbers of stored blocks, four bytes each, in ascending order. If
            not, it is a bitmap with one bit per block, the lowest bit of a byte first.
        label: The name in reports.

    Examples:
        >>> view = WeightView(shape=(4, 2), output_axes=(0,), input_axes=(1,))
        >>> packing = BlockPacking((4, 1, 1), 1, is_list=False, label="4x1")
        >>> bits = np.array([[0, 1], [0, 2], [0, 3], [0, 4]], "<u2")
        >>> values, index = packing.pack(bits, view, np.array([[[False, True]]]))
        >>> values, index[0]
        (array([[1, 2, 3, 4]], dtype=uint16), np.uint8(2))
    """

    block: tuple[int, int, int]
    stored_blocks: int
    is_list: bool
    label: str = ""

    @property
    def name(self) -> str:
        """See `Packing.name`."""
        if self.block == (1, 1, 1):
            return "index list" if self.is_list else "bitmask"
        return f"{self.label}{'' if 'channel' in self.label else ' blocks'}{', listed' if self.is_list else ''}"

    def check_view(self, view: WeightView) -> None:
        """See `Packing.check_view`; a list is limited to `MAX_LISTED_BLOCKS`."""
        super(BlockPacking, self).check_view(view)
        if self.is_list and (count := math.prod(self.compute_grid(view))) > MAX_LISTED_BLOCKS:
            raise ArtifactError(f"a list can number at most {MAX_LISTED_BLOCKS:,} blocks, found {count:,}")

    def count_stored_blocks(self, view: WeightView) -> int:  # noqa: ARG002
        """See `Packing.count_stored_blocks`."""
        return self.stored_blocks

    def count_index_bytes(self, view: WeightView) -> int:
        """See `Packing.count_index_bytes`."""
        return _pad(
            BLOCK_NUMBER.itemsize * self.stored_blocks
            if self.is_list
            else -(-math.prod(self.compute_grid(view)) // BITS_PER_BYTE)
        )

    def select_blocks(self, nonzero: Flags) -> Flags:
        """See `Packing.select_blocks`."""
        return nonzero

    def encode(self, keep: Flags) -> Bytes:
        """See `Packing.encode`."""
        if self.is_list:
            return np.flatnonzero(keep).astype(BLOCK_NUMBER).view(np.uint8)
        return np.packbits(keep, bitorder="little")

    def decode(self, index: Bytes, start: int, stop: int) -> Numbers:
        """See `Packing.decode`."""
        if not self.is_list:
            return np.flatnonzero(_unpack_bits(index, start, stop))
        numbers = index[: BLOCK_NUMBER.itemsize * self.stored_blocks].view(BLOCK_NUMBER)
        if start == 0 and np.any(numbers[1:] <= numbers[:-1]):
            raise ArtifactError("the numbers of the stored blocks must be in ascending order")
        first, last = np.searchsorted(numbers, np.array([start, stop], BLOCK_NUMBER))
        return numbers[first:last].astype(np.int64) - start

    def check_padding(self, index: Bytes, view: WeightView) -> None:
        """See `Packing.check_padding`."""
        if self.is_list:
            _check_zero_bits(index, BLOCK_NUMBER.itemsize * self.stored_blocks * BITS_PER_BYTE)
        else:
            _check_zero_bits(index, math.prod(self.compute_grid(view)))


@dataclass(frozen=True, slots=True)
class GroupPacking(Packing):
    """Stores N of every M consecutive input channels (N:M), with the position of each in its group.

    The index is a sequence of positions, N per group in ascending order, each in as many bits as M - 1 needs, the
    lowest bit first. If a group has fewer than N nonzero weights, its first zeros are stored too.

    Attributes:
        count: N, the stored weights per group.
        group: M, the length of a group.

    Examples:
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
    def decode_step(self) -> int:
        """See `Packing.decode_step`: the length of a group."""
        return self.group

    @property
    def name(self) -> str:
        """See `Packing.name`."""
        return f"{self.count}:{self.group}"

    def check_view(self, view: WeightView) -> None:
        """See `Packing.check_view`."""
        if view.canonical_shape[2] % self.group or self.count >= self.group:
            raise ArtifactError(f"{self.name} does not fit a weight of {view.canonical_shape} (O, K, I)")

    def count_stored_blocks(self, view: WeightView) -> int:
        """See `Packing.count_stored_blocks`."""
        return math.prod(view.canonical_shape) // self.group * self.count

    def count_index_bytes(self, view: WeightView) -> int:
        """See `Packing.count_index_bytes`."""
        return _pad(-(-self.count_stored_blocks(view) * self._position_bits // BITS_PER_BYTE))

    def select_blocks(self, nonzero: Flags) -> Flags:
        """See `Packing.select_blocks`.

        Raises:
            ArtifactError: A group has more than N weights.
        """
        groups = nonzero.reshape(-1, self.group)
        keep = np.empty_like(groups)
        for start in range(0, len(groups), self._groups_per_chunk):
            stop = start + self._groups_per_chunk
            keep[start:stop] = self._fill_groups(groups[start:stop])
        return keep.reshape(nonzero.shape)

    def _fill_groups(self, groups: Flags) -> Flags:
        """Also select the first zeros in groups with fewer than N weights."""
        survivors = groups.sum(axis=1, dtype=np.int32)
        if survivors.max() > self.count:
            raise ArtifactError(f"a group of {self.group} keeps {survivors.max()}, but {self.name} stores {self.count}")
        keep: Flags = fill_nm_groups(groups, self.count, axis=1)
        return keep

    def encode(self, keep: Flags) -> Bytes:
        """See `Packing.encode`."""
        groups, bits = keep.reshape(-1, self.group), self._position_bits
        dtype = np.uint8 if bits <= BITS_PER_BYTE else np.uint32
        index = np.empty(-(-len(groups) * self.count * bits // BITS_PER_BYTE), np.uint8)
        filled = 0
        for start in range(0, len(groups), self._groups_per_chunk):
            positions = np.flatnonzero(groups[start : start + self._groups_per_chunk]) % self.group
            part = _pack_numbers(positions.astype(dtype), bits)
            index[filled : filled + part.size] = part
            filled += part.size
        return index

    def decode(self, index: Bytes, start: int, stop: int) -> Numbers:
        """See `Packing.decode`."""
        groups, bits = (stop - start) // self.group, self._position_bits
        first = start // self.group * self.count * bits
        flags = _unpack_bits(index, first, first + groups * self.count * bits)
        positions = _read_numbers(flags.reshape(-1, bits)).reshape(groups, self.count)
        if np.any(positions >= self.group) or np.any(positions[:, 1:] <= positions[:, :-1]):
            raise ArtifactError(
                f"the positions in a group of {self.group} must be less than {self.group} and in ascending order"
            )
        numbers: Numbers = (np.arange(0, stop - start, self.group)[:, None] + positions).reshape(-1)
        return numbers

    def check_padding(self, index: Bytes, view: WeightView) -> None:
        """See `Packing.check_padding`."""
        _check_zero_bits(index, self.count_stored_blocks(view) * self._position_bits)

    @property
    def _groups_per_chunk(self) -> int:
        """A multiple of 8, so that the positions of a chunk fill whole bytes."""
        return max(1, CHUNK // self.group // BITS_PER_BYTE) * BITS_PER_BYTE

    @property
    def _position_bits(self) -> int:
        return (self.group - 1).bit_length()


def _split_range(count: int, step: int) -> Iterator[tuple[int, int]]:
    """Split ``range(count)`` into ranges of length `step`, or 1 if `step` is less."""
    step = max(1, step)
    return ((start, min(start + step, count)) for start in range(0, count, step))


def _pad(size: int) -> int:
    return size + -size % INDEX_ALIGNMENT


def _pack_numbers(numbers: npt.NDArray[Any], bits: int) -> Bytes:
    """Pack numbers into `bits` bits each, the lowest bit first."""
    flags = np.empty((numbers.size, bits), np.uint8)
    for bit in range(bits):
        flags[:, bit] = numbers >> numbers.dtype.type(bit) & 1
    return np.packbits(flags.reshape(-1), bitorder="little")


def _read_numbers(flags: Bytes) -> npt.NDArray[Any]:
    """Compute numbers from their bits, of shape (numbers, bits), the lowest bit first."""
    bits = flags.shape[1]
    numbers: npt.NDArray[Any] = np.zeros(len(flags), np.uint8 if bits <= BITS_PER_BYTE else np.uint32)
    for bit in range(bits):
        numbers = numbers | flags[:, bit].astype(numbers.dtype) << numbers.dtype.type(bit)
    return numbers


def _unpack_bits(index: Bytes, start: int, stop: int) -> Bytes:
    """Unpack the bits of an index from `start` to `stop` into one byte each."""
    first = start // BITS_PER_BYTE
    return np.unpackbits(index[first : -(-stop // BITS_PER_BYTE)], bitorder="little")[start - first * BITS_PER_BYTE :][
        : stop - start
    ]


def _check_zero_bits(index: Bytes, used: int) -> None:
    """Raise `ArtifactError` if a bit after the first `used` bits is set."""
    if np.unpackbits(index[used // BITS_PER_BYTE :], bitorder="little")[used % BITS_PER_BYTE :].any():
        raise ArtifactError("the padding after the index must be zero")
