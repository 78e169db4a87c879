"""Test one-shot pruning without data: exact counts, the same masks in torch and Keras, no change after an error."""

from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import secateur
from patterns.cases import SPECS, share_of
from secateur.errors import ConfigError, LayerError, ScoreError
from tiny_models import bits, mlp


def build_equal_models() -> tuple[nn.Sequential, keras.Sequential]:
    """Build the same model in torch and Keras; many weights have the same magnitude."""
    torch_model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    generator = np.random.default_rng(0)
    dense = [keras.layers.Dense(width, name=name) for width, name in ((32, "0"), (16, "2"), (4, "4"))]
    keras_model = keras.Sequential([keras.Input((16,)), *dense])
    for layer in dense:
        weight = (generator.integers(-8, 8, layer.kernel.shape) / 8).astype("float32")
        layer.kernel.assign(weight)
        torch_model.get_submodule(layer.name).weight.data = torch.from_numpy(weight.T.copy())
    return torch_model, keras_model


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("spec", SPECS)
def test_torch_and_keras_prune_the_same_weights(spec: str, scope: str) -> None:
    torch_model, keras_model = build_equal_models()
    config = {"pattern": spec, "target_sparsity": 0.5 * float(share_of(spec)), "pruning_scope": scope}
    reports = secateur.prune(torch_model, config), secateur.prune(keras_model, config)
    assert [layer.pruned_units for layer in reports[0].layers] == [layer.pruned_units for layer in reports[1].layers]
    assert sum(layer.pruned_weights for layer in reports[0].layers) > 0
    for name in ("0", "2", "4"):
        kernel = keras.ops.convert_to_numpy(keras_model.get_layer(name).kernel.value)
        np.testing.assert_array_equal(torch_model.get_submodule(name).weight.detach().numpy(), kernel.T)


def test_schedules_are_ignored() -> None:
    schedule = {"start_step": 5, "end_step": 500, "kind": "progressive", "reg_type": "group_lasso", "reg_coeff": 1.0}
    report = secateur.prune(mlp(), {"pattern": "4x1", "target_sparsity": 0.75, **schedule})
    assert (report.unit_sparsity, report.is_complete, report.step) == (0.75, True, 0)
    assert report.dense == {"4": "output layer: dense unless op_names or layers name it"}


def test_schedules_in_rules_are_ignored() -> None:
    rule = {"pattern": "2:4", "target_sparsity": None, "end_step": 90, "start_step": 3}
    report = secateur.prune(mlp(), {"target_sparsity": 0.75, "layers": {"2": rule}})
    assert [layer.sparsity for layer in report.layers] == [0.75, 0.5]


def test_frozen_layers_are_pruned_too() -> None:
    assert secateur.prune(mlp().requires_grad_(requires_grad=False), {"pattern": "2:4"}).sparsity == 0.5
    model = build_equal_models()[1]
    model.trainable = False
    assert secateur.prune(model, {"pattern": "2:4"}).sparsity == 0.5


def test_zeros_can_be_kept() -> None:
    model = mlp()
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5})
    zeros = model[0].weight == 0
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.75, "keep_zeros": True, "criterion": "random"})
    assert not (zeros & (model[0].weight != 0)).any()


def build_model_with_nan(name: str) -> nn.Sequential:
    model = mlp()
    model.get_submodule(name).weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("make", "config", "kind", "message"),
    [
        (mlp, {"criterion": "snip"}, ConfigError, "criterion must not need gradients, found 'snip'"),
        (mlp, {"layers": {"2": {"pruning_type": "taylor"}}}, ConfigError, "must not need gradients, found 'taylor'"),
        (lambda: build_model_with_nan("2"), {}, ScoreError, "layer '2': weights must be numbers, found nan"),
        (mlp, {"pattern": "5x1"}, LayerError, "No layer of the model can be pruned"),
        (mlp, {"target_sparsty": 0.5}, ConfigError, "Did you mean 'target_sparsity'"),
    ],
)
def test_bad_input_leaves_the_model_unchanged(make: Any, config: dict[str, Any], kind: type, message: str) -> None:
    model = make()
    before = bits(model)
    with pytest.raises(kind, match=message):
        secateur.prune(model, config)
    assert bits(model) == before


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with pytest.raises(LayerError, match="layer '0': its weight is on the meta device and has no values yet"):
        secateur.prune(model, {"pattern": "4x1"})
