"""Test that Keras models are scanned by the criterion and a function, and pruned by the result."""

from typing import Any

import keras
import numpy as np
import pytest

import secateur
from secateur.analysis import assign_targets
from secateur.errors import ConfigError, UnsupportedModelError
from tiny_keras_models import net

INPUTS = np.random.default_rng(0).normal(size=(16, 4, 4, 4)).astype("float32")


def read_bits(model: keras.Model) -> list[bytes]:
    return [np.asarray(weight).tobytes() for weight in model.get_weights()]


def measure(model: keras.Model) -> float:
    return float(np.square(np.asarray(model(INPUTS, training=False))).mean())


def scan(model: keras.Model, **options: Any) -> Any:
    arguments = {"patterns": ["1x1", "4x1", "2:4"], "sparsities": [0.25, 0.5], "metric": measure} | options
    return secateur.sensitivity(model, **arguments)


def test_values_are_those_of_pruning_each_layer_alone() -> None:
    model = net()
    before = read_bits(model)
    report = scan(model)
    assert read_bits(model) == before
    assert (report.dense_value, report.solver) == (measure(model), "magnitude")
    assert [(layer.name, len(layer.points)) for layer in report.layers] == [("conv", 6), ("fc", 6)]
    for layer in report.layers:
        for point in layer.points:
            pruned = net()
            config = {"pattern": point.pattern, "target_sparsity": point.sparsity, "op_names": [layer.name]}
            result = secateur.prune(pruned, config)
            assert point.value == measure(pruned)
            assert point.loss == point.value - report.dense_value
            assert point.pruned_units == result.layers[0].pruned_units // (2 if point.pattern == "2:4" else 1)


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_weights_are_restored_after_an_error(error: type[BaseException]) -> None:
    model = net()
    before, calls = read_bits(model), []

    def fail(model: keras.Model) -> float:
        calls.append(read_bits(model))
        if len(calls) == 5:
            raise error
        return 1.0

    with pytest.raises(error):
        scan(model, metric=fail)
    assert read_bits(model) == before
    assert calls[0] == calls[1] == before != calls[4]


def test_a_target_is_distributed_exactly() -> None:
    report = scan(net())
    config = {"pattern": "4x1", "target_sparsity": 0.3}
    pruned = secateur.prune(net(), config, allocation=report)
    counts = {row.name: row.pruned_units for row in pruned.layers}
    assert sum(counts.values()) == round(0.3 * 320)
    assert counts["conv"] != round(0.3 * 32)
    assert pruned.sensitivity == report.losses
    assigned = assign_targets(net(), config, report)
    assert {name: rule["target_sparsity"] for name, rule in assigned.layers.items()} == {
        "conv": counts["conv"] / 32,
        "fc": counts["fc"] / 288,
    }
    with pytest.raises(ConfigError, match="with other weights in 'conv', 'fc'"):
        secateur.prune(net(seed=1), config, allocation=report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": [INPUTS]}, "calibration supports torch models only"),
        ({"calibration": [INPUTS], "metric": "layer"}, "calibration supports torch models only"),
        ({"solver": "wanda"}, "solver supports torch models only"),
    ],
)
def test_arguments_for_torch_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        scan(net(), **options)
    with pytest.raises(UnsupportedModelError, match="allocation supports torch models only"):
        secateur.prune(net(), {"pattern": "4x1"}, allocation="owl")
