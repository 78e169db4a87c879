import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import LayerError
from secateur.patterns import WeightView


@st.composite
def views(draw: st.DrawFn) -> WeightView:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=5)))
    axes = draw(st.permutations(range(len(shape))))
    first, second = sorted((draw(st.integers(1, len(shape))), draw(st.integers(1, len(shape)))))
    return WeightView(
        shape=shape,
        output_axes=tuple(axes[:first]),
        kernel_axes=tuple(axes[first:second]),
        input_axes=tuple(axes[second:]),
    )


@given(views())
def test_stored_inverts_canonical(view: WeightView) -> None:
    weight = np.arange(np.prod(view.shape)).reshape(view.shape)
    assert view.to_canonical(weight).shape == view.canonical_shape
    np.testing.assert_array_equal(view.to_stored(view.to_canonical(weight)), weight)


@given(views(), st.data())
def test_canonical_is_what_loops_would_read(view: WeightView, data: st.DataObject) -> None:
    weight = np.arange(np.prod(view.shape)).reshape(view.shape)
    at = tuple(data.draw(st.integers(0, size - 1)) for size in view.shape)
    place = []
    for part in (view.output_axes, view.kernel_axes, view.input_axes):
        index = 0
        for axis in part:  # slowest first
            index = index * view.shape[axis] + at[axis]
        place.append(index)
    assert view.to_canonical(weight)[tuple(place)] == weight[at]


def test_inputs_vary_fastest() -> None:
    conv = WeightView(shape=(1, 2, 1, 3), output_axes=(0,), kernel_axes=(2, 3), input_axes=(1,))
    weight = np.arange(6).reshape(1, 2, 1, 3)
    assert conv.to_canonical(weight).ravel().tolist() == [0, 3, 1, 4, 2, 5]


def test_no_copy_where_strides_allow() -> None:
    dense = WeightView(shape=(2, 3), output_axes=(1,), input_axes=(0,))
    weight = np.zeros((2, 3))
    assert np.shares_memory(dense.to_canonical(weight), weight)


def test_another_shape_is_refused() -> None:
    linear = WeightView(shape=(2, 3), output_axes=(0,), input_axes=(1,))
    with pytest.raises(LayerError, match=r"the array must have shape \(2, 3\), found \(3, 2\)"):
        linear.to_canonical(np.zeros((3, 2)))


def test_an_empty_weight_is_refused() -> None:
    with pytest.raises(LayerError, match=r"the weight is empty \(shape \(0, 3\)\)"):
        WeightView(shape=(0, 3), output_axes=(0,), input_axes=(1,))


def test_old_method_names_still_work() -> None:
    conv = WeightView(shape=(2, 3, 1, 2), output_axes=(0,), kernel_axes=(2, 3), input_axes=(1,))
    weight = np.arange(12).reshape(conv.shape)
    with pytest.deprecated_call(match=r"WeightView\.canonical is deprecated\. Use WeightView\.to_canonical\."):
        canonical = conv.canonical(weight)
    np.testing.assert_array_equal(canonical, conv.to_canonical(weight))
    with pytest.deprecated_call(match=r"WeightView\.stored is deprecated\. Use WeightView\.to_stored\."):
        np.testing.assert_array_equal(conv.stored(canonical), weight)
