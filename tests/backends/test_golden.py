"""Keras prunes the same units as torch: the stored results of torch's runs, from the same weights and gradients."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest
import torch

import secateur
from backends.kit import host
from golden import GOLDEN, digest, exact, model_of_given_weights
from secateur.keras import PruningOptimizer
from secateur.patterns import get_pattern


def to_keras(array: Any) -> Any:
    """A torch weight or gradient in Keras's order of axes."""
    return np.moveaxis(np.asarray(array), (0, 1), (-1, -2)) if array.ndim > 1 else np.asarray(array)


def to_torch(array: Any) -> Any:
    return torch.from_numpy(np.moveaxis(array, (-1, -2), (0, 1)).copy())


def twin() -> keras.Model:
    """The model of the stored runs."""
    entrance = keras.Input((4, 4, 4))
    hidden = keras.layers.Flatten()(keras.layers.Conv2D(8, 3, name="0")(entrance))[:, :16]
    model = keras.Model(entrance, keras.layers.Dense(4, name="3")(keras.layers.Dense(24, name="2")(hidden)))
    for variable, weight in zip(model.trainable_variables, model_of_given_weights().parameters(), strict=True):
        variable.assign(to_keras(weight.detach()))
    return model


def run(config: Mapping[str, Any]) -> tuple[list[int], str]:
    model = twin()
    optimizer = PruningOptimizer(model, config, keras.optimizers.SGD(0.125))
    shapes = [tuple(weight.shape) for weight in model_of_given_weights().parameters()]
    found = []
    for step in range(8):
        gradients = [exact(int(np.prod(shape)), 7 * step + place).reshape(shape) for place, shape in enumerate(shapes)]
        optimizer.apply([keras.ops.convert_to_tensor(to_keras(gradient)) for gradient in gradients])
        optimizer.update_masks()
        found.append(sum(layer.pruned_weights for layer in optimizer.report().layers))
    optimizer.finalize()
    for name, mask in optimizer.masks.items():
        assert not host(model.get_layer(name).kernel)[~mask].any()
    return found, digest({name: to_torch(mask) for name, mask in optimizer.masks.items()})


def test_weights_of_one_size_fade_in_one_order() -> None:
    config = {"pattern": "4x1", "kind": "progressive", "target_sparsity": 0.5, "end_step": 7, "pruning_frequency": 6}
    theirs, mine = model_of_given_weights(), twin()
    for parameter, variable in zip(theirs.parameters(), mine.trainable_variables, strict=True):
        parameter.data.fill_(1.0)
        variable.assign(np.ones(variable.shape))
        parameter.grad = torch.zeros_like(parameter)
    given = torch.optim.SGD(theirs.parameters(), lr=0.125)
    pruner = secateur.prepare(theirs, config, optimizer=given)
    optimizer = PruningOptimizer(mine, config, keras.optimizers.SGD(0.125))
    for _ in range(8):
        given.step()
        optimizer.apply([keras.ops.zeros(variable.shape) for variable in mine.trainable_variables])
        optimizer.update_masks()
        assert digest({name: to_torch(mask) for name, mask in optimizer.masks.items()}) == digest(pruner.masks)


@pytest.mark.parametrize("name", GOLDEN)
def test_same_masks_as_torch(name: str) -> None:
    config, pruned, masks = GOLDEN[name]
    assert run(config) == (pruned, masks)


def test_tensors_of_each_backend_give_the_masks_of_arrays() -> None:
    layer, config = keras.layers.Conv2D(8, 3), {"pattern": "4x1", "target_sparsity": 0.5}
    layer.build((None, 5, 5, 4))
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 8), dtype="float32")
    layer.kernel.assign(kernel)
    pattern = get_pattern(config, {"layer": layer}, "keras")
    assert np.array_equal(pattern.framework.read_weight(layer), kernel)
    mask = pattern.masks({"layer": keras.ops.abs(layer.kernel)})["layer"]
    expected = get_pattern(config, pattern.views, "array").masks({"layer": np.abs(kernel)})["layer"]
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(np.asarray(mask), expected)
