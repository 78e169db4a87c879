"""Tests of array operations in every eager framework."""

from typing import Any

import numpy as np
import pytest
import torch

from secateur._array import ALIGNMENT, concat_chunks, empty_aligned, repeat


def get_address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", ["bool", "float32", "int64"])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (700, 1, 900)])
def test_empty_arrays_are_aligned_and_writable(shape: tuple[int, ...], dtype: str) -> None:
    arrays = [empty_aligned(shape, dtype) for _ in range(9)]  # a single array can be aligned by chance
    for number, array in enumerate(arrays):
        assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, np.dtype(dtype), True)
        assert get_address(array) % ALIGNMENT == 0
        array[...] = number
    assert all((array == np.asarray(number).astype(dtype)).all() for number, array in enumerate(arrays))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_repeat_matches_numpy_and_torch(count: int, axis: int, order: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(0).standard_normal((3, 4, 5)).transpose(order)
    np.testing.assert_array_equal(repeat(numbers, count, axis), np.repeat(numbers, count, axis))
    flags = (np.random.default_rng(0).random((3, 4, 5)) < 0.5).transpose(order)
    found = repeat(flags, count, axis)
    np.testing.assert_array_equal(found, np.repeat(flags, count, axis))
    assert (found.dtype, found.flags.c_contiguous) == (np.dtype(bool), True)
    assert {*np.unique(found.view(np.uint8))} <= {0, 1}
    np.testing.assert_array_equal(repeat(torch.from_numpy(flags), count, axis).numpy(), found)


def test_concatenated_chunks_are_aligned() -> None:
    chunks = [np.arange(3, dtype=np.float32), np.arange(4, dtype=np.float64)]
    found = concat_chunks(chunks)
    assert (found.tolist(), found.dtype) == ([0, 1, 2, 0, 1, 2, 3], np.dtype("float64"))
    assert get_address(found) % ALIGNMENT == 0
    assert concat_chunks(chunks[:1]) is chunks[0]


def test_chunks_of_any_framework_are_concatenated() -> None:
    chunks = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    assert concat_chunks(chunks[:1]) is chunks[0]
    assert concat_chunks(chunks).tolist() == [1.0, 2.0, 3.0]
