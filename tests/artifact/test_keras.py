"""Keras models as artifacts. ``tests/backends`` saves some on the backends that train."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import secateur
from secateur.artifact import Artifact, inspect
from secateur.errors import ArtifactError, ConfigError, ModelLoadError, UnsupportedModelError
from tiny_keras_models import net


def varied(dtype: str = "float32") -> keras.Model:
    """Layers of every kind of kernel, two of one name apart from their number, and weights that are not trained."""
    inputs = keras.Input((8, 8, 4))
    inner = keras.layers.Conv2D(8, 3, padding="same", dtype=dtype)(inputs)
    inner = keras.layers.BatchNormalization(dtype=dtype)(inner)
    inner = keras.layers.SeparableConv2D(8, 3, dtype=dtype)(inner)
    inner = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, dtype=dtype)(inner)
    inner = keras.layers.Conv2DTranspose(4, 2, dtype=dtype)(inner)
    inner = keras.layers.Reshape((25, 4), dtype=dtype)(inner)
    inner = keras.layers.MultiHeadAttention(2, 4, dtype=dtype)(inner, inner)
    inner = keras.layers.Flatten(dtype=dtype)(inner)
    inner = keras.layers.Dropout(0.1, dtype=dtype)(keras.layers.Dense(16, dtype=dtype)(inner))
    return keras.Model(inputs, keras.layers.Dense(3, dtype=dtype)(inner))


def values(model: keras.Model) -> list[Any]:
    return [np.asarray(keras.ops.convert_to_numpy(weight)).copy() for weight in model.weights]


def same(mine: keras.Model, theirs: keras.Model) -> bool:
    """Whether two models hold the same bits in the same order."""
    pairs = list(zip(values(mine), values(theirs), strict=True))
    return all(first.dtype == second.dtype and first.tobytes() == second.tobytes() for first, second in pairs)


@pytest.mark.parametrize(
    ("pattern", "dtype"),
    [
        ("1x1", "float32"),
        ("4x1", "float32"),
        ("1xchannel", "float32"),
        ("2:4", "float32"),
        ("2:4", "float16"),
        ("2:4", "bfloat16"),
        ("2:4", "mixed_bfloat16"),
    ],
)
def test_a_pruned_model_is_built_again(pattern: str, dtype: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = varied(dtype)
    report = secateur.prune(model, {"pattern": pattern, "target_sparsity": None if ":" in pattern else 0.5})
    saved = secateur.save(model, tmp_path / "saved", report=report)
    assert saved.packed_bytes < saved.dense_bytes
    loaded = secateur.load(tmp_path / "saved")
    assert same(loaded, model)
    inputs = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    assert np.array_equal(
        keras.ops.convert_to_numpy(keras.ops.cast(loaded(inputs), "float32")),
        keras.ops.convert_to_numpy(keras.ops.cast(model(inputs), "float32")),
    )
    assert secateur.verify(tmp_path / "saved").problems == {}


def test_a_model_of_ones_own_is_filled_whatever_its_layers_are_numbered(tmp_path: Path) -> None:
    model = varied()
    secateur.save(model, tmp_path / "saved")
    other = varied()
    assert [weight.path for weight in other.weights] != [weight.path for weight in model.weights]
    assert same(secateur.load(tmp_path / "saved", other), model)


class Unregistered(keras.Model):
    """A model whose class a file cannot name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fc = keras.layers.Dense(8)

    def call(self, inputs: Any) -> Any:
        """Through the only layer."""
        return self.fc(inputs)


def test_a_class_that_is_not_registered_needs_its_code(tmp_path: Path) -> None:
    model = Unregistered()
    with pytest.raises(UnsupportedModelError, match="must be built"):
        secateur.save(model, tmp_path / "saved")
    model(np.zeros((1, 4), "float32"))
    secateur.save(model, tmp_path / "saved")
    other = Unregistered()
    with pytest.raises(UnsupportedModelError, match="must be built"):
        secateur.load(tmp_path / "saved", other)
    other(np.zeros((1, 4), "float32"))
    assert same(secateur.load(tmp_path / "saved", other), model)
    path = tmp_path / "saved" / "keras.json"
    if path.exists():
        description = json.loads(path.read_text())
        description["module"], description["registered_name"] = "somewhere", "Nowhere"
        path.write_text(json.dumps(description))
        with pytest.raises(ArtifactError, match=r"keras\.json: has changed since it was written"):
            secateur.load(tmp_path / "saved")


class Sized(keras.layers.Layer):
    """A layer that no file describes, because a function tells its size."""

    def __init__(self, size: Callable[[], int]) -> None:
        super().__init__(name="sized")
        self.size = size

    def build(self, shape: Any) -> None:
        """Create its weight."""
        self.kernel = self.add_weight(shape=(shape[-1], self.size()), name="kernel")

    def call(self, inputs: Any) -> Any:
        """Multiply."""
        return keras.ops.matmul(inputs, self.kernel)


def test_a_layer_that_nothing_describes_needs_its_code(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), Sized(lambda: 3)])
    secateur.save(model, tmp_path / "saved")
    with pytest.raises(ArtifactError, match="which only your code can build"):
        secateur.load(tmp_path / "saved")
    other = keras.Sequential([keras.Input((4,)), Sized(lambda: 3)])
    assert same(secateur.load(tmp_path / "saved", other), model)


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.layers.Layer):
    """A registered layer with values from the start, and two weights of one name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scale = keras.Variable([1.0, 2.0, 3.0], name="scale")

    def build(self, _shape: Any) -> None:
        """Create both weights."""
        self.first, self.second = (self.add_weight(shape=(3,), name="bias") for _ in range(2))

    def call(self, inputs: Any) -> Any:
        """Scale and shift."""
        return inputs * self.scale + self.first - self.second

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the same shape; else Keras calls the layer with memory that nothing has set, which may overflow."""
        return input_shape


def test_a_registered_layer_may_create_values_and_repeat_names(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), Scaled(name="scaled")])
    model.layers[0].first.assign([4.0, 5.0, 6.0])
    secateur.save(model, tmp_path / "saved")
    assert set(Artifact(tmp_path / "saved").manifest.tensors) == {
        "scaled/scale",
        "scaled/bias",
        "scaled/bias@2",
    }
    assert same(secateur.load(tmp_path / "saved"), model)


def test_numbers_that_safetensors_does_not_have_are_refused(tmp_path: Path) -> None:
    layer = keras.layers.Dense(3, name="fc")
    layer.extra = keras.Variable(np.ones(2), dtype="complex128", trainable=False, name="extra")
    model = keras.Sequential([keras.Input((4,)), layer])
    with pytest.raises(UnsupportedModelError, match="'fc/extra' has dtype complex128, which safetensors does not"):
        secateur.save(model, tmp_path / "saved")


def test_a_lambda_is_not_run(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda inputs: inputs * 2), keras.layers.Dense(2)])
    secateur.save(model, tmp_path / "saved")
    with pytest.raises(
        (ModelLoadError, ArtifactError), match=r"Keras cannot build a model|which only your code can build"
    ):
        secateur.load(tmp_path / "saved")


def test_another_model_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    secateur.save(net(), tmp_path / "saved")
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="other")])
    before = values(other)
    with pytest.raises(
        ArtifactError, match=r"Only the model has 'other/kernel', 'other/bias', only the artifact 'conv/kernel'"
    ):
        secateur.load(tmp_path / "saved", other)
    half = net(dtype="float16")
    with pytest.raises(ArtifactError, match=r"'conv/kernel' is float32 \[2, 2, 4, 8\], and float16 \[2, 2, 4, 8\] in"):
        secateur.load(tmp_path / "saved", half)
    assert all(np.array_equal(first, second) for first, second in zip(values(other), before, strict=True))


def test_a_damaged_tensor_changes_nothing(tmp_path: Path) -> None:
    secateur.save(net(), tmp_path / "saved")
    (shard,) = tmp_path.glob("saved/*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    model = net(seed=1)
    before = values(model)
    with pytest.raises(ArtifactError, match="sha256 does not match"):
        secateur.load(tmp_path / "saved", model)
    assert all(np.array_equal(first, second) for first, second in zip(values(model), before, strict=True))


def test_a_tokenizer_belongs_to_transformers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer is for transformers models"):
        secateur.save(net(), tmp_path / "saved", tokenizer=object())


def test_a_model_is_inspected_in_memory() -> None:
    model = net()
    secateur.prune(model, {"pattern": "2:4"})
    patterns = {row.name.split("/")[-2]: row.pattern for row in inspect(model).tensors}
    assert patterns == {"conv": "2:4", "fc": "2:4", "out": None}


@pytest.mark.slow
def test_a_copy_loads_in_a_fresh_process(tmp_path: Path) -> None:
    model = net()
    secateur.save(model, tmp_path / "saved", report=secateur.prune(model, {"pattern": "2:4"}))
    np.save(tmp_path / "bits.npy", np.concatenate([value.reshape(-1) for value in values(model)]))
    code = (
        "import secateur, keras, numpy as np; model = secateur.load('saved'); "
        "found = [keras.ops.convert_to_numpy(weight).reshape(-1) for weight in model.weights]; "
        "assert np.array_equal(np.concatenate(found), np.load('bits.npy'))"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
