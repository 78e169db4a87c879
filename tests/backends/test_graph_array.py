"""TensorFlow tensors behind the array API: what pattern and criterion arithmetic asks of them."""

from typing import Any

import array_api_compat
import keras
import numpy as np
import pytest

from secateur.criteria import CRITERIA
from secateur.patterns import BlockTiling, Units
from secateur.patterns.reduction import REDUCTIONS
from secateur.training.group_lasso import compute_shrinkage
from secateur.training.keras.graph_array import GraphArray, as_array, as_tensor

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the other backends' arrays need none")

GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.standard_normal((8, 3, 4), dtype=np.float32)


def graph(values: Any) -> Any:
    return as_array(keras.ops.convert_to_tensor(values))


def numpy(array: Any) -> Any:
    return keras.ops.convert_to_numpy(as_tensor(array))


def traced(function: Any, *arguments: Any) -> Any:
    """The result of a function that TensorFlow compiles."""
    import tensorflow as tf

    compiled = tf.function(lambda *tensors: as_tensor(function(*map(as_array, tensors))))
    return compiled(*(tf.constant(argument) for argument in arguments)).numpy()


OPERATIONS: dict[str, Any] = {
    "arithmetic": lambda _, x: 2 - (x + 1) * 3 / (1 + x * x) - x**2,
    "comparison": lambda _, x: (x > 0) & ~(x >= 1) | (x == x) ^ (x < -1) & (x != 0) & (x <= 3),
    "negation": lambda _, x: abs(-x),
    "where": lambda xp, x: xp.where(x > 0, x, -1.0),
    "astype": lambda xp, x: xp.astype(x > 0, xp.float32),
    "concat": lambda xp, x: xp.concat([x, x[:2]], axis=0),
    "permute": lambda xp, x: xp.permute_dims(x, (2, 0, 1)),
    "reshape": lambda _, x: x.reshape((4, -1)),
    "repeat": lambda xp, x: xp.repeat(x, 3, axis=1),
    "slices": lambda _, x: x[1::2, :, 0:2],
    "reductions": lambda xp, x: xp.max(x, axis=(0, 2), keepdims=True) + xp.sum(x, axis=0) + xp.mean(x),
    "functions": lambda xp, x: xp.sqrt(xp.abs(x)) + xp.exp(xp.sign(x)) + xp.log(1 + xp.square(x)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_it_computes_what_numpy_does(name: str) -> None:
    def function(x: Any) -> Any:
        return OPERATIONS[name](array_api_compat.array_namespace(x), x)

    expected = function(VALUES)
    for found in (numpy(function(graph(VALUES))), traced(function, VALUES)):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_it_shows_what_an_array_shows() -> None:
    array = graph(VALUES)
    assert isinstance(array, GraphArray)
    assert (array.shape, array.ndim, array.dtype) == ((8, 3, 4), 3, "float32")
    assert array.dtype == array_api_compat.array_namespace(array).float32


def test_a_method_that_is_missing_points_to_the_function() -> None:
    with pytest.raises(AttributeError, match=r"has no 'sum'\. Use the function of that name from array_api_compat"):
        graph(VALUES).sum()


def test_what_keras_does_not_have_is_an_error() -> None:
    with pytest.raises(AttributeError, match="the array API of a compiled TensorFlow step has no 'cholesky_of_mine'"):
        _ = array_api_compat.array_namespace(graph(VALUES)).cholesky_of_mine


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_scores_in_a_compiled_step(name: str) -> None:
    from secateur import PruningConfig

    criterion = CRITERIA[name](PruningConfig(), "fc")
    if not (criterion.needs_gradient or criterion.decay):
        pytest.skip("scored on the host")
    gradient = GENERATOR.standard_normal(VALUES.shape, dtype=np.float32)
    found = traced(lambda weight, slope: criterion.unit_score(criterion.score(weight, slope)), VALUES, gradient)
    np.testing.assert_allclose(found, criterion.unit_score(criterion.score(VALUES, gradient)), rtol=1e-6)


@pytest.mark.parametrize("reduction", sorted(REDUCTIONS))
@pytest.mark.parametrize("block", [(4, 1, 1), (1, 1, 4), (8, 3, 4), (1, 3, 4), (8, 3, 1)])
def test_units_are_scored_as_on_the_host(reduction: str, block: tuple[int, int, int]) -> None:
    tiling = BlockTiling((8, 3, 4), block)

    def scored(values: Any) -> Any:
        return next(iter(tiling.unit_scores(values, REDUCTIONS[reduction])))

    np.testing.assert_allclose(traced(scored, VALUES), scored(VALUES), rtol=1e-6)


def test_units_shrink_as_on_the_host() -> None:
    units = Units({"fc": BlockTiling((8, 3, 4), (4, 1, 1))})

    def shrunk(values: Any) -> Any:
        return compute_shrinkage(units, {"fc": values}, 0.4)["fc"]

    np.testing.assert_allclose(traced(shrunk, VALUES), shrunk(VALUES), rtol=1e-5)
