"""Labels through reshapes, compared with labels of every element."""

import math

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from secateur.graph.labels import broadcast_axes, find_axes, reshape_labels, squeeze_constant_axes

Array = npt.NDArray[np.int64]


def split(draw: st.DrawFn, size: int) -> list[int]:
    """Factors of a size, in any order, with ones among them."""
    factors, rest = [], size
    while rest > 1:
        factor = draw(st.sampled_from([value for value in range(2, rest + 1) if rest % value == 0]))
        factors.append(factor)
        rest //= factor
    return factors + [1] * draw(st.integers(0, 2))


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[Array, list[int], list[int]]:
    size = draw(st.sampled_from([1, 2, 6, 12, 24, 30]))
    before, after = (draw(st.permutations(split(draw, size))) for _ in range(2))
    labelled = [length if draw(st.booleans()) else 1 for length in before]
    return np.arange(math.prod(labelled), dtype=np.int64).reshape(labelled), before, after


@given(reshapes())
def test_a_reshape_keeps_the_label_of_every_element(case: tuple[Array, list[int], list[int]]) -> None:
    labels, before, after = case
    result = reshape_labels(labels, before, after)
    expected = np.broadcast_to(labels, before).reshape(after)
    assert np.array_equal(np.broadcast_to(result, after), expected)
    assert result.ndim == len(after)


@given(reshapes())
def test_axes_on_which_labels_do_not_depend_have_size_one(case: tuple[Array, list[int], list[int]]) -> None:
    labels, before, after = case
    result = reshape_labels(labels, before, after)
    for axis in find_axes(result):
        assert (result != np.take(result, [0], axis=axis)).any()


def test_constant_axes_are_squeezed() -> None:
    labels = np.broadcast_to(np.arange(3)[:, None], (3, 4))
    assert squeeze_constant_axes(labels).tolist() == [[0], [1], [2]]
    assert broadcast_axes(squeeze_constant_axes(labels), [1], (3, 4)).shape == (3, 4)
