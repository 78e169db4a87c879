"""Slimming of Keras models. Tests that need a backend that trains are in ``tests/backends``."""

import json
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import secateur
from keras_zoo import KERAS_ZOO, WrittenModel, fill, prunable, run
from secateur.errors import CalibrationError, ConfigError, LayerError, UnknownNameError, UnsupportedModelError
from secateur.frameworks.keras import read_array
from secateur.graph import RULES, Graph, trace
from secateur.graph.keras.tracing import record
from slim.broken_rules import broken_rule

NAMES = [name for name, exhibit in KERAS_ZOO.items() if exhibit.channels | exhibit.heads]
CALLS = {name: {call.operation for call in record(KERAS_ZOO[name].create()).calls} for name in NAMES}
"""Exhibit → the operations in it."""

IMAGE = np.ones((2, 4, 4, 3), dtype="float32")


def create_masked(name: str) -> keras.Model:
    """An exhibit in which nothing reads half of the units of each group."""
    model = KERAS_ZOO[name].create()
    for group in prunable(trace(model)):
        fill(model, group, range(0, group.units, 2), zeros=True)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_slimmed_model_is_the_masked_one(name: str) -> None:
    model, inputs = create_masked(name), KERAS_ZOO[name].inputs
    before, weights = run(model, inputs), [read_array(variable).copy() for variable in model.weights]
    report = secateur.slim(model, example_inputs=inputs)
    np.testing.assert_allclose(run(report.model, inputs), before, rtol=0, atol=1e-5)
    assert report.removed_units == sum((group.units + 1) // 2 for group in prunable(trace(model)))
    assert report.weights == report.model.count_params() < report.weights_before == model.count_params()
    assert max(report.probe_difference, report.proof_difference) < 1e-5
    assert all(map(np.array_equal, weights, map(read_array, model.weights)))
    assert type(report.model) is type(model)
    json.dumps(report.to_dict())


def test_the_settings_of_layers_follow() -> None:
    attributes = secateur.slim(
        create_masked("cross_attention"), example_inputs=KERAS_ZOO["cross_attention"].inputs
    ).attributes
    assert attributes == {
        "first": {"units": 3},
        "attention": {"num_heads": 1, "value_dim": 2, "output_shape": (3,)},
    }
    assert secateur.slim(create_masked("group_norms"), example_inputs=KERAS_ZOO["group_norms"].inputs).attributes == {
        "first": {"filters": 3},
        "each": {"groups": 3},
        "second": {"filters": 2},
        "groups": {"groups": 1},
    }


def test_inexact_groups_go_only_when_asked_for() -> None:
    exhibit = KERAS_ZOO["transformer"]
    model = exhibit.create()
    (group,) = prunable(trace(model), inexact=True)
    fill(model, group, range(0, group.units, 2), zeros=True)
    kept = secateur.slim(model, example_inputs=exhibit.inputs)
    assert (kept.removed_units, kept.inexact_difference) == (0, None)
    report = secateur.slim(model, example_inputs=exhibit.inputs, allow_inexact=True)
    assert report.removed_units == 6
    assert report.inexact_difference > 1e-3
    assert report.model.get_layer("embed").output_dim == 6


def test_excluded_groups_stay() -> None:
    model, inputs = create_masked("perceptron"), KERAS_ZOO["perceptron"].inputs
    report = secateur.slim(model, example_inputs=inputs, exclude=["first"])
    assert {group.name: group.removed_units for group in report.groups if group.zero_units} == {"first": 0, "second": 5}
    with pytest.raises(UnknownNameError, match="no group 'frist'"):
        secateur.slim(model, example_inputs=inputs, exclude=["frist"])


def test_equal_layers_keep_equal_widths() -> None:
    stack = [keras.Input((6,)), *(layers.Dense(6, name=f"fc{number}") for number in range(3)), layers.Dense(2)]
    model = keras.Sequential(stack)
    for number, width in ((1, 2), (2, 4)):
        kernel = read_array(model.layers[number].kernel).copy()
        kernel[width:] = 0
        model.layers[number].kernel.assign(kernel)
    inputs = np.ones((2, 6))
    exact = secateur.slim(model, example_inputs=inputs)
    assert [layer.units for layer in exact.model.layers] == [2, 4, 6, 2]
    uniform = secateur.slim(model, example_inputs=inputs, mode="uniform")
    assert [layer.units for layer in uniform.model.layers] == [4, 4, 6, 2]


def test_groups_without_weights_follow_their_channels() -> None:
    stack = [
        keras.Input((4, 4, 3)),
        layers.Conv2D(8, 1, name="conv"),
        layers.GroupNormalization(4, scale=False, center=False, name="norm"),
        layers.Conv2D(2, 1, name="out"),
    ]
    model = keras.Sequential(stack)
    kernel = read_array(model.layers[-1].kernel).copy()
    kernel[:, :, 2:6] = 0
    model.layers[-1].kernel.assign(kernel)
    report = secateur.slim(model, example_inputs=IMAGE)
    assert report.attributes == {"conv": {"filters": 4}, "norm": {"groups": 2}}


def test_a_broken_graph_is_refused() -> None:
    """The graph does not know that the first layer is read twice."""
    model, inputs = create_masked("dense_blocks"), KERAS_ZOO["dense_blocks"].inputs
    kernel = read_array(model.get_layer("out").kernel).copy()
    model.get_layer("out").kernel.assign(np.where(kernel == 0, 0.5, kernel))
    graph = trace(model)
    groups = [
        replace(group, members=tuple(member for member in group.members if member.parameter != "out/kernel"))
        for group in prunable(graph)
    ]
    before = [read_array(variable).copy() for variable in model.weights]
    with pytest.raises(LayerError, match=r"group .* units that nothing should read change the outputs"):
        secateur.slim(model, example_inputs=inputs, graph=Graph(groups=tuple(groups)))
    assert all(map(np.array_equal, before, map(read_array, model.weights)))


class Unsettled(layers.Dense):
    """A layer that cannot be recreated from its configuration."""

    def __init__(self, secret: Any, **options: Any) -> None:
        super().__init__(2, **options)
        self.secret = secret

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def test_bad_input_is_refused() -> None:
    model, inputs = create_masked("perceptron"), KERAS_ZOO["perceptron"].inputs
    with pytest.raises(CalibrationError, match="example_inputs must be given"):
        secateur.slim(model, example_inputs=None)
    with pytest.raises(CalibrationError, match="must accept the example inputs"):
        secateur.slim(model, example_inputs=np.zeros((2, 5)))
    with pytest.raises(ConfigError, match="optimizer must be None for a Keras model"):
        secateur.slim(model, example_inputs=inputs, optimizer=keras.optimizers.SGD())
    with pytest.raises(ConfigError, match="mode must be one of 'exact', 'uniform', found 'even'"):
        secateur.slim(model, example_inputs=inputs, mode="even")  # type: ignore[arg-type]
    with pytest.raises(LayerError, match=r"'first/kernel' must have shape \(6, 8\), found no such parameter"):
        secateur.slim(keras.Sequential([keras.Input((6,)), layers.Dense(2)]), example_inputs=inputs, graph=trace(model))
    written = WrittenModel()
    written.build((None, 6))
    with pytest.raises(UnsupportedModelError, match=r"must be Sequential or functional.*found WrittenModel"):
        secateur.slim(written, example_inputs=inputs)
    stubborn = keras.Sequential([*model.layers[:-1], Unsettled(1, name="stubborn")])
    stubborn.build((None, 6))
    with pytest.raises(LayerError, match="'stubborn' cannot be recreated from its configuration: TypeError"):
        secateur.slim(stubborn, example_inputs=inputs)


def test_the_numbers_of_a_layer_that_is_called_twice_must_agree() -> None:
    inputs = keras.Input((6,))
    reshape = layers.Reshape((4, 2), name="reshape")
    parts = [reshape(layers.Dense(8, name=name)(inputs)) for name in ("left", "right")]
    heads = [layers.EinsumDense("abc,bcd->ad", 3, name=f"out{number}")(part) for number, part in enumerate(parts)]
    model = keras.Model(inputs, heads)
    kernel = read_array(model.get_layer("out0").kernel).copy()
    kernel[:2] = 0
    model.get_layer("out0").kernel.assign(kernel)
    with pytest.raises(LayerError, match="'reshape' is called several times, and would need target_shape to be"):
        secateur.slim(model, example_inputs=np.ones((2, 6)))


@pytest.mark.parametrize("fault", ["missing", "off by one"])
def test_a_broken_rule_never_breaks_a_model(fault: str) -> None:
    """What a rule unites is forgotten, or its output is off by one along its last axis."""
    operations = sorted(set().union(*CALLS.values()) & {*RULES})
    results = {operation: try_broken_rule(operation, fault) for operation in operations}
    assert "wrong" not in set().union(*results.values())


def try_broken_rule(operation: str, fault: str) -> set[str]:
    """Slim up to two exhibits with an operation: ``"refused"``, ``"right"`` or ``"wrong"``."""
    users = [name for name in NAMES if operation in CALLS[name]][:2]
    masked = {name: create_masked(name) for name in users}
    with broken_rule(operation, fault):
        return {slim_or_refuse(name, model) for name, model in masked.items()}


def slim_or_refuse(name: str, model: keras.Model) -> str:
    inputs = KERAS_ZOO[name].inputs
    before = run(model, inputs)
    try:
        slimmed = secateur.slim(model, example_inputs=inputs).model
    except LayerError:
        return "refused"
    return "right" if np.allclose(run(slimmed, inputs), before, atol=1e-5) else "wrong"
