"""Operations and layers of Keras, each alone between two dense layers: which units can go, and the proof that they can.

Every model is slimmed: its output must be that of the full model whose consumers of the same units are zero.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import secateur
from keras_zoo import SEQUENCE, KerasExhibit, fill, prunable, run
from secateur.graph import trace

Step = Callable[[Any], Any]

SPACED = np.array([3, 0, 4])


def surround(step: Step) -> keras.Model:
    """Create a model with an operation between two dense layers, of which the first has twelve outputs."""
    inputs = keras.Input(batch_shape=(2, 5, 12))
    return keras.Model(inputs, layers.Dense(3, name="out")(step(layers.Dense(12, name="first")(inputs))))


def prepare(step: Step) -> KerasExhibit:
    return KerasExhibit(lambda: surround(step), SEQUENCE)


def check_removal(exhibit: KerasExhibit) -> None:
    """Set the consumers of half of the units to zero, and compare the slimmed model with the full one."""
    model = exhibit.create()
    groups = prunable(trace(model, exhibit.inputs))
    before = run(model, exhibit.inputs)
    for group in groups:
        fill(model, group, range(0, group.units, 2), zeros=True)
    masked = run(model, exhibit.inputs)
    assert not np.allclose(masked, before, atol=1e-4)
    slimmed = secateur.slim(model, example_inputs=exhibit.inputs).model
    np.testing.assert_allclose(run(slimmed, exhibit.inputs), masked, rtol=0, atol=1e-5)
    shapes = [{variable.path: tuple(variable.shape) for variable in item.weights} for item in (model, slimmed)]
    assert sum(map(np.prod, shapes[1].values())) < sum(map(np.prod, shapes[0].values()))


def normalize_batch(x: Any) -> Any:
    """Give every channel statistics of its own, which come from the tensor itself."""
    mean, variance = ops.moments(x, axes=[0, 1])
    return ops.batch_normalization(x, mean, variance, axis=-1)


def normalize_layer(x: Any) -> Any:
    """Normalize the channels with an operation, and scale them by others."""
    gamma, beta = ops.mean(x, axis=(0, 1)), ops.max(x, axis=(0, 1))
    return ops.layer_normalization(x, gamma, beta)


def multiply_pieces(x: Any) -> Any:
    first, second, *_ = ops.split(x, [4, 8], axis=-1)
    return first * second


CHANNELS: dict[str, tuple[Step, int]] = {
    "concatenate positions": (lambda x: ops.concatenate([x, ops.tanh(x)], axis=1), 12),
    "concatenate channels": (lambda x: ops.concatenate([x, ops.tanh(x)], axis=-1), 12),
    "stack": (lambda x: ops.stack([x, ops.tanh(x)], axis=1), 12),
    "stack as the last axis": (lambda x: ops.max(ops.stack([x, ops.tanh(x)], axis=-1), axis=-1), 12),
    "split": (lambda x: ops.subtract(*ops.split(x, 2, axis=-1)), 6),
    "split positions": (lambda x: ops.split(x, [2], axis=1)[1], 12),
    "split at places": (multiply_pieces, 4),
    "array_split": (lambda x: ops.add(*ops.array_split(x, 2, axis=2)), 6),
    "unstack": (lambda x: ops.unstack(x, axis=1)[3], 12),
    "slice": (lambda x: ops.slice(x, (0, 1, 0), (2, 3, 12)), 12),
    "scale by one channel": (lambda x: x * x[..., 4:5], 11),
    "new axis": (lambda x: x[:, None, 2], 12),
    "ranges": (lambda x: x[:, 1:4, ...], 12),
    "negative step over positions": (lambda x: x[:, ::-1], 12),
    "flip": (lambda x: ops.flip(x, axis=-1), 12),
    "flip everything": (lambda x: ops.flip(x), 12),
    "roll": (lambda x: ops.roll(x, 2, axis=1), 12),
    "pad channels": (lambda x: ops.pad(x, ((0, 0), (1, 1), (2, 3)), constant_values=1.0), 12),
    "pad all axes alike": (lambda x: ops.pad(x, 1, constant_values=2.0), 12),
    "pad all axes by one pair": (lambda x: ops.pad(x, (1, 2)), 12),
    "reflect positions": (lambda x: ops.pad(x, ((0, 0), (2, 1), (0, 0)), mode="reflect"), 12),
    "expand_dims and squeeze": (lambda x: ops.squeeze(ops.tanh(ops.expand_dims(x, -2)), axis=2), 12),
    "reshape to heads": (lambda x: ops.max(ops.reshape(x, (2, 5, 3, 4)), axis=1)[:, 1], 4),
    "ravel": (lambda x: ops.reshape(ops.ravel(x), (2, 5, 12)), 12),
    "moveaxis": (lambda x: ops.moveaxis(ops.tanh(ops.moveaxis(x, -1, 0)), 0, 2), 12),
    "transpose": (lambda x: ops.transpose(ops.tanh(ops.transpose(x))), 12),
    "swapaxes": (lambda x: ops.swapaxes(ops.relu(ops.swapaxes(x, -1, 1)), 1, 2), 12),
    "broadcast_to": (lambda x: ops.broadcast_to(x, (3, 2, 5, 12)), 12),
    "tile": (lambda x: ops.tile(x, (2, 1, 2)), 12),
    "tile once": (lambda x: ops.tile(x, 2), 12),
    "repeat channels": (lambda x: ops.repeat(x, 2, axis=-1), 12),
    "repeat positions": (lambda x: ops.repeat(x, 2, axis=1), 12),
    "take": (lambda x: ops.take(x, SPACED, axis=1), 12),
    "take one": (lambda x: ops.take(x, 2, axis=-2), 12),
    "sum": (lambda x: ops.sum(x, axis=1), 12),
    "mean of two axes": (lambda x: ops.mean(x, axis=(0, -2), keepdims=True), 12),
    "logsumexp": (lambda x: ops.logsumexp(x, axis=1), 12),
    "dot with a number": (lambda x: ops.dot(x, 2.0), 12),
    "dot of two axes": (lambda x: ops.dot(np.ones((4, 2), "float32"), x[:, 0]), 12),
    "moments": (lambda x: ops.concatenate(ops.moments(x, axes=1), axis=-1), 12),
    "moments of two axes": (lambda x: ops.moments(x, axes=[0, 1], keepdims=True)[1], 12),
    "cumsum": (lambda x: ops.cumsum(x, axis=1), 12),
    "softmax over positions": (lambda x: ops.softmax(x, axis=1), 12),
    "softmax layer over positions": (lambda x: layers.Softmax(axis=1)(x), 12),
    "sort positions": (lambda x: ops.sort(x, axis=1), 12),
    "top_k of positions": (lambda x: ops.swapaxes(ops.top_k(ops.swapaxes(x, 1, 2), 2)[0], 1, 2), 12),
    "normalize positions": (lambda x: ops.normalize(x, axis=1), 12),
    "unit normalization of positions": (lambda x: layers.UnitNormalization(axis=1)(x), 12),
    "batch normalization": (normalize_batch, 12),
    "matmul with a constant": (lambda x: ops.matmul(np.ones((4, 5), "float32"), x), 12),
    "einsum without an arrow": (lambda x: ops.einsum("at,...tc", np.ones((4, 5), "float32"), x), 12),
    "merge": (lambda x: layers.Minimum()([x, layers.Subtract()([x, ops.tanh(x)])]), 12),
    "rescaling": (lambda x: layers.Rescaling(0.5, 1.0)(x), 12),
    "repeat vector": (lambda x: layers.RepeatVector(3)(x[:, 0]), 12),
}
"""An operation → how many units of the first layer can go."""


@pytest.mark.parametrize("name", CHANNELS)
def test_units_can_go_through(name: str) -> None:
    step, units = CHANNELS[name]
    exhibit = prepare(step)
    graph = trace(exhibit.create(), exhibit.inputs)
    assert [group.units for group in prunable(graph) if group.name == "first"] == [units]
    assert not prunable(graph, inexact=True)
    check_removal(exhibit)


PINNED: dict[str, tuple[Step, str]] = {
    "array_split into unlike pieces": (lambda x: ops.array_split(x, 5, axis=-1)[0], "pieces of different lengths"),
    "unstack": (lambda x: ops.unstack(ops.swapaxes(x, 1, 2), axis=1)[3], "selects one of them"),
    "every second": (lambda x: x[..., ::2], "takes every 2th of them"),
    "one channel": (lambda x: x[..., 3, None], "selects one of them"),
    "a range of one channel": (lambda x: x[..., 3:4], "uses one of them alone"),
    "roll everything": (lambda x: ops.roll(x, 2), "shifts them"),
    "reflect channels": (lambda x: ops.pad(x, ((0, 0), (0, 0), (2, 1)), mode="reflect"), "repeats some of them"),
    "repeat by numbers": (lambda x: ops.repeat(x, np.arange(12), axis=-1), "by different numbers"),
    "repeat all elements": (lambda x: ops.repeat(x, 2)[:, None], "flattens its input"),
    "take channels": (lambda x: ops.take(x, SPACED, axis=-1), "looks them up by number"),
    "take from all": (lambda x: ops.take(x, SPACED)[:, None], "flattens its input"),
    "take_along_axis": (
        lambda x: ops.take_along_axis(x, np.zeros((2, 5, 1), "int32"), axis=-1),
        "looks them up by number",
    ),
    "one_hot": (lambda x: ops.one_hot(ops.cast(x, "int32"), 4), "uses their values as positions"),
    "take by channels": (
        lambda x: ops.take(np.ones((4, 3), "float32"), ops.cast(ops.sigmoid(x), "int32"), axis=0),
        "uses them as indices",
    ),
    "cumsum of all elements": (lambda x: ops.cumsum(x)[:, None], "flattens its input"),
    "sort channels": (lambda x: ops.sort(x, axis=-1), "orders them"),
    "sort all elements": (lambda x: ops.sort(x, axis=None)[:, None], "flattens its input"),
    "rescale each channel": (lambda x: layers.Rescaling(np.ones(12))(x), "a constant factor for each channel"),
    "merge of unlike ranks": (lambda x: layers.Add()([x, x[:, 0]]), "different numbers of axes"),
    "dot of many axes": (lambda x: ops.dot(x, np.ones((12, 2), "float32")), "more than two axes"),
    "einsum with a diagonal": (lambda x: ops.einsum("bxx->bx", x[:, :, :5]), "has a diagonal in its equation"),
    "normalized dot": (lambda x: layers.Dot(axes=2, normalize=True)([x, x]), "normalizes its inputs"),
    "statistics of inputs": (lambda x: layers.Normalization()(x), "has statistics of the model's inputs"),
    "convolution": (lambda x: ops.conv(x, np.ones((3, 12, 4), "float32")), "a tensor of constant size"),
    "depthwise convolution": (
        lambda x: ops.depthwise_conv(x, np.ones((3, 12, 1), "float32")),
        "a tensor of constant size",
    ),
    "transposed convolution": (
        lambda x: ops.conv_transpose(x, np.ones((3, 4, 12), "float32"), strides=2),
        "a tensor of constant size",
    ),
    "additive attention": (lambda x: layers.Attention(score_mode="concat")([x, x]), "concat_score_weight"),
}
"""An operation → why no unit of the first layer can go."""


@pytest.mark.parametrize("name", PINNED)
def test_units_stay(name: str) -> None:
    step, reason = PINNED[name]
    graph = trace(surround(step), SEQUENCE)
    obstacles = [group.obstacle for group in graph.groups if group.name.startswith("first")]
    assert any(reason in (obstacle or "") for obstacle in obstacles), obstacles
    assert not [group.name for group in prunable(graph) + prunable(graph, inexact=True)]


INEXACT: dict[str, Step] = {
    "sum": lambda x: ops.sum(x, axis=-1, keepdims=True),
    "argmax": lambda x: ops.cast(ops.argmax(x, axis=-1, keepdims=True), "float32"),
    "mean of all": lambda x: ops.reshape(ops.mean(x), (1, 1)),
    "cumsum": lambda x: ops.cumsum(x, axis=-1),
    "softmax": lambda x: ops.softmax(x),
    "softmax of all": lambda x: ops.softmax(x, axis=None),
    "layer normalization": normalize_layer,
    "rms normalization": lambda x: ops.rms_normalization(x, ops.mean(x, axis=(0, 1))),
    "normalize": lambda x: ops.normalize(x),
    "normalize all": lambda x: ops.normalize(x, axis=None),
    "unit normalization": lambda x: layers.UnitNormalization()(x),
    "attention": lambda x: layers.Attention(use_scale=True)([x, x]),
    "dot": lambda x: layers.Dot(axes=2)([x, ops.tanh(x)]),
    "dot of vectors": lambda x: layers.Dot(axes=1)([x[:, 0], x[:, 1]]),
}
"""An operation that combines the units, so that the rest of the model depends on how many there are."""


@pytest.mark.parametrize("name", INEXACT)
def test_removal_is_inexact(name: str) -> None:
    graph = trace(surround(INEXACT[name]), SEQUENCE)
    assert [group.units for group in graph.groups if group.inexact is not None] == [12]
    assert not prunable(graph)


def attend(x: Any, heads: int, key_heads: int, **options: Any) -> Any:
    """Attend with an operation, with heads of four channels from reshapes."""
    counts = {"query": heads, "key": key_heads, "value": key_heads}
    split = {name: layers.Dense(4 * count, name=name)(x) for name, count in counts.items()}
    tensors = (ops.reshape(split[name], (2, 5, counts[name], 4)) for name in counts)
    return ops.reshape(ops.dot_product_attention(*tensors, **options), (2, 5, 4 * heads))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": np.tril(np.ones((1, 1, 5, 5), dtype=bool))},
        {"is_causal": True, "bias": np.ones((2, 1, 5, 5), "float32")},
    ],
    ids=["plain", "mask", "bias"],
)
def test_heads_of_the_operation_are_units(options: dict[str, Any]) -> None:
    """Its channels are none: Keras takes the width of the result from that of the queries."""
    exhibit = prepare(lambda x: attend(x, 3, 3, **options))
    graph = trace(exhibit.create(), exhibit.inputs)
    assert [group.units for group in prunable(graph, "heads")] == [3]
    assert [group.name for group in prunable(graph, "channels")] == ["first"]
    assert not prunable(graph, inexact=True)
    check_removal(exhibit)


def test_query_heads_of_the_operation_belong_to_their_key() -> None:
    """The NumPy backend of Keras cannot run this, so that only the graph is looked at."""
    (group,) = prunable(trace(surround(lambda x: attend(x, 4, 2)), SEQUENCE), "heads")
    maps = {member.parameter: member.index_map.indices() for member in group.members}
    assert np.array_equal(maps["query/bias"], np.arange(16).reshape(2, 8))
    assert np.array_equal(maps["key/bias"], np.arange(8).reshape(2, 4))


def test_channels_of_the_operation_stay() -> None:
    """Where heads are an axis of the kernels, their channels would else be units of their own."""

    def step(x: Any) -> Any:
        heads = [layers.EinsumDense("abc,cde->abde", (5, 3, 4), name=name)(x) for name in ("query", "key", "value")]
        return ops.reshape(ops.dot_product_attention(*heads), (2, 5, 12))

    exhibit = prepare(step)
    graph = trace(exhibit.create(), exhibit.inputs)
    assert [(group.units, group.kind) for group in prunable(graph)] == [(12, "channels"), (3, "heads")]
    assert not prunable(graph, inexact=True)
    check_removal(exhibit)


def test_a_mask_with_a_bias_is_a_barrier() -> None:
    masks = {"mask": np.ones((1, 1, 5, 5), dtype=bool), "bias": np.ones((1, 1, 5, 5), "float32")}
    (barrier,) = trace(surround(lambda x: attend(x, 3, 3, **masks)), SEQUENCE).barriers
    assert barrier.reason == "has a mask and a bias"


def test_scores_that_are_read_make_heads_inexact() -> None:
    def step(x: Any) -> Any:
        attention = layers.MultiHeadAttention(3, 4, name="attention")
        mask = np.tril(np.ones((2, 5, 5), dtype=bool))
        combined, scores = attention(x, x, attention_mask=mask, return_attention_scores=True)
        return combined * ops.max(scores)

    graph = trace(surround(step), SEQUENCE)
    assert [(group.units, group.kind) for group in prunable(graph, inexact=True)] == [(3, "heads")]


def test_attention_without_projections_passes_on_values() -> None:
    """Queries and keys are united and inexact; values of their own are exact."""

    def step(x: Any) -> Any:
        value, key = layers.Dense(8, name="value")(x), layers.Dense(12, name="key")(x)
        combined, scores = layers.Attention()([x, value, key], return_attention_scores=True)
        return ops.matmul(scores, combined)

    exhibit = prepare(step)
    assert [group.name for group in prunable(trace(surround(step), SEQUENCE))] == ["value"]
    check_removal(exhibit)
