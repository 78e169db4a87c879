"""The plan of a Keras model: every layer, under the names that lead to it, with its output found."""

from typing import Any

import keras
import pytest

import secateur
from secateur.errors import LayerError, UnsupportedModelError
from secateur.frameworks.keras import name_variables

layers = keras.layers


def sequential() -> keras.Model:
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, name="fc"), layers.ReLU(), layers.Dense(4, name="out")]
    )


def two_heads() -> keras.Model:
    entrance = keras.Input((8,))
    hidden = layers.Dense(16, name="stem")(entrance)
    first = layers.Softmax()(layers.Dense(4, name="classes")(hidden))
    second = layers.Reshape((2, 2))(layers.Dense(4, name="boxes")(layers.Dense(8, name="neck")(hidden)))
    return keras.Model(entrance, [first, second])


def nested() -> keras.Model:
    inner = keras.Input((16,))
    head = keras.Model(inner, layers.Dense(4, name="last")(layers.Dense(16, name="first")(inner)), name="head")
    entrance = keras.Input((8,))
    return keras.Model(entrance, head(layers.Dense(16, name="stem")(entrance)))


def residual() -> keras.Model:
    entrance = keras.Input((8,))
    return keras.Model(entrance, entrance + layers.Dense(8, name="fc")(entrance))


def normalized() -> keras.Model:
    entrance = keras.Input((8,))
    hidden = layers.Dense(8, name="second")(layers.Dense(8, name="first")(entrance))
    return keras.Model(entrance, layers.LayerNormalization()(hidden))


def attention() -> keras.Model:
    tokens = keras.Input((5, 8))
    attended = layers.MultiHeadAttention(2, 4, name="attention")(tokens, tokens)
    return keras.Model(tokens, layers.Dense(4, name="out")(layers.GlobalAveragePooling1D()(attended)))


class Block(layers.Layer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.wide = layers.Dense(16, name="wide")
        self.parts = [layers.Dense(8, name="narrow"), layers.Dense(8, name="narrow")]

    def call(self, inputs: Any) -> Any:
        return self.parts[1](self.parts[0](self.wide(inputs)))


class Subclassed(keras.Model):
    def __init__(self, *, headed: bool) -> None:
        super().__init__()
        self.blocks = [Block(name="one"), Block(name="two")]
        self.head = layers.Dense(4, name="head") if headed else layers.ReLU()

    def call(self, inputs: Any) -> Any:
        for block in self.blocks:
            inputs = block(inputs)
        return self.head(inputs)


def subclassed(*, headed: bool) -> keras.Model:
    model = Subclassed(headed=headed)
    model(keras.ops.zeros((2, 8)))
    return model


BLOCKS = [f"{block}/{layer}" for block in ("one", "two") for layer in ("wide", "narrow", "narrow#2")]

MODELS: dict[str, tuple[Any, list[str], list[str]]] = {
    "sequential": (sequential, ["fc"], ["out"]),
    "two heads": (two_heads, ["stem", "neck"], ["classes", "boxes"]),
    "nested": (nested, ["stem", "head/first"], ["head/last"]),
    "residual": (residual, ["fc"], []),
    "normalized": (normalized, ["first", "second"], []),
    "attention": (
        attention,
        ["attention/query", "attention/key", "attention/value", "attention/attention_output"],
        ["out"],
    ),
    "subclassed": (lambda: subclassed(headed=True), BLOCKS, ["head"]),
    "subclassed, headless": (lambda: subclassed(headed=False), BLOCKS, []),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_and_outputs(name: str) -> None:
    make, pruned, outputs = MODELS[name]
    plan = secateur.plan(make(), {"pattern": "4x1"})
    assert [layer.name for layer in plan.layers if layer.is_pruned] == pruned
    assert [layer for layer, reason in plan.dense.items() if reason.startswith("output layer")] == outputs


def test_every_layer_with_a_matrix_is_listed_with_its_reason() -> None:
    tokens = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(20, 8, name="embedding")(tokens)
    hidden = layers.SeparableConv1D(8, 3, name="separable")(layers.GRU(8, return_sequences=True, name="gru")(hidden))
    hidden = layers.DepthwiseConv1D(3, name="depthwise")(layers.BatchNormalization()(hidden))
    model = keras.Model(tokens, layers.Dense(6, name="odd")(layers.Dense(4, name="fc")(layers.Flatten()(hidden))))
    model.get_layer("fc").trainable = False
    plan = secateur.plan(model, {"pattern": "4x1", "layers": {"odd": {"target_sparsity": 0.5, "pattern": "2x1"}}})
    reasons = {layer.name: layer.reason for layer in plan.layers}
    assert reasons == {
        "embedding": "Embedding is not a supported layer type",
        "gru/gru_cell": "GRUCell is not a supported layer type",
        "separable": None,
        "depthwise": "1 output channels in each of 8 groups are not a multiple of N=4 in '4x1' (weight 3x8x1). "
        "Exclude the layer or pick another pattern.",
        "fc": "frozen (trainable=False)",
        "odd": None,
    }


def test_a_shared_layer_is_listed_once_and_a_shared_kernel_pruned_once() -> None:
    entrance = keras.Input((8,))
    shared = layers.Dense(8, name="shared")
    model = keras.Model(entrance, layers.Dense(4, name="out")(shared(shared(entrance))))
    assert [layer.name for layer in secateur.plan(model, {"pattern": "4x1"}).layers] == ["shared", "out"]


def test_configuration_by_name_and_type() -> None:
    rules = {"layers": {"attention/.*": {"pattern": "1xchannel"}}, "layer_types": {"Dense": None}}
    config = {"pattern": "4x1", "target_sparsity": 0.5} | rules
    plan = secateur.plan(attention(), config)
    assert {layer.name: layer.config.pattern for layer in plan.layers if layer.config} == dict.fromkeys(
        MODELS["attention"][1], "1xchannel"
    )


def test_a_model_that_is_not_built_is_refused() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"must be built, so that its kernels have shapes\. Call model.build"
    ):
        secateur.plan(keras.Sequential([layers.Dense(4)]), {"pattern": "4x1"})


def test_a_model_of_neither_framework_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"must be a torch\.nn\.Module or a keras\.Model, found list"):
        secateur.plan([1], {"pattern": "4x1"})


def lora(*, zeros: bool) -> keras.Model:
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(8, name="body"), keras.layers.Dense(4, name="head")]
    )
    if zeros:
        secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5})
    model.layers[0].enable_lora(2)
    return model


def test_a_lock_refuses_zeros_under_lora() -> None:
    lock = {"kind": "pattern_lock"}
    with pytest.raises(
        LayerError, match="body/kernel: LoRA adds to this kernel, so its zeros are lost when it is merged"
    ):
        secateur.plan(lora(zeros=True), lock)
    reasons = {layer.name: layer.reason for layer in secateur.plan(lora(zeros=False), lock).layers}
    assert reasons == {
        "body/kernel": "frozen (trainable=False)",
        "body/lora_kernel_a": "has no zeros",
        "body/lora_kernel_b": "all zero: untrained rather than pruned, so it may change",
        "head": None,
    }
    assert secateur.plan(lora(zeros=True), {**lock, "excluded_op_names": ["body"]}).layers[-1].is_pruned


class Doubled(layers.Layer):
    """Two matrices of the same name, and one of whole numbers."""

    def build(self, shape: Any) -> None:
        self.first, self.second = (self.add_weight(shape=(shape[-1], 4), name="matrix") for _ in range(2))
        self.codes = self.add_weight(shape=(4, 4), dtype="int32", initializer="zeros", trainable=False, name="codes")

    def call(self, inputs: Any) -> Any:
        return keras.ops.matmul(inputs, self.first + self.second)


def test_matrices_of_one_layer_have_names_and_reasons() -> None:
    model = keras.Sequential([keras.Input((8,)), Doubled(name="own"), layers.Dense(4, name="out")])
    found = secateur.plan(model, {"kind": "pattern_lock", "op_names": [".*"]})
    reasons = {layer.name: layer.reason for layer in found.layers}
    assert {"own/matrix", "own/matrix#2", "own/codes"} <= reasons.keys()
    assert reasons["own/codes"] == "its dtype is int32; zeros of floating-point variables are kept"
    assert set(name_variables(model)) >= {"own/matrix", "own/matrix#2", "own/codes"}
