"""The Keras pruner keeps the contract of pruners."""

from typing import Any

import keras
import numpy as np

from backends.kit import BATCH, CONFIG, compiled, data, kernels, pruning
from secateur.keras import PruningCallback
from tiny_keras_models import net
from training.pruner_contract import Case, check_pruner


def start() -> Case:
    model = compiled(CONFIG | {"start_step": 1})
    inputs, labels = data()

    def train(steps: int) -> None:
        part = slice(steps * BATCH)
        model.fit(inputs[part], labels[part], batch_size=BATCH, shuffle=False, verbose=0, callbacks=[PruningCallback()])

    def copy() -> Any:
        other = net()
        for weight in other.weights:
            weight.assign(np.ones(weight.shape))
        return other

    optimizer = pruning(model)
    return Case(optimizer, train, copy, lambda: keras.Sequential([keras.Input((4,)), keras.layers.ReLU()]), kernels)


def test_contract() -> None:
    check_pruner(start)
