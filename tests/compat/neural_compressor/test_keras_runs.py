"""Pruners of Keras models before and between steps; `tests/backends` trains with them."""

from typing import Any

import numpy as np
import pytest

from secateur.compat.neural_compressor import WeightPruningConfig, prepare_compression, prepare_pruning
from secateur.compat.neural_compressor.compression.pruner.tf_criteria import get_tf_criterion
from secateur.errors import UnknownNameError
from tiny_keras_models import net

SETTINGS: dict[str, Any] = {
    "pruning_type": "magnitude",
    "pattern": "4x1",
    "target_sparsity": 0.5,
    "start_step": 1,
    "end_step": 3,
    "pruning_frequency": 2,
    "pruning_op_types": ["Conv", "Dense"],
}


def test_a_pruner_before_and_in_the_run() -> None:
    model = net()
    manager = prepare_compression(model, WeightPruningConfig(**SETTINGS))
    (pruner,) = manager.callbacks.callbacks_list[0].pruners
    assert all(mask.all() for mask in pruner.masks.values())
    assert {name: mask.shape for name, mask in pruner.masks.items()} == {"conv": (2, 2, 4, 8), "fc": (72, 16)}
    assert pruner.pattern.pattern == "4x1"
    manager.callbacks.on_train_begin()
    assert pruner.run.sparsity == 0.0
    for step in range(5):
        manager.callbacks.on_step_begin(step)
        manager.callbacks.on_before_optimizer_step()
        manager.callbacks.on_after_optimizer_step()
    assert pruner.run.sparsity == 0.5
    assert pruner.current_sparsity_ratio == 0.5
    images = np.ones((2, 4, 4, 4), dtype="float32")
    assert np.array_equal(manager.model(images), model(images))


def test_a_method_at_once_without_layers() -> None:
    config = WeightPruningConfig(pruning_type="sparse_gpt", op_names=["nothing"])
    pruning = prepare_pruning(net(), config, dataloader=[np.zeros((1, 4, 4, 4))])
    assert pruning.pruners[0].masks == {}


def test_an_unknown_criterion() -> None:
    (element,) = WeightPruningConfig(**SETTINGS).complete_elements()
    with pytest.raises(UnknownNameError, match=r"Unknown criterion_type 'magnitud'\. Did you mean 'magnitude'"):
        get_tf_criterion(element | {"criterion_type": "magnitud"}, {})
