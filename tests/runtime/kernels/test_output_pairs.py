"""The format that pairs outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels.products import multiply
from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.kernels.formats import NMFormat, OutputPairFormat
from secateur.runtime.kernels.formats.output_pairs import OUTPUT_PAIR_PIECE, PAIR, SLOTS, pair_outputs


def create_mask(tiles: int, outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((tiles, outputs, inputs)) < 0.5


@given(tiles=st.integers(1, 3), pairs=st.integers(1, 20), inputs=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_each_output_has_one_partner(tiles: int, pairs: int, inputs: int, seed: int) -> None:
    partners = pair_outputs(create_mask(tiles, 2 * pairs, inputs, seed))
    assert np.array_equal(np.sort(partners, axis=1), np.tile(np.arange(2 * pairs), (tiles, 1)))


def test_partners_share_many_inputs_best_pairs_first() -> None:
    mask = create_mask(2, 128, 64)
    partners = pair_outputs(mask)
    pairs = np.take_along_axis(mask, partners[:, :, None], 1).reshape(2, -1, 2, 64)
    shared = pairs.all(axis=2).sum(axis=2)
    assert np.all(np.diff(shared, axis=1) <= 0)
    assert shared.mean() > 1.2 * 64 / 4


def test_identical_outputs_are_partners() -> None:
    mask = create_mask(1, 32, 64)
    mask[0, 16:] = mask[0, 15::-1]
    pairs = pair_outputs(mask)[0].reshape(-1, 2)
    assert {(min(pair), max(pair)) for pair in pairs.tolist()} == {(number, 31 - number) for number in range(16)}


def test_each_weight_is_stored_once_shared_inputs_first() -> None:
    weight = np.random.default_rng(0).standard_normal((48, 200)).astype(np.float32)
    weight[np.random.default_rng(1).random(weight.shape) < 0.6] = 0
    paired = OutputPairFormat.from_dense(weight)
    assert np.array_equal(paired.to_dense(), weight)
    assert np.count_nonzero(paired.values) == np.count_nonzero(weight)
    for number, (_, _, shared) in enumerate(paired.order.astype(int)):
        first, last = paired.starts[number] * SLOTS, paired.starts[number + 1] * SLOTS
        columns, values = paired.columns[first:last], paired.values[first:last]
        assert np.array_equal(columns[:shared, 0], columns[:shared, 1])
        assert np.all(values[:shared])
        assert not set(columns[shared:, 0][values[shared:, 0] != 0]) & set(columns[shared:, 1][values[shared:, 1] != 0])


def test_aligned_2_4_needs_no_padding() -> None:
    weight = np.ones((128, 2 * OUTPUT_PAIR_PIECE), np.float32)
    weight.reshape(128, -1, 4)[np.arange(128) % 2 == 0, :, :2] = 0
    weight.reshape(128, -1, 4)[np.arange(128) % 2 == 1, :, 1:3] = 0
    assert OutputPairFormat.from_dense(weight).values.size == np.count_nonzero(weight)


@pytest.mark.parametrize(
    ("pattern", "rows", "kind"), [("2:4", 64, OutputPairFormat), ("2:4", 16, NMFormat), ("1:4", 64, NMFormat)]
)
def test_large_batches_and_high_density_select_pairs(pattern: str, rows: int, kind: type) -> None:
    weight = np.tile(np.array([1, 0, 0, 0], np.float32), (16, 8))
    assert type(PackedMatrix.from_dense(weight, pattern, rows=rows).weights) is kind


def test_padding_does_not_change_results() -> None:
    weight = np.zeros((2, 4), np.float32)
    weight[0, :2] = weight[1, 2:] = 1
    matrix = PackedMatrix(pattern="2:4", weights=OutputPairFormat.from_dense(weight))
    x, y = np.full((20, 4), 2, np.float32), np.empty((20, 2), np.float32)
    multiply(matrix, x, y)
    assert np.all(y == 2 * PAIR)
