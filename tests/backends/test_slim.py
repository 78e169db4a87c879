"""Slimming of Keras models on each backend: proof, files and training."""

from pathlib import Path

import keras
import numpy as np
import pytest

import secateur
from keras_zoo import KERAS_ZOO, fill, prunable, run
from secateur.frameworks.keras import read_array
from secateur.graph import trace
from tiny_keras_models import net

NAMES = (
    "flatten",
    "grouped",
    "inverted_bottleneck",
    "nested",
    "sliced",
    "tied_embedding",
    "transformer",
    "two_inputs_and_outputs",
    "u_net",
    "written_attention",
)
"""Exhibits whose kinds of layers and operations are all there are; ``tests/slim`` has the others."""


@pytest.mark.parametrize("name", NAMES)
def test_the_slimmed_model_is_an_ordinary_model(name: str, tmp_path: Path) -> None:
    model, inputs = KERAS_ZOO[name].create(), KERAS_ZOO[name].inputs
    for group in prunable(trace(model)):
        fill(model, group, range(0, group.units, 2), zeros=True)
    before = run(model, inputs)
    slimmed = secateur.slim(model, example_inputs=inputs).model
    np.testing.assert_allclose(run(slimmed, inputs), before, rtol=0, atol=1e-5)
    slimmed.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras", safe_mode=False)
    np.testing.assert_allclose(run(loaded, inputs), before, rtol=0, atol=1e-5)
    assert [variable.shape for variable in loaded.weights] == [variable.shape for variable in slimmed.weights]


def test_a_slimmed_model_trains() -> None:
    model, inputs = net(), np.ones((8, 4, 4, 4), dtype="float32")
    model.compile("adam", "mse")
    kernel = read_array(model.get_layer("out").kernel).copy()
    kernel[4:] = 0
    model.get_layer("out").kernel.assign(kernel)
    slimmed = secateur.slim(model, example_inputs=inputs).model
    assert slimmed.get_layer("fc").units == 4
    assert model.compiled
    assert not slimmed.compiled
    slimmed.compile("adam", "mse")
    first, *_, last = slimmed.fit(inputs, np.zeros((8, 4)), epochs=20, verbose=0).history["loss"]
    assert last < first
