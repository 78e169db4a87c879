from typing import Any

import numpy as np
import pytest

from secateur.errors import UnsupportedModelError
from secateur.patterns import BasePattern, get_pattern

keras = pytest.importorskip("keras")

from secateur.frameworks.keras import (  # noqa: E402 - needs keras
    FRAMEWORK,
    find_weight_layers,
    get_kernel,
    get_type_names,
    name_variables,
)

layers = keras.layers

LAYERS = {
    "Dense": (lambda: layers.Dense(6), (2, 4), 1),
    "EinsumDense": (lambda: layers.EinsumDense("ab,bc->ac", 6), (2, 4), 1),
    "EinsumDense to heads": (lambda: layers.EinsumDense("abc,cde->abde", (None, 3, 2)), (2, 5, 4), 1),
    "EinsumDense from heads": (lambda: layers.EinsumDense("abcd,cde->abe", (None, 6)), (2, 5, 2, 2), 2),
    "EinsumDense, crossed": (lambda: layers.EinsumDense("abcd,edc->abe", (None, 6)), (2, 5, 2, 2), 2),
    "EinsumDense, turned": (lambda: layers.EinsumDense("abc,dce->abed", (None, 3, 2)), (2, 5, 4), 1),
    "EinsumDense, grouped": (lambda: layers.EinsumDense("abc,bcd->abd", (2, 3)), (2, 2, 4), 2),
    "EinsumDense, grouped last": (lambda: layers.EinsumDense("...bc,cdb->...bd", (2, 3)), (3, 2, 4), 2),
    "EinsumDense, groups turned": (lambda: layers.EinsumDense("abc,bcd->adb", (3, 2)), (2, 2, 4), 2),
    "Conv1D": (lambda: layers.Conv1D(6, 3), (2, 5, 4), 1),
    "Conv2D": (lambda: layers.Conv2D(6, (3, 2)), (2, 5, 5, 4), 1),
    "Conv3D": (lambda: layers.Conv3D(6, 2), (2, 3, 3, 3, 4), 1),
    "grouped": (lambda: layers.Conv2D(6, 3, groups=2), (2, 5, 5, 4), 1),
    "DepthwiseConv1D": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), (2, 5, 4), 1),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (2, 5, 5, 4), 1),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(6, 3), (2, 5, 4), 1),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(6, (3, 2)), (2, 5, 5, 4), 1),
    "Conv3DTranspose": (lambda: layers.Conv3DTranspose(6, 2), (2, 3, 3, 3, 4), 1),
}
"""Name → a layer, the shape of its input, and how many of the input's last axes number its channels."""

# Keras's own, where its NumPy backend hands a variable to JAX or quantizes it.
keras_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def built(name: str) -> tuple[Any, Any]:
    """A layer and a batch for it."""
    make, shape, _ = LAYERS[name]
    layer = make()
    inputs = np.random.default_rng(0).standard_normal(shape).astype("float32")
    layer(inputs)
    return layer, inputs


def bound(spec: str, layer: Any) -> BasePattern:
    pattern = get_pattern({"pattern": spec, "target_sparsity": 0.5}, {"layer": layer}, "keras")
    assert not pattern.invalid_layers
    return pattern


def outputs_without(pattern: BasePattern, unit: int, inputs: Any) -> Any:
    """What the layer makes of `inputs` with one unit set to zero."""
    layer = pattern.modules["layer"]
    keep = np.arange(pattern.units["layer"].count) != unit
    weight = pattern.framework.read_weight(layer).copy()
    layer.kernel.assign(weight * pattern.weight_masks({"layer": keep})["layer"])
    outputs = keras.ops.convert_to_numpy(layer(inputs)).copy()
    layer.kernel.assign(weight)
    return outputs


@keras_warns
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "EinsumDense, groups turned"])  # group by group
def test_a_row_makes_one_output_channel(name: str) -> None:
    layer, inputs = built(name)
    pattern = bound("1xchannel", layer)
    count = pattern.units["layer"].count
    channels = keras.ops.convert_to_numpy(layer(inputs))
    for unit in range(count):
        differs = (channels != outputs_without(pattern, unit, inputs)).reshape(-1, count).any(axis=0)
        assert differs.nonzero()[0].tolist() == [unit]


@keras_warns
@pytest.mark.parametrize("name", LAYERS)
def test_a_column_reads_one_input_channel(name: str) -> None:
    layer, inputs = built(name)
    pattern, channel_axes = bound("channelx1", layer), LAYERS[name][2]
    count = int(np.prod(inputs.shape[-channel_axes:]))
    assert pattern.units["layer"].count == count
    for unit in range(count):
        expected = outputs_without(pattern, unit, inputs)
        silenced = []
        for channel in range(count):
            perturbed = inputs.copy()
            perturbed.reshape(-1, count)[:, channel] = 9.0
            if np.array_equal(outputs_without(pattern, unit, perturbed), expected):
                silenced.append(channel)
        assert silenced == [unit]


def build(layer: Any, *shape: int) -> Any:
    layer.build((None, *shape))
    return layer


def with_lora() -> Any:
    layer = build(layers.Dense(4), 4)
    layer.enable_lora(2)
    return layer


def quantized() -> Any:
    layer = build(layers.Dense(4), 4)
    layer.quantize("int8")
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: layers.LayerNormalization(), "LayerNormalization is not a supported layer type"),
        (lambda: layers.Embedding(4, 4), "Embedding is not a supported layer type"),
        (lambda: layers.Dense(4), "its kernel has no shape before the first batch; build the model first"),
        (with_lora, "its kernel is computed from other variables (LoRA, or packed by quantization)"),
        pytest.param(
            quantized,
            "its kernel has dtype int8; patterns need floating point",
            marks=keras_warns,
        ),
        (
            lambda: layers.MultiHeadAttention(2, 4),
            "MultiHeadAttention has no kernel. Its projections are separate layers; prune those",
        ),
        (
            lambda: layers.GroupQueryAttention(4, 2, 1),
            "GroupedQueryAttention has no kernel. Its projections are separate layers; prune those",
        ),
    ],
)
def test_a_layer_that_cannot_be_pruned_has_a_reason(make: Any, reason: str) -> None:
    fits = build(layers.Dense(4), 4)
    pattern = get_pattern({"pattern": "1x1"}, {"layer": make(), "fits": fits}, "keras")
    assert pattern.invalid_layers == {"layer": reason}
    assert list(pattern.views) == ["fits"]


def test_the_projections_of_attention_are_layers() -> None:
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=3)
    attention.build((None, 5, 8), (None, 5, 8))
    shapes = {
        name: bound("1x1", getattr(attention, f"{name}_dense")).views["layer"].canonical_shape
        for name in ("query", "key", "value", "output")
    }
    assert shapes == {"query": (6, 1, 8), "key": (6, 1, 8), "value": (6, 1, 8), "output": (8, 1, 6)}


@pytest.mark.parametrize("make", [layers.SeparableConv1D, layers.SeparableConv2D])
def test_of_a_separable_convolution_the_pointwise_kernel_is_pruned(make: Any) -> None:
    layer = make(6, 3, depth_multiplier=2)
    layer.build((None, 5, 5, 4)[-layer.rank - 2 :])
    pattern = bound("1x1", layer)
    assert pattern.framework.get_weight_id(layer) == id(layer.pointwise_kernel)
    assert pattern.views["layer"].canonical_shape == (6, 1, 8)


def test_only_layers_are_taken() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Keras patterns need keras\.layers\.Layer layers, found ndarray"):
        get_pattern({"pattern": "1x1"}, {"layer": np.ones((2, 2))}, "keras")


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: layers.Dense(1), ("Dense", "Linear")),
        (lambda: layers.EinsumDense("ab,bc->ac", 1), ("EinsumDense", "Linear")),
        (lambda: layers.Conv2D(1, 1), ("Conv2D", "Conv")),
        (lambda: layers.DepthwiseConv2D(1), ("DepthwiseConv2D", "Conv")),
        (lambda: layers.Conv1DTranspose(1, 1), ("Conv1DTranspose", "Conv")),
        (lambda: layers.SeparableConv2D(1, 1), ("SeparableConv2D", "Conv")),
        (lambda: layers.ReLU(), ()),
    ],
)
def test_type_names(make: Any, names: tuple[str, ...]) -> None:
    assert get_type_names(make()) == names


@pytest.mark.parametrize("kind", ["variable", "tensor", "array"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scores_may_be_whatever_keras_makes(kind: str, dtype: str) -> None:
    layer = build(layers.Dense(4, dtype=dtype), 6)
    values = np.arange(24.0).reshape(6, 4)
    pattern = bound("1xchannel", layer)
    scores = {
        "variable": keras.Variable(values, dtype=dtype),
        "tensor": keras.ops.convert_to_tensor(values, dtype=dtype),
        "array": values,
    }[kind]
    mask = pattern.masks({"layer": scores})["layer"]
    assert mask.tolist() == [[False, False, True, True]] * 6
    assert pattern.framework.read_weight(layer).shape == mask.shape


def test_weights_have_the_path_of_their_layer_in_their_names() -> None:
    inputs = keras.Input((5, 12))
    attention = layers.MultiHeadAttention(2, 3, use_bias=False, name="attention")
    model = keras.Model(inputs, layers.Dense(2, name="out")(attention(inputs, inputs)))
    assert sorted(name_variables(model)) == [
        *(f"attention/{part}/kernel" for part in ("attention_output", "key", "query", "value")),
        "out/bias",
        "out/kernel",
    ]
    for name, layer in find_weight_layers(model).items():
        if get_type_names(layer):
            assert name_variables(model)[FRAMEWORK.get_parameter_name(name, layer)] is get_kernel(layer)
