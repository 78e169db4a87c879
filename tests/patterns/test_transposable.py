"""Transposable N:M: the best mask of each tile, against all masks, and in every place that reads masks."""

from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from patterns.cases import array_pattern, view
from secateur.errors import ConfigError
from secateur.frameworks import WeightView
from secateur.patterns import get_pattern
from secateur.patterns.tile_selection import select_tiles

Bools = npt.NDArray[np.bool_]


def list_masks(size: int, keep: int) -> list[Bools]:
    """All masks of a tile, those that keep lower indices first."""
    rows = [np.isin(np.arange(size), columns) for columns in combinations(range(size), keep)]
    masks = (np.stack(chosen) for chosen in product(rows, repeat=size))
    return [mask for mask in masks if (mask.sum(axis=0) == keep).all()]


def split_tiles(mask: Any, size: int) -> Any:
    """An (O, K, I) array as tiles of (O, I)."""
    outputs, positions, inputs = mask.shape
    tiles = mask.reshape(outputs // size, size, positions, inputs // size, size).transpose(0, 2, 3, 1, 4)
    return tiles.reshape(-1, size, size)


@pytest.mark.parametrize(("size", "keep", "count"), [(2, 1, 2), (3, 1, 6), (3, 2, 6), (4, 1, 24), (4, 2, 90)])
@pytest.mark.parametrize("most", [1, 3, 1000])
def test_the_mask_is_the_first_of_the_best(size: int, keep: int, count: int, most: int) -> None:
    masks = np.array(list_masks(size, keep))
    assert len(masks) == count
    scores = np.random.default_rng(most).integers(-most, most + 1, (60, size, size)).astype(np.float32)
    best = (scores[:, None] * masks).sum(axis=(2, 3)).argmax(axis=1)
    np.testing.assert_array_equal(select_tiles(scores, keep), masks[best])


def find_maximum(tile: Any, keep: int) -> int:
    """The highest sum of a mask: row by row, the best for every number of weights that columns can still keep."""
    best = {(keep,) * len(tile): 0}
    for row in tile.astype(int).tolist():
        further: dict[tuple[int, ...], int] = {}
        for (room, total), columns in product(best.items(), combinations(range(len(row)), keep)):
            left = tuple(count - (column in columns) for column, count in enumerate(room))
            if min(left) >= 0:
                further[left] = max(further.get(left, -(1 << 40)), total + sum(row[column] for column in columns))
        best = further
    return best[(0,) * len(tile)]


@pytest.mark.parametrize(("size", "keep"), [(5, 2), (6, 3), (7, 1), (7, 6)])
@pytest.mark.parametrize("most", [2, 1 << 20])
def test_larger_tiles_have_the_maximum(size: int, keep: int, most: int) -> None:
    scores = np.random.default_rng(size).integers(-most, most, (4, size, size)).astype(np.float32)
    for tile, mask in zip(scores, select_tiles(scores, keep), strict=True):
        assert (mask.sum(axis=0) == keep).all()
        assert (mask.sum(axis=1) == keep).all()
        assert tile[mask].astype(np.float64).sum() == find_maximum(tile, keep)


def test_one_tile_is_enough_to_see_that_greedy_selection_loses() -> None:
    scores = np.array([[[5.0, 4.0], [4.0, 1.0]]])
    assert select_tiles(scores, 1).astype(int).tolist() == [[[0, 1], [1, 0]]]
    assert select_tiles(np.array([[[5.0, 2.0], [2.0, 1.0]]]), 1).astype(int).tolist() == [[[1, 0], [0, 1]]]


@pytest.mark.parametrize(("size", "keep"), [(4, 2), (8, 4)])
def test_infinities_and_priorities_come_before_sums(size: int, keep: int) -> None:
    generator = np.random.default_rng(0)
    valid = np.stack([np.roll(np.arange(size) < keep, row) for row in range(size)])
    scores = generator.random((1, size, size)).astype(np.float32)
    finite = select_tiles(scores, keep)[0]
    priority = np.where(valid, 1, 0).astype(np.int8)[None]
    np.testing.assert_array_equal(select_tiles(-1e30 * valid[None], keep, priority)[0], valid)
    np.testing.assert_array_equal(select_tiles(np.where(valid, -np.inf, 1.0)[None], keep, priority)[0], valid)
    np.testing.assert_array_equal(select_tiles(scores, keep, priority - 1)[0], valid)
    one = ~finite & (np.cumsum(~finite).reshape(size, size) == 1)
    kept = select_tiles(np.where(one, np.inf, scores), keep)[0]
    assert kept[one].all()
    others = [mask for mask in list_masks(4, 2) if mask[one[:4, :4]].all()] if size == 4 else []
    totals = [float(scores[0][mask & ~one].astype(np.float64).sum()) for mask in others]
    assert not others or np.array_equal(kept, others[int(np.argmax(totals))])


@pytest.mark.parametrize("outputs_last", [False, True])
@pytest.mark.parametrize("spec", ["2:4", "4:8"])
def test_masks_fit_both_ways_and_lose_no_more_than_other_orders_of_storage(spec: str, outputs_last: bool) -> None:
    keep, size = map(int, spec.split(":"))
    pattern = array_pattern(f"{spec}-transposable", {"conv": (conv := view(16, 3, 24, outputs_last=outputs_last))})
    scores = np.random.default_rng(1).random((16, 3, 24), dtype=np.float32)
    mask = conv.to_canonical(pattern.masks({"conv": conv.to_stored(scores)})["conv"])
    tiles = split_tiles(mask, size)
    assert (tiles.sum(axis=1) == keep).all()
    assert (tiles.sum(axis=2) == keep).all()
    np.testing.assert_array_equal(tiles, select_tiles(split_tiles(scores, size), keep))
    assert pattern.default_target_sparsity() == 0.5


def test_tiles_that_lose_least_are_pruned_first() -> None:
    pattern = array_pattern("2:4-transposable", {"fc": view(8, 1, 8)}, criterion_reduce_type="sum")
    scores = np.random.default_rng(2).random((8, 1, 8), dtype=np.float32)
    full = split_tiles(pattern.masks({"fc": scores})["fc"], 4)
    losses = (split_tiles(scores, 4) * ~full).sum(axis=(1, 2))
    tiles = split_tiles(pattern.masks({"fc": scores}, sparsity=0.25)["fc"], 4)
    for tile, mask, rank in zip(tiles, full, losses.argsort().argsort(), strict=True):
        np.testing.assert_array_equal(tile, mask if rank < 2 else np.ones_like(mask))


def test_violations_in_either_direction() -> None:
    pattern = array_pattern("2:4-transposable", {"fc": view(4, 1, 8)})
    mask = np.zeros((4, 1, 8), dtype=bool)
    mask[:, 0, [0, 1, 4, 5]] = True
    reason = "2 of 2 tiles of 4x4 weights keep more than 2 in a row or column"
    assert pattern.violations({"fc": mask}) == {"fc": reason}
    assert pattern.violations({"fc": mask}, sparsity=0.25) == {"fc": f"{reason} but not all"}
    assert pattern.violations({"fc": np.ones_like(mask)}, sparsity=0.25) == {}
    assert array_pattern("2:4", {"fc": view(4, 1, 8)}).violations({"fc": mask}) == {}
    other = array_pattern("2:4-transposable", {"fc": view(8, 1, 4)})
    assert other.violations({"fc": mask.transpose(2, 1, 0)}) == {"fc": reason}


def test_zeros_count_as_pruned_in_tiles_with_a_mask_for_the_rest() -> None:
    pattern = array_pattern("2:3-transposable", {"fc": view(3, 1, 9)})
    fits, torn, empty = np.diag([True, True, False]), np.zeros((3, 3), bool), np.zeros((3, 3), bool)
    torn[:2, :2] = True  # two in each row and column, and yet the third row cannot keep two
    nonzero = np.concatenate([fits, torn, empty], axis=1)[:, None, :]
    kept = split_tiles(pattern.expand_units(pattern.find_nonzero_units({"fc": nonzero}))["fc"], 3)
    assert kept[1].all()
    assert (kept[[0, 2]].sum(axis=1) == 2).all()
    assert kept[0][fits].all()


def test_the_masks_of_torch_and_of_keras_kernels_are_equal() -> None:
    scores = np.random.default_rng(3).random((8, 12), dtype=np.float32)
    kernel = WeightView(shape=(12, 8), output_axes=(1,), input_axes=(0,))
    ours = get_pattern("2:4-transposable", {"fc": torch.nn.Linear(12, 8)}).masks({"fc": torch.tensor(scores)})["fc"]
    theirs = array_pattern("2:4-transposable", {"fc": kernel}).masks({"fc": scores.T.copy()})["fc"]
    np.testing.assert_array_equal(ours.numpy(), theirs.T)


@pytest.mark.parametrize(
    ("spec", "shape", "problem"),
    [
        ("2:4-transposable", view(8, 1, 6), "6 input channels are not a multiple of M=4 in '2:4-transposable'"),
        ("2:4-transposable", view(6, 1, 8), "6 output channels are not a multiple of M=4 in '2:4-transposable'"),
        ("2:4-transposable", view(8, 1, 8, groups=4), "2 output channels in each of 4 groups are not a multiple"),
    ],
)
def test_a_misfit_is_explained(spec: str, shape: WeightView, problem: str) -> None:
    assert problem in array_pattern(spec, {"fc": shape}, exactly=False).invalid_layers["fc"]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("4:4-transposable", r"N must be less than M, .*Use 2:4-transposable, for example"),
        ("32:128-transposable", r"pattern '32:128-transposable': M must be at most 64, found 128"),
        ("N:M-transposable", r"is a pattern type, not a specification\. Use 2:4-transposable"),
    ],
)
def test_impossible_counts_are_refused(spec: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        array_pattern(spec, {"fc": view(128, 1, 128)})
