import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patterns import oracle
from secateur.patterns.reduction import REDUCTIONS, pairwise_sum

SMALL = hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)


@pytest.mark.parametrize("name", REDUCTIONS)
@given(values=hnp.arrays(np.float32, SMALL, elements=st.integers(-50, 50)))
def test_reduction_is_what_its_name_says(name: str, values: np.ndarray) -> None:
    found = REDUCTIONS[name](values, (0, 2))
    assert found.shape == (1, values.shape[1], 1)
    expected = [oracle.reduced(values[:, column], name) for column in range(values.shape[1])]
    np.testing.assert_array_equal(found.ravel(), expected)


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)))
def test_neighbours_are_added_first(values: np.ndarray) -> None:
    parts = list(values)
    while len(parts) > 1:
        pairs = [left + right for left, right in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    assert pairwise_sum(values, (0,)) == parts[0]


def test_the_order_of_a_sum_shows() -> None:
    values = np.array([1.0, 2.0**-24, 2.0**-24, 0.0], dtype=np.float32)
    assert pairwise_sum(values, (0,))[0] == np.float32(1.0)
    assert pairwise_sum(values[[1, 2, 0, 3]], (0,))[0] > np.float32(1.0)
