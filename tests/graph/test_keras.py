"""The dependency graph of Keras models: the groups that it finds, and a proof that they are right."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_zoo import KERAS_ZOO, KerasExhibit, fill, prunable, run
from secateur.errors import CalibrationError, UnsupportedModelError
from secateur.frameworks.keras import name_variables, read_array
from secateur.graph import RULES, Call, Group, Tracer, register_rule, trace
from secateur.graph.alignment import align_values


def sizes(groups: Sequence[Group]) -> dict[str, int]:
    return {group.name: group.units for group in groups}


def probe(exhibit: KerasExhibit, group: Group) -> float:
    """Return how far the output changes if half of the units change, but nothing reads them."""
    model = exhibit.create()
    pruned = range(0, group.units, 2)
    fill(model, group, pruned, zeros=True)
    masked = run(model, exhibit.inputs)
    fill(model, group, pruned, zeros=False)
    fill(model, group, pruned, zeros=True)  # noise in rows must not bring back zeros in columns
    return float(np.abs(run(model, exhibit.inputs) - masked).max() / max(np.abs(masked).max(), 1))


@pytest.mark.parametrize("name", KERAS_ZOO)
def test_the_graph_has_the_expected_groups(name: str) -> None:
    exhibit = KERAS_ZOO[name]
    graph = trace(exhibit.create(), exhibit.inputs)
    assert sizes(prunable(graph, "channels")) == exhibit.channels
    assert sizes(prunable(graph, "heads")) == exhibit.heads
    assert sizes(prunable(graph, inexact=True)) == exhibit.inexact
    assert tuple(barrier.module for barrier in graph.barriers) == exhibit.barriers


@pytest.mark.parametrize("name", KERAS_ZOO)
def test_nothing_depends_on_units_without_consumers(name: str) -> None:
    exhibit = KERAS_ZOO[name]
    for group in prunable(trace(exhibit.create())):
        assert probe(exhibit, group) < 1e-5, group.name


@pytest.mark.parametrize("name", [name for name in KERAS_ZOO if KERAS_ZOO[name].inexact])
def test_inexact_groups_are_inexact(name: str) -> None:
    exhibit = KERAS_ZOO[name]
    for group in prunable(trace(exhibit.create()), inexact=True):
        assert probe(exhibit, group) > 1e-3, group.name


@pytest.mark.parametrize("name", KERAS_ZOO)
def test_the_output_depends_on_units_with_consumers(name: str) -> None:
    """Otherwise the probe above could not fail."""
    exhibit = KERAS_ZOO[name]
    for group in prunable(trace(exhibit.create())):
        model = exhibit.create()
        before = run(model, exhibit.inputs)
        fill(model, group, range(0, group.units, 2), zeros=True)
        assert not np.array_equal(run(model, exhibit.inputs), before), group.name


@pytest.mark.parametrize("name", KERAS_ZOO)
def test_every_layer_is_in_a_group_or_has_a_reason(name: str) -> None:
    model = KERAS_ZOO[name].create()
    members = {
        name
        for group in trace(model).groups
        for member in group.members
        for name in (member.parameter, *member.aliases)
    }
    assert {name for name, variable in name_variables(model).items() if len(variable.shape) > 1} <= members


def test_tracing_changes_nothing() -> None:
    model = KERAS_ZOO["transformer"].create()
    before = [read_array(variable).copy() for variable in model.weights]
    nodes = [len(operation._inbound_nodes) for operation in model.operations]
    trace(model)
    assert all(map(np.array_equal, before, map(read_array, model.weights)))
    assert [len(operation._inbound_nodes) for operation in model.operations] == nodes


def test_units_have_the_indices_of_all_their_slices() -> None:
    (group, *_) = prunable(trace(KERAS_ZOO["flatten"].create()))
    maps = {member.parameter: member.index_map.indices() for member in group.members}
    assert np.array_equal(maps["fc/kernel"], [[unit + 8 * place for place in range(4)] for unit in range(8)])


def test_grouped_queries_belong_to_their_key() -> None:
    (group,) = prunable(trace(KERAS_ZOO["grouped_query_attention"].create()), "heads")
    maps = {member.parameter: member.index_map.indices() for member in group.members}
    assert np.array_equal(maps["attention/query/kernel"], [[0, 1, 2], [3, 4, 5]])
    assert np.array_equal(maps["attention/key/kernel"], [[0], [1]])


def test_channels_can_be_first() -> None:
    model = keras.Sequential(
        [
            keras.Input((3, 8, 8)),
            layers.Conv2D(6, 3, data_format="channels_first", name="conv"),
            layers.BatchNormalization(axis=1, name="norm"),
            layers.Flatten(data_format="channels_first"),
            layers.Dense(4, name="out"),
        ]
    )
    (group,) = prunable(trace(model))
    maps = {member.parameter: member.index_map.indices() for member in group.members}
    assert sorted(maps) == ["conv/bias", "conv/kernel", "norm/beta", "norm/gamma", *MOVING, "out/kernel"]
    assert np.array_equal(maps["out/kernel"][1], np.arange(36) * 6 + 1)  # Flatten moves the channels to the end


MOVING = ["norm/moving_mean", "norm/moving_variance"]


def test_weights_that_a_rule_does_not_describe_are_a_barrier() -> None:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="first"), layers.Dense(2, name="out")])
    model.layers[0].enable_lora(2)
    graph = trace(model)
    assert not prunable(graph)
    (barrier,) = graph.barriers
    assert str(barrier) == (
        "keras.Dense in 'first' has weights that its rule does not describe: lora_kernel_a, lora_kernel_b"
    )


@pytest.mark.parametrize(
    "combine",
    [
        lambda x: x * np.arange(8.0),
        lambda x: ops.where([True] * 8, x, 0.0),
        lambda x: ops.clip(x, np.arange(8.0), 9.0),
        lambda x: ops.where(np.arange(8) > 3, x, 0.0),
        layers.Rescaling([0.5] * 8),
    ],
)
def test_constants_pin_what_they_are_combined_with(combine: Any) -> None:
    inputs = keras.Input((6,))
    x = layers.Dense(8, name="first")(inputs)
    graph = trace(keras.Model(inputs, layers.Dense(2, name="out")(combine(x))))
    assert not prunable(graph)


def test_a_rule_can_be_written_for_a_layer_class() -> None:
    inputs = keras.Input((6,))
    x = Scaled(name="scaled")(layers.Dense(8, name="first")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    name = f"{Scaled.__module__}.Scaled"
    assert not prunable(trace(model))

    @register_rule(name)
    def follow_scale(tracer: Tracer, call: Call) -> None:
        tracer.set_labels(call.output, align_values(tracer, [call["inputs"], call["weights"]["scale"]], 2))

    try:
        (group,) = prunable(trace(model))
    finally:
        del RULES[name]
    assert [member.parameter for member in group.members] == [
        "first/kernel",
        "first/bias",
        "scaled/scale",
        "out/kernel",
    ]


class Scaled(layers.Layer):
    """A layer of the user with one weight per channel."""

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")

    def call(self, inputs: Any) -> Any:
        return inputs * self.scale

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def test_tied_weights_have_all_their_names() -> None:
    inputs = keras.Input((6,))
    first, second = layers.Dense(6, name="first", use_bias=False), layers.Dense(6, name="second", use_bias=False)
    first.build((None, 6))
    second._kernel, second.bias, second.built = first.kernel, None, True
    x = second(first(inputs))
    graph = trace(keras.Model(inputs, layers.Dense(2)(x)))
    assert {member.aliases for group in graph.groups for member in group.members if member.parameter[0] == "f"} == {
        ("second/kernel",)
    }


def nest() -> keras.Model:
    """A model inside another that takes a mapping, and a weight that an operation reads."""
    first, second = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    inner = keras.Model({"b": second, "a": first}, layers.Dense(5, name="middle")(first - second), name="inner")
    inputs = keras.Input((4,))
    hidden = layers.Dense(6, name="first")
    read = inner({"a": hidden(inputs), "b": ops.tanh(hidden(inputs))})
    return keras.Model(inputs, layers.Dense(2, name="out")(read) + ops.sum(hidden.bias * hidden.bias))


def test_inner_models_take_mappings_and_operations_take_variables() -> None:
    exhibit = KerasExhibit(nest, np.linspace(-1, 1, 12, dtype="float32").reshape(3, 4))
    graph = trace(exhibit.create())
    assert not graph.barriers
    assert {group.units for group in prunable(graph)} >= {5}
    for group in prunable(graph):
        assert probe(exhibit, group) < 1e-5, group.name


def test_inner_models_that_add_an_axis_stop_the_trace() -> None:
    column = keras.Input((6, 1))
    inner = keras.Model(column, layers.Flatten()(column * 2), name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="out")(inner(layers.Dense(6, name="first")(inputs))))
    graph = trace(model)
    assert [barrier.module for barrier in graph.barriers] == ["inner"]
    assert prunable(graph) == []


def test_bad_models_and_inputs_are_refused() -> None:
    model = KERAS_ZOO["two_inputs_and_outputs"].create()
    with pytest.raises(CalibrationError, match=r"found \[\(3, 6\)\]\. Pass one batch, or None"):
        trace(model, np.zeros((3, 6)))
    with pytest.raises(UnsupportedModelError, match="must be built"):
        trace(keras.Sequential([layers.Dense(2)]), None)
    with pytest.raises(UnsupportedModelError, match="found the layer Dense"):
        trace(layers.Dense(2), None)


def test_sizes_that_the_model_does_not_accept_are_refused() -> None:
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, layers.Dense(2)(ops.reshape(inputs, (-1, 12))))
    with pytest.raises(CalibrationError, match=r"\(2, 64, 4\).*Pass example inputs of sizes that the model accepts"):
        trace(model, None)
    assert trace(model, np.zeros((2, 6, 4))).groups
