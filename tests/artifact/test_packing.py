"""Packings: nothing is lost, and what stands in the file is what the page on the format says."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.spec_reader import read
from secateur.artifact import Artifact
from secateur.artifact.dtypes import DTYPES, Bits
from secateur.artifact.packing import BlockPacking, GroupPacking, Packing
from secateur.artifact.packing_choice import MAX_COMPRESSION, choose_packing
from secateur.artifact.source import Source, SourceTensor
from secateur.artifact.writer import write
from secateur.errors import ArtifactError
from secateur.patterns import WeightView, get_pattern
from secateur.patterns.recognition import NonzeroMask

PATTERNS = ("1x1", "4x1", "1x4", "2x2", "4x4", "1xchannel", "channelx1", "2:4", "1:4", "4:8", "3:8")

VIEWS = {
    "linear": WeightView(shape=(16, 24), output_axes=(0,), input_axes=(1,)),
    "turned": WeightView(shape=(24, 16), output_axes=(1,), input_axes=(0,)),
    "conv": WeightView(shape=(16, 8, 3, 1), output_axes=(0,), kernel_axes=(2, 3), input_axes=(1,)),
    "keras_conv": WeightView(shape=(3, 1, 8, 16), output_axes=(3,), kernel_axes=(0, 1), input_axes=(2,)),
    "grouped": WeightView(shape=(16, 8, 3), output_axes=(0,), kernel_axes=(2,), input_axes=(1,), groups=4),
    "stacked": WeightView.from_stack((3, 16, 8)),
    "stacked, inputs first": WeightView.from_stack((3, 8, 16), is_transposed=True),
    "einsum": WeightView(shape=(8, 4, 4), output_axes=(1, 2), input_axes=(0,)),
}


def random_bits(view: WeightView, dtype: str, seed: int = 0) -> Bits:
    """Bit patterns of any kind, none of them all zero."""
    size = DTYPES[dtype].size
    raw = np.random.default_rng(seed).integers(1, 255, (math.prod(view.shape), size), dtype=np.uint8)
    return raw.view(DTYPES[dtype].bits).reshape(view.shape)


def pruned_bits(pattern: str, view: WeightView, dtype: str, sparsity: float | None = 0.5, seed: int = 0) -> Bits:
    """The same, zero where a pattern prunes."""
    rule = get_pattern({"pattern": pattern, "target_sparsity": sparsity}, {"layer": view}, "array")
    scores = np.random.default_rng(seed).random(view.shape, dtype=np.float32)
    mask: Any = rule.masks({"layer": scores})["layer"]
    return random_bits(view, dtype, seed) * mask


def saved(folder: Path, **tensors: tuple[str, WeightView | None, Bits]) -> Path:
    source = Source(
        tensors={
            name: SourceTensor(dtype=dtype, shape=bits.shape, read=lambda bits=bits: bits, view=view)  # type: ignore[misc]
            for name, (dtype, view, bits) in tensors.items()
        }
    )
    write(source, folder)
    return folder


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_bit_comes_back(pattern: str, view: WeightView, tmp_path: Path) -> None:
    sparsity = None if ":" in pattern else 0.75
    bits = {dtype: pruned_bits(pattern, view, dtype, sparsity) for dtype in DTYPES}
    artifact = Artifact(saved(tmp_path / "saved", **{dtype: (dtype, view, bits[dtype]) for dtype in DTYPES}))
    for dtype, expected in bits.items():
        loaded = artifact[dtype]
        assert loaded.dtype == dtype
        assert np.array_equal(loaded.bits, expected), dtype
        if DTYPES[dtype].is_float:
            assert artifact.manifest.tensors[dtype].stored_bytes < expected.nbytes, dtype


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_reader_written_from_the_page_on_the_format_agrees(pattern: str, view: WeightView, tmp_path: Path) -> None:
    tensors = {
        "half": ("BF16", view, pruned_bits(pattern, view, "BF16", None if ":" in pattern else 0.75)),
        "most": ("F32", view, pruned_bits("1x1", view, "F32", 0.97)),
        "dense": ("F16", view, random_bits(view, "F16")),
        "counts": ("I64", None, np.arange(5, dtype="<u8")),
    }
    folder = saved(tmp_path / "saved", **tensors)
    assert read(folder) == {name: bits.tobytes() for name, (_, _, bits) in tensors.items()}


def test_the_example_of_the_page_holds() -> None:
    view = WeightView(shape=(1, 8), output_axes=(0,), input_axes=(1,))
    bits = np.array([[0, 7, 0, 9, 5, 0, 0, 0]], "<u2")
    values, index = GroupPacking(2, 4).pack(bits, view, bits.reshape(1, 1, 8) != 0)
    assert values.ravel().tolist() == [7, 9, 5, 0]
    assert index.tolist() == [0b01001101, 0, 0, 0, 0, 0, 0, 0]


@given(
    outputs=st.integers(1, 6),
    positions=st.integers(1, 3),
    groups=st.integers(1, 3),
    group=st.integers(2, 13),
    keep=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_groups_of_any_length_come_back(
    outputs: int, positions: int, groups: int, group: int, keep: int, seed: int
) -> None:
    keep = min(keep, group - 1)
    view = WeightView(shape=(outputs, positions, groups * group), output_axes=(0,), kernel_axes=(1,), input_axes=(2,))
    rng = np.random.default_rng(seed)
    survivors = rng.integers(0, keep + 1, outputs * positions * groups)
    nonzero = np.array([rng.permutation(np.arange(group) < count) for count in survivors]).reshape(view.shape)
    bits = np.where(nonzero, rng.integers(1, 1 << 16, view.shape), 0).astype("<u2")
    packing = GroupPacking(keep, group)
    values, index = packing.pack(bits, view, nonzero)
    assert values.shape == packing.compute_values_shape(view)
    assert index.size == packing.count_index_bytes(view)
    assert np.array_equal(packing.unpack(values, index, view), bits)


@given(st.data())
def test_blocks_of_any_shape_come_back(data: st.DataObject) -> None:
    block = tuple(data.draw(st.integers(1, 4)) for _ in range(3))
    grid = tuple(data.draw(st.integers(1, 5)) for _ in range(3))
    shape = tuple(count * step for count, step in zip(grid, block, strict=True))
    view = WeightView(shape=shape, output_axes=(0,), kernel_axes=(1,), input_axes=(2,))
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=math.prod(grid), max_size=math.prod(grid))), bool)
    keep = keep.reshape(grid)
    bits = random_bits(view, "F32") * keep.repeat(block[0], 0).repeat(block[1], 1).repeat(block[2], 2)
    for is_list in (False, True):
        packing = BlockPacking((block[0], block[1], block[2]), int(keep.sum()), is_list=is_list, label="any")
        values, index = packing.pack(bits, view, keep)
        assert np.array_equal(packing.unpack(values, index, view), bits)


@pytest.mark.parametrize(
    "packing",
    [BlockPacking((1, 1, 1), 1536, is_list=False), BlockPacking((2, 1, 4), 192, is_list=True), GroupPacking(2, 4)],
)
def test_unpacking_in_chunks_is_unpacking_at_once(packing: Packing, limit_chunks: Callable[[int], None]) -> None:
    view = WeightView(shape=(48, 8, 8), output_axes=(0,), kernel_axes=(1,), input_axes=(2,))
    keep = np.zeros(packing.compute_grid(view), bool)
    keep.reshape(-1, math.prod(packing.compute_grid(view)) // packing.count_stored_blocks(view))[:, 0] = True
    if isinstance(packing, GroupPacking):
        keep = np.tile([True, False, False, True], keep.size // 4).reshape(keep.shape)
    spread = keep
    for axis, step in enumerate(packing.block):
        spread = spread.repeat(step, axis)
    bits = random_bits(view, "BF16") * spread
    values, index = packing.pack(bits, view, keep)
    whole = packing.unpack(values, index, view)
    limit_chunks(100)
    assert np.array_equal(packing.unpack(values, index, view), whole)
    assert np.array_equal(whole, bits)


# What is chosen.


@pytest.mark.parametrize(
    ("pattern", "sparsity", "dtype", "packing", "share"),
    [
        ("2:4", None, "BF16", "2:4", 9 / 16),
        ("2:4", None, "F32", "2:4", 17 / 32),
        ("1:4", None, "BF16", "1:4", 9 / 32),
        ("4:8", None, "BF16", "bitmask", 9 / 16),
        ("4x1", 0.75, "BF16", "4x1 blocks", 1 / 4 + 1 / 64),
        ("16x16", 0.75, "F32", "16x16 blocks", 1 / 4 + 1 / 8192),
        ("1x1", 0.5, "BF16", "bitmask", 1 / 2 + 1 / 16),
        ("1x1", 0.984375, "F32", "index list", 2 / 64),
        ("1xchannel", 0.5, "F32", "1xchannel", 1 / 2 + 1 / 16384),
        ("channelx1", 0.5, "F32", "channelx1", 1 / 2 + 1 / 16384),
        ("2:4", 0.25, "BF16", "bitmask", 3 / 4 + 1 / 16),
    ],
)
def test_the_smallest_packing_is_chosen(pattern: str, sparsity: float, dtype: str, packing: str, share: float) -> None:
    view = WeightView(shape=(512, 512), output_axes=(0,), input_axes=(1,))
    bits = pruned_bits(pattern, view, dtype, sparsity)
    choice = choose_packing(NonzeroMask(view, bits != 0), DTYPES[dtype].size)
    assert choice.packing is not None
    assert choice.pattern == (pattern if sparsity != 0.25 else "1x1")
    assert choice.packing.name == packing
    assert choice.size / bits.nbytes == pytest.approx(share)
    values, index = choice.packing.pack(bits, view, NonzeroMask(view, bits != 0).reduce_blocks(choice.packing.block))
    assert choice.size == values.nbytes + index.nbytes


def test_a_dense_weight_stays_dense() -> None:
    view = VIEWS["linear"]
    choice = choose_packing(NonzeroMask(view, np.ones(view.shape, bool)), 2)
    assert (choice.packing, choice.pattern, choice.size) == (None, None, 2 * 16 * 24)


@pytest.mark.parametrize("side", [64, 4096])
def test_a_weight_of_zeros_is_never_packed_beyond_the_bound(side: int) -> None:
    view = WeightView(shape=(side, side), output_axes=(0,), input_axes=(1,))
    choice = choose_packing(NonzeroMask(view, np.zeros(view.shape, bool)), 2)
    assert side * side * 2 / MAX_COMPRESSION <= choice.size < side * side * 2


def test_minus_zero_is_a_number_for_packings(tmp_path: Path) -> None:
    view = VIEWS["linear"]
    bits = pruned_bits("2:4", view, "F32", None)
    bits[bits == 0] = 0x8000_0000
    artifact = Artifact(saved(tmp_path / "saved", weight=("F32", view, bits)))
    entry = artifact.entry("weight")
    assert np.array_equal(artifact["weight"].bits, bits)
    assert (entry.zeros, entry.negative_zeros, entry.packing_name) == (192, 192, "dense")


# What is refused when unpacking; in a file the digests would be told first.


def broken(packing: Packing, change: Any, match: str) -> None:
    view = VIEWS["linear"]
    bits = pruned_bits("2:4", view, "BF16", None)
    packing = packing if isinstance(packing, GroupPacking) else BlockPacking((1, 1, 1), 192, is_list=packing.is_list)  # type: ignore[attr-defined]
    values, index = packing.pack(bits, view, bits.reshape(view.canonical_shape) != 0)
    assert np.array_equal(packing.unpack(values, index, view), bits)
    change(index)
    with pytest.raises(ArtifactError, match=match):
        packing.unpack(values, index, view)


def set_byte(place: int, value: int) -> Any:
    return lambda index: index.__setitem__(place, value)


@pytest.mark.parametrize("value", [0b0000, 0b0101, 0b0110])
def test_places_that_do_not_ascend_are_refused(value: int) -> None:
    broken(GroupPacking(2, 4), set_byte(0, value << 4 | 0b0100), "ascending order")


def test_a_bitmap_with_another_count_is_refused() -> None:
    broken(BlockPacking((1, 1, 1), 192, is_list=False), set_byte(0, 0xFF), "does not keep the 192 blocks")
    broken(BlockPacking((1, 1, 1), 192, is_list=False), set_byte(0, 0x00), "does not keep the 192 blocks")


def test_a_list_that_does_not_ascend_or_goes_too_far_is_refused() -> None:
    first_again = lambda index: index.view("<u4").__setitem__(1, index.view("<u4")[0])  # noqa: E731
    beyond = lambda index: index.view("<u4").__setitem__(191, 10_000)  # noqa: E731
    broken(BlockPacking((1, 1, 1), 192, is_list=True), first_again, "ascending order")
    broken(BlockPacking((1, 1, 1), 192, is_list=True), beyond, "does not keep the 192 blocks")


@pytest.mark.parametrize("packing", [GroupPacking(2, 4), BlockPacking((1, 1, 1), 6, is_list=False)])
def test_padding_is_zero(packing: Packing) -> None:
    view = WeightView(shape=(3, 4), output_axes=(0,), input_axes=(1,))
    bits = np.array([[1, 0, 2, 0]] * 3, "<u2")
    values, index = packing.pack(bits, view, bits.reshape(3, 1, 4) != 0)
    index[-1] = 0x80
    with pytest.raises(ArtifactError, match="padding"):
        packing.unpack(values, index, view)


def test_the_padding_of_a_list_is_zero() -> None:
    view = WeightView(shape=(3, 4), output_axes=(0,), input_axes=(1,))
    packing = BlockPacking((1, 1, 4), 1, is_list=True)
    bits = np.array([[0] * 4, [1] * 4, [0] * 4], "<u2")
    values, index = packing.pack(bits, view, np.array([[[False]], [[True]], [[False]]]))
    assert index.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    index[4] = 1
    with pytest.raises(ArtifactError, match="padding"):
        packing.unpack(values, index, view)
