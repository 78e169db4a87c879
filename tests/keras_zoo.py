"""Small Keras models, one for each way in which the axes of weights can depend on each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from secateur.frameworks.keras import name_variables, read_array
from secateur.graph import Graph, Group, Role

Groups = dict[str, int]


@dataclass(frozen=True)
class KerasExhibit:
    """A model, its inputs, and what must be found in it.

    Attributes:
        build: Creates the model.
        inputs: One batch.
        channels: Name of each group of channels that can be removed exactly → its units.
        heads: The same for heads.
        inexact: The same for groups whose removal is inexact.
        barriers: Layers without a rule.
    """

    build: Callable[[], keras.Model]
    inputs: Any
    channels: Groups = field(default_factory=dict)
    heads: Groups = field(default_factory=dict)
    inexact: Groups = field(default_factory=dict)
    barriers: tuple[str, ...] = ()

    def create(self) -> keras.Model:
        """Return the model with random values everywhere."""
        keras.utils.set_random_seed(0)
        model = self.build()
        generator = np.random.default_rng(0)
        for variable in model.weights:
            if keras.backend.is_float_dtype(variable.dtype) and len(variable.shape) < 2:
                values = generator.uniform(0.5, 1.5, variable.shape)
                variable.assign(values if "variance" in variable.name else values - 1)
        return model


def prunable(graph: Graph, kind: str | None = None, *, inexact: bool = False) -> list[Group]:
    return [
        group
        for group in graph.groups
        if group.obstacle is None and (group.inexact is not None) == inexact and kind in (None, group.kind)
    ]


def run(model: keras.Model, inputs: Any) -> Any:
    outputs = keras.tree.flatten(model(inputs, training=False))
    return np.concatenate([read_array(tensor).reshape(-1) for tensor in outputs])


def fill(model: keras.Model, group: Group, pruned: Sequence[int], *, zeros: bool) -> None:
    """Set the consumers of some units to zero, or all their other slices to noise."""
    variables = name_variables(model)
    generator = np.random.default_rng(1)
    for member in group.members:
        if (member.role is Role.CONSUMER) is zeros:
            values = np.moveaxis(read_array(variables[member.parameter]).copy(), member.axis, 0)
            indices = member.index_map.indices()[list(pruned)].reshape(-1)
            values[indices] = 0 if zeros else generator.uniform(0.5, 1.5, values[indices].shape)
            variables[member.parameter].assign(np.moveaxis(values, 0, member.axis))


KERAS_ZOO: dict[str, KerasExhibit] = {}


def exhibit(inputs: Any, **expected: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Create a decorator that adds a function to the zoo; it returns a model, or the layers of one."""

    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        def create() -> keras.Model:
            model = build()
            return keras.Sequential(model) if isinstance(model, list) else model

        KERAS_ZOO[build.__name__] = KerasExhibit(create, inputs, **expected)
        return build

    return add


IMAGE = np.sin(np.linspace(-1, 1, 2 * 8 * 8 * 3)).reshape(2, 8, 8, 3).astype("float32")
TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 0]])
SEQUENCE = np.cos(np.linspace(-1, 1, 2 * 5 * 12)).reshape(2, 5, 12).astype("float32")
VECTOR = np.sin(np.linspace(-1, 1, 3 * 6)).reshape(3, 6).astype("float32")


@keras.saving.register_keras_serializable("zoo")
def shift(x: Any) -> Any:
    """An activation of the user."""
    return ops.roll(x, 1, axis=-1)


@exhibit(VECTOR, channels={"first": 8, "second": 10})
def perceptron() -> list[Any]:
    return [
        keras.Input((6,)),
        layers.Dense(8, activation="relu", name="first"),
        layers.Dropout(0.5),
        layers.Dense(10, activation=layers.LeakyReLU(), name="second"),
        layers.Dense(4, activation="softmax", name="out"),
    ]


@exhibit(VECTOR, inexact={"first": 8})
def softmax_inside() -> list[Any]:
    return [keras.Input((6,)), layers.Dense(8, activation="softmax", name="first"), layers.Dense(4, name="out")]


@exhibit(VECTOR, channels={"second": 7}, barriers=("first",))
def written_activation() -> list[Any]:
    """A function of the user, which may do anything with the channels of the first layer."""
    return [
        keras.Input((6,)),
        layers.Dense(8, activation=shift, name="first"),
        layers.Dense(7, name="second"),
        layers.Dense(4, name="out"),
    ]


@exhibit(IMAGE, channels={"conv": 8, "fc": 5})
def flatten() -> list[Any]:
    """Each channel has a column of the dense layer for each position."""
    return [
        keras.Input((8, 8, 3)),
        layers.Conv2D(8, 3, strides=2, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(),
        layers.ZeroPadding2D(1),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(5, activation="gelu", name="fc"),
        layers.Dense(4, name="out"),
    ]


@exhibit(IMAGE, channels={"stem": 8, "inner": 6})
def residual() -> keras.Model:
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(6, 3, padding="same", name="inner")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Conv2D(8, 1, name="outer")(layers.Activation("relu")(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(4, name="out")(layers.GlobalAveragePooling2D()(x)))


@exhibit(IMAGE, channels={"first": 4, "second": 6, "third": 5})
def dense_blocks() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    y = layers.Conv2D(6, 3, padding="same", name="second")(x)
    z = layers.Conv2D(5, 1, name="third")(layers.Concatenate()([x, y]))
    x = layers.Concatenate(axis=-1)([x, z, y])
    return keras.Model(inputs, layers.Dense(4, name="out")(layers.GlobalMaxPooling2D()(x)))


@exhibit(IMAGE, channels={"expand": 6, "separable": 5, "squeeze": 3, "stem": 4})
def inverted_bottleneck() -> keras.Model:
    """A depthwise convolution with two outputs per channel, squeeze and excitation, and a separable convolution."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="stem")(inputs)
    y = layers.Conv2D(6, 1, activation="relu6", name="expand")(x)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(y)
    y = layers.BatchNormalization(name="norm")(y)
    scale = layers.GlobalAveragePooling2D(keepdims=True)(y)
    scale = layers.Conv2D(3, 1, activation="silu", name="squeeze")(scale)
    scale = layers.Conv2D(12, 1, activation="sigmoid", name="excite")(scale)
    y = layers.Conv2D(4, 1, name="project")(layers.Multiply()([y, scale]))
    x = layers.SeparableConv2D(5, 3, depth_multiplier=2, name="separable")(x + y)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.GlobalAveragePooling2D()(x)))


@exhibit(IMAGE, channels={"stem": 4})
def grouped() -> list[Any]:
    """Whole groups of a grouped convolution are units, with their inputs and outputs."""
    return [
        keras.Input((8, 8, 3)),
        layers.Conv2D(8, 3, name="stem"),
        layers.Conv2D(12, 3, groups=4, name="grouped"),
        layers.PReLU(shared_axes=(1, 2), name="slopes"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(4, name="out"),
    ]


@exhibit(IMAGE, channels={"down": 6, "bottom": 8, "up": 5, "last": 4})
def u_net() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="down")(inputs)
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="bottom")(layers.AveragePooling2D(2)(x))
    y = layers.Conv2DTranspose(5, 2, strides=2, name="up")(y)
    z = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(y))
    z = layers.Cropping2D(1)(layers.ZeroPadding2D(1)(z))
    y = layers.Conv2D(4, 3, padding="same", name="last")(layers.Concatenate()([x, y, z]))
    return keras.Model(inputs, layers.Conv2D(2, 1, name="out")(y))


@exhibit(IMAGE, channels={"first": 6, "second": 3}, inexact={"third": 4})
def group_norms() -> list[Any]:
    """One group per channel is exact; two channels of each group are a unit; one group over all is inexact."""
    return [
        keras.Input((8, 8, 3)),
        layers.Conv2D(6, 3, name="first"),
        layers.GroupNormalization(-1, name="each"),
        layers.Conv2D(6, 3, name="second"),
        layers.GroupNormalization(3, name="groups"),
        layers.Conv2D(4, 3, name="third"),
        layers.GroupNormalization(1, name="all"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2, name="out"),
    ]


@exhibit(
    TOKENS,
    channels={"up": 16},
    heads={"attention": 4},
    inexact={"embed": 12},
)
def transformer() -> keras.Model:
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 12, name="embed")(inputs)
    y = layers.LayerNormalization(name="norm")(x)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 3, name="attention")(y, y, use_causal_mask=True)])
    y = layers.Dense(16, activation="gelu", name="up")(layers.RMSNormalization(name="norm2")(x))
    x = x + layers.Dense(12, name="down")(y)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


@exhibit(SEQUENCE, heads={"attention": 2})
def grouped_query_attention() -> keras.Model:
    inputs = keras.Input((5, 12))
    y = layers.GroupQueryAttention(4, 6, 2, use_gate=True, name="attention")(inputs, inputs)
    return keras.Model(inputs, y)


@exhibit(SEQUENCE, channels={"attention/value": 4, "first": 6, "attention/attention_output": 7}, heads={"attention": 3})
def cross_attention() -> keras.Model:
    """Keys and values from another sequence, with a width of their own, and a result of another width."""
    inputs = keras.Input((5, 12))
    memory = layers.Dense(6, name="first")(inputs[:, 1:4])
    attention = layers.MultiHeadAttention(
        3, 4, value_dim=4, dropout=0.5, output_shape=7, use_bias=False, name="attention"
    )
    return keras.Model(inputs, layers.Dense(2, name="out")(attention(inputs, memory)[:, 0]))


@exhibit(SEQUENCE, heads={"key": 3})
def written_attention() -> keras.Model:
    """Attention with operations: heads come from a reshape."""
    inputs = keras.Input((5, 12))
    query, key, value = (
        ops.transpose(ops.reshape(layers.Dense(12, name=name)(inputs), (-1, 5, 3, 4)), (0, 2, 1, 3))
        for name in ("query", "key", "value")
    )
    scores = ops.softmax(ops.matmul(query, ops.swapaxes(key, -2, -1)) / 2.0, axis=-1)
    combined = ops.reshape(ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3)), (-1, 5, 12))
    return keras.Model(inputs, layers.Dense(12, name="output")(combined))


@exhibit(SEQUENCE, channels={"value": 4}, heads={"query": 3})
def einsum_attention() -> keras.Model:
    """Attention with einsums: heads are an axis of the kernels."""
    inputs = keras.Input((5, 12))
    query, key, value = (
        layers.EinsumDense("abc,cde->abde", (None, 3, 4), bias_axes="de", name=name)(inputs)
        for name in ("query", "key", "value")
    )
    scores = layers.Softmax()(ops.einsum("btnh,bsnh->bnts", query, key))
    combined = ops.einsum("bnts,bsnh->btnh", scores, value)
    output = layers.EinsumDense("...nh,nhd->...d", 12, bias_axes="d", name="output")
    return keras.Model(inputs, output(combined))


@exhibit(SEQUENCE, channels={"both": 8, "down": 12, "gate": 6})
def gated() -> keras.Model:
    """Two gated feed-forward parts: the halves of one layer, and two layers."""
    inputs = keras.Input((5, 12))
    first, second = ops.split(layers.Dense(16, name="both")(inputs), 2, axis=-1)
    x = layers.Dense(12, name="down")(ops.silu(first) * second)
    y = layers.Dense(6, activation="silu", name="gate")(x) * layers.Dense(6, name="up")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(y))


@exhibit(SEQUENCE, channels={"first": 8, "inner/up": 6})
def nested() -> keras.Model:
    """A model inside another is called twice, with what it returned the first time."""
    inner = keras.Sequential(
        [keras.Input((None, 8)), layers.Dense(6, activation="relu", name="up"), layers.Dense(8, name="down")],
        name="inner",
    )
    inputs = keras.Input((5, 12))
    x = layers.Dense(8, name="first")(inputs)
    x = inner(inner(x))
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


@exhibit({"left": VECTOR, "right": VECTOR[:, :4]}, channels={"left_fc": 8})
def two_inputs_and_outputs() -> keras.Model:
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    x = layers.Maximum()([layers.Dense(8, name="left_fc")(left), layers.Dense(8, name="right_fc")(right)])
    x = layers.Average()([x, ops.tanh(x)])
    outputs = {"mean": layers.Dense(2, name="mean")(x), "spread": layers.Dense(3, name="spread")(x)}
    return keras.Model({"left": left, "right": right}, outputs)


@exhibit(TOKENS, channels={"table": 12})
def tied_embedding() -> keras.Model:
    """A table is looked up and multiplied: its columns produce and consume."""
    inputs = keras.Input((5,), dtype="int32")
    table = layers.ReversibleEmbedding(20, 12, name="table")
    return keras.Model(inputs, table(ops.relu(table(inputs)), reverse=True))


@exhibit(SEQUENCE, channels={"conv": 8, "second": 6, "third": 9})
def sequence_convolutions() -> keras.Model:
    """Permuted, repeated and padded sequences."""
    inputs = keras.Input((5, 12))
    x = layers.Conv1D(8, 3, padding="causal", name="conv")(inputs)
    x = layers.UpSampling1D(2)(layers.Cropping1D(1)(layers.ZeroPadding1D(1)(x)))
    x = layers.Conv1DTranspose(6, 3, name="second")(layers.SpatialDropout1D(0.5)(x))
    x = layers.Dense(9, name="third")(layers.GlobalMaxPooling1D()(x))
    x = layers.Permute((2, 1))(layers.RepeatVector(4)(x))
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.Reshape((36,))(x)))


@exhibit(SEQUENCE, channels={"first": 6, "first (2)": 8})
def sliced() -> keras.Model:
    """Parts of one layer's outputs go different ways."""
    inputs = keras.Input(batch_shape=(2, 5, 12))
    x = layers.Dense(14, name="first")(inputs)
    y = layers.Dense(3, name="left")(x[..., :6])
    z = layers.Dense(3, name="right")(ops.slice(x, (0, 0, 6), (2, 5, 8)) * 2.0)
    return keras.Model(inputs, ops.concatenate([y, z], axis=1))


@exhibit(SEQUENCE, channels={"after": 4}, barriers=("lstm",))
def recurrent() -> list[Any]:
    return [
        keras.Input((5, 12)),
        layers.Dense(8, name="before"),
        layers.LSTM(6, name="lstm"),
        layers.Dense(4, name="after"),
        layers.Dense(2, name="out"),
    ]


@exhibit(VECTOR, channels={"second": 4}, barriers=("function",))
def function_layer() -> list[Any]:
    return [
        keras.Input((6,)),
        layers.Dense(8, name="first"),
        layers.Lambda(shift, output_shape=(8,), name="function"),
        layers.Dense(4, name="second"),
        layers.Dense(2, name="out"),
    ]


@keras.saving.register_keras_serializable("zoo")
class Shifted(layers.Layer):
    """A layer of the user, with a weight."""

    def build(self, input_shape: Any) -> None:
        self.shift = self.add_weight(shape=(2, input_shape[-1]), name="shift")

    def call(self, inputs: Any) -> Any:
        return ops.roll(inputs, 1, axis=-1) + self.shift[0]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@exhibit(VECTOR, channels={"second": 4}, barriers=("shifted",))
def layer_without_rule() -> list[Any]:
    return [
        keras.Input((6,)),
        layers.Dense(8, name="first"),
        Shifted(name="shifted"),
        layers.Dense(4, name="second"),
        layers.Dense(2, name="out"),
    ]


@exhibit(VECTOR, channels={"first": 8})
def rolled() -> keras.Model:
    """A shift is a number of indices, so that the channels after it are pinned."""
    inputs = keras.Input((6,))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.Dense(7, name="second")(ops.relu(x))
    return keras.Model(inputs, layers.Dense(2, name="out")(ops.roll(x, 1, axis=-1)))


@keras.saving.register_keras_serializable("zoo")
class WrittenModel(keras.Model):
    """A subclassed model."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.second = layers.Dense(8, name="first"), layers.Dense(2, name="second")

    def build(self, input_shape: Any) -> None:
        self.first.build(input_shape)
        self.second.build((None, 8))

    def call(self, inputs: Any) -> Any:
        return self.second(self.first(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], 2)


@exhibit(VECTOR, barriers=("",))
def subclassed() -> keras.Model:
    model = WrittenModel()
    model.build((None, 6))
    return model


@exhibit(VECTOR, channels={"before": 7}, barriers=("block",))
def subclassed_inside() -> keras.Model:
    inputs = keras.Input((6,))
    x = layers.Dense(7, name="before")(inputs)
    x = layers.Dense(5, name="middle")(x)
    block = WrittenModel(name="block")
    return keras.Model(inputs, layers.Dense(3, name="after")(block(x)))
