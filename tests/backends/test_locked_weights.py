"""Zeros of any variable, kept by kind="pattern_lock" in the compiled step."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import secateur.keras

LOCK = {"kind": "pattern_lock"}

LOCKED = {"embedding/embeddings", "lstm/lstm_cell/recurrent_kernel", "body"}


def build() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            keras.layers.Embedding(16, 8, name="embedding"),
            keras.layers.LSTM(8, name="lstm"),
            keras.layers.Dense(8, name="body"),
            keras.layers.Dense(4, name="head", kernel_initializer="zeros"),
        ]
    )


def variables(model: keras.Model) -> dict[str, Any]:
    return {
        "embedding/embeddings": model.layers[0].embeddings,
        "lstm/lstm_cell/recurrent_kernel": model.layers[1].cell.recurrent_kernel,
        "body": model.layers[2].kernel,
    }


def sparse() -> keras.Model:
    model = build()
    for variable in variables(model).values():
        values = keras.ops.convert_to_numpy(variable).copy()
        values.reshape(-1, 4)[:, :2] = 0
        variable.assign(values)
    return model


def fit(model: keras.Model) -> None:
    model.fit(
        np.arange(48).reshape(8, 6) % 16, np.eye(8, 4), 4, 2, verbose=0, callbacks=[secateur.keras.PruningCallback()]
    )


def zeros(model: keras.Model) -> dict[str, Any]:
    return {name: keras.ops.convert_to_numpy(variable) == 0 for name, variable in variables(model).items()}


def test_overwritten_zeros_are_restored_when_training_starts(caplog: pytest.LogCaptureFixture) -> None:
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(8, name="body"), keras.layers.Dense(4, name="head")]
    )
    dense = model.get_weights()
    secateur.prune(model, {"pattern": "2:4"})
    optimizer = secateur.keras.PruningOptimizer(model, LOCK, keras.optimizers.SGD(0.0))
    model.compile(optimizer, "mse")
    model.set_weights(dense)
    model.fit(np.ones((4, 8)), np.ones((4, 4)), verbose=0, callbacks=[secateur.keras.PruningCallback()])
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("Pruned weights of 'body' were changed since the last step, such as by loading weights,")
    assert float((keras.ops.convert_to_numpy(model.layers[0].kernel) == 0).mean()) == 0.5


def test_zeros_of_any_variable_are_kept_and_untrained_kernels_are_free(tmp_path: Path) -> None:
    model = sparse()
    before = zeros(model)
    plan = {layer.name: layer.reason for layer in secateur.plan(model, LOCK).layers}
    assert {name for name, reason in plan.items() if reason is None} == LOCKED
    assert plan["head"] == "all zero: untrained rather than pruned, so it may change"
    assert plan["lstm/lstm_cell/kernel"] == "has no zeros"
    model.compile(secateur.keras.PruningOptimizer(model, LOCK, keras.optimizers.AdamW(0.1)), "mse")
    fit(model)
    assert all((zeros(model)[name] == before[name]).all() for name in before)
    assert bool((keras.ops.convert_to_numpy(model.layers[3].kernel) != 0).any())
    copied = keras.models.clone_model(model)
    model.optimizer.apply_masks(copied)
    assert all((zeros(copied)[name] >= before[name]).all() for name in before)

    model.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras")
    fit(loaded)
    assert all((zeros(loaded)[name] == before[name]).all() for name in before)
    report = secateur.keras.finalize(loaded)
    assert {layer.name: layer.sparsity for layer in report.layers} == dict.fromkeys(LOCKED, 0.5)
    assert report.dense["head"].startswith("all zero")
