from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from patterns import oracle
from secateur._array import transpose_flat
from secateur.errors import LayerError
from secateur.patterns import BlockTiling, OutputsLastTiling, Tiling, Units
from secateur.patterns.nm import NMTiling
from secateur.patterns.reduction import REDUCTIONS
from secateur.patterns.tiling import CHUNK

SUM = REDUCTIONS["sum"]

TILINGS = {
    "1x1": (1, 1, 1),
    "4x1": (4, 1, 1),
    "1x3": (1, 1, 3),
    "2x2": (2, 1, 2),
    "8x6": (8, 1, 6),
    "1xchannel": (1, 9, 6),
    "channelx1": (8, 9, 1),
    "2xchannel": (2, 9, 6),
    "channelx3": (8, 9, 3),
}
SHAPE = (8, 9, 6)


@pytest.mark.parametrize("chunk", [1, 7, 100, CHUNK])
@pytest.mark.parametrize("spec", TILINGS)
def test_units_are_those_of_the_oracle(spec: str, chunk: int, limit_chunks: Callable[[int], None]) -> None:
    limit_chunks(chunk)
    tiling, unit_of = BlockTiling(SHAPE, TILINGS[spec]), oracle.labels(spec, SHAPE)
    scores = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.float32)
    found = np.concatenate(list(tiling.unit_scores(scores, SUM)))
    assert found.tolist() == oracle.unit_scores(scores, unit_of, "sum")
    keep = np.random.default_rng(1).random(tiling.count) < 0.5
    np.testing.assert_array_equal(tiling.expand(keep), keep[unit_of])
    assert tiling.count * tiling.unit_size == scores.size


@pytest.mark.parametrize("block", [*TILINGS.values(), (2, 3, 2), (8, 1, 1), (4, 1, 3)])
def test_a_turned_mask_is_the_same_mask_as_it_lies(block: tuple[int, int, int]) -> None:
    tiling = BlockTiling(SHAPE, block)
    keep = np.random.default_rng(1).random(tiling.count) < 0.5
    found = BlockTiling(SHAPE, block, is_outputs_last=True).expand(keep)
    np.testing.assert_array_equal(found, tiling.expand(keep))
    assert block == (1, 1, 1) or found.transpose(1, 2, 0).flags.c_contiguous


@pytest.mark.parametrize("spec", TILINGS)
@pytest.mark.parametrize("is_outputs_last", [False, True])
def test_scores_that_the_reduction_makes_are_those_made_before(spec: str, *, is_outputs_last: bool) -> None:
    tilings: list[Tiling] = [
        BlockTiling(SHAPE, TILINGS[spec], is_outputs_last=is_outputs_last),
        OutputsLastTiling(SHAPE),
    ]
    weights = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for tiling in tilings:
        assert tiling.reduces_all
        for reduction in (SUM, REDUCTIONS["l2"], REDUCTIONS["max"]):
            before = tiling.unit_scores(abs(weights), reduction)
            within = tiling.unit_scores(weights, lambda values, axes, then=reduction: then(abs(values), axes))
            np.testing.assert_array_equal(np.concatenate(list(within)), np.concatenate(list(before)))


def test_a_tiling_that_reduces_nothing_says_so() -> None:
    class Strange(BlockTiling):
        def unit_scores(self, scores: Any, reduction: Any) -> Iterator[Any]:  # noqa: ARG002
            yield scores.reshape(-1)

    assert not NMTiling((2, 1, 8), 4).reduces_all
    assert not Strange((2, 1, 8), (1, 1, 1)).reduces_all


@pytest.mark.parametrize("block", [(1, 1, 64), (64, 1, 1), (1, 1, 1), (8, 1, 8)])
def test_chunks_are_small(block: tuple[int, int, int], limit_chunks: Callable[[int], None]) -> None:
    limit_chunks(512)
    tiling = BlockTiling((64, 1, 64), block)
    assert len(list(tiling.unit_scores(np.ones((64, 1, 64)), SUM))) == 64 * 64 // 512


@pytest.mark.parametrize("shape", [(1, 1, 12), (3, 1, 8), (2, 5, 4)])
@pytest.mark.parametrize("chunk", [1, 6, 1000])
def test_no_chunk_ends_inside_a_group(
    shape: tuple[int, int, int], chunk: int, limit_chunks: Callable[[int], None]
) -> None:
    limit_chunks(chunk)
    scores = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    chunks = list(NMTiling(shape, 4).unit_scores(scores, SUM))
    assert all(part.size % 4 == 0 for part in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), scores.ravel())


@pytest.mark.parametrize("shape", [(1, 1, 12), (3, 1, 8), (2, 5, 4)])
@pytest.mark.parametrize("chunk", [1, 6, 1000])
def test_weights_with_outputs_last_come_in_memory_order(
    shape: tuple[int, int, int], chunk: int, limit_chunks: Callable[[int], None]
) -> None:
    limit_chunks(chunk)
    memory = np.arange(np.prod(shape), dtype=np.float32)
    scores = memory.reshape((*shape[1:], shape[0])).transpose(2, 0, 1)
    for tiling in (OutputsLastTiling(shape), NMTiling(shape, 4, is_outputs_last=True)):
        chunks = list(tiling.unit_scores(scores, SUM))
        assert all(part.size % tiling.run == 0 for part in chunks)
        np.testing.assert_array_equal(np.concatenate(chunks), memory)
        np.testing.assert_array_equal(transpose_flat(memory, tiling.stride), scores.ravel())
        keep = memory % 3 == 0
        np.testing.assert_array_equal(tiling.expand(keep), scores % 3 == 0)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ((3, 1, 1), "8 output channels are not a multiple of 3"),
        ((1, 2, 1), "9 kernel positions are not a multiple of 2"),
        ((1, 1, 4), "6 input channels are not a multiple of 4"),
    ],
)
def test_a_misfit_is_refused(block: tuple[int, int, int], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        BlockTiling(SHAPE, block)


@pytest.mark.parametrize("block", [(1, 1, 4), (2, 1, 1), (2, 1, 4)])
def test_an_expanded_mask_is_memory_of_its_own(block: tuple[int, int, int]) -> None:
    mask = BlockTiling((2, 1, 4), block).expand(np.ones(8 // np.prod(block), dtype=bool))
    mask[0, 0, 0] = False
    assert mask.sum() == 7


def test_half_precision_neither_overflows_nor_rounds() -> None:
    scores = np.full((1, 1, 4), 60000.0, dtype=np.float16)
    (found,) = BlockTiling((1, 1, 4), (1, 1, 4)).unit_scores(scores, SUM)
    assert found.tolist() == [240000.0 - 4 * (60000.0 - float(scores[0, 0, 0]))]


def test_coupled_units_add_scores_and_share_a_mask() -> None:
    units = Units({"made": BlockTiling((2, 1, 3), (1, 1, 3)), "read": BlockTiling((4, 1, 2), (4, 1, 1))})
    scores = {"made": np.array([[[1.0, 1, 1]], [[2, 2, 2]]]), "read": np.tile([[10.0, 20]], (4, 1)).reshape(4, 1, 2)}
    assert np.concatenate(list(units.scores(scores, SUM))).tolist() == [43.0, 86.0]
    assert (units.count, units.unit_size) == (2, 7)
    masks = units.expand(np.array([True, False]))
    assert masks["made"].sum(axis=(1, 2)).tolist() == [3, 0]
    assert masks["read"].sum(axis=(0, 1)).tolist() == [4, 0]


def test_coupled_units_are_numbered_by_index_however_they_lie() -> None:
    units = Units({"one": BlockTiling((2, 1, 3), (1, 1, 1)), "other": OutputsLastTiling((2, 1, 3))})
    scores = np.arange(6.0).reshape(2, 1, 3)
    assert np.concatenate(list(units.scores({"one": scores, "other": scores}, SUM))).tolist() == [0, 2, 4, 6, 8, 10]
    assert units.stride == 1
    keep = np.array([True, True, False, False, True, False])
    for mask in units.expand(keep).values():
        np.testing.assert_array_equal(mask, keep.reshape(2, 1, 3))


def test_coupled_layers_need_as_many_units() -> None:
    parts = {"made": BlockTiling((2, 1, 3), (1, 1, 3)), "read": BlockTiling((3, 1, 1), (1, 1, 1))}
    with pytest.raises(LayerError, match=r"the same number of units, found \{'made': 2, 'read': 3\}"):
        Units(parts)
