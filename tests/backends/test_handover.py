"""Masks get from NumPy into variables, whatever memory they lie in."""

import keras
import numpy as np
import pytest

from backends.kit import host
from secateur._array import empty_aligned
from secateur.frameworks.keras import get_tensor, read_array, wrap_for_assign


def flags() -> keras.Variable:
    return keras.Variable(np.ones(999, bool), dtype="bool", trainable=False)


@pytest.mark.parametrize("start", [0, 1, 16, 48])
def test_masks_are_handed_over_wherever_they_start(start: int) -> None:
    mask = empty_aligned((start + 999,), bool)[start:]
    mask[...] = np.random.default_rng(start).random(999) < 0.5
    variable = flags()
    variable.assign(wrap_for_assign(mask))
    np.testing.assert_array_equal(host(variable), mask)
    # An operation that reads memory as vectors, which must be aligned.
    selected = keras.ops.where(get_tensor(variable), keras.ops.ones(999), 0.0)
    np.testing.assert_array_equal(host(selected), mask)


def test_aligned_memory_is_not_copied_by_tensorflow() -> None:
    mask, variable = empty_aligned((999,), bool), flags()
    mask[...] = np.arange(999) % 3 == 0
    variable.assign(wrap_for_assign(mask))
    np.testing.assert_array_equal(host(variable), mask)
    if keras.backend.backend() == "tensorflow":
        assert np.shares_memory(read_array(variable), mask)


def test_tensorflow_copies_memory_that_is_not_ours_to_give() -> None:
    mask, variable = empty_aligned((999,), bool), flags()
    mask.flags.writeable = False
    assert wrap_for_assign(mask) is mask
    variable.assign(wrap_for_assign(mask))
    if keras.backend.backend() == "tensorflow":
        assert not np.shares_memory(read_array(variable), mask)
