"""Paths: of the weights in a Keras model, which depend on how it was made, and of the folder that is read."""

from pathlib import Path

import pytest

import secateur
from secateur.artifact import Artifact


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_a_model_that_was_made_by_its_layers_is_built_again(tmp_path: Path, kind: str) -> None:
    keras = pytest.importorskip("keras")
    layers = [keras.Input((8,)), keras.layers.Dense(16, name="fc"), keras.layers.Dense(3, name="out")]
    if kind == "sequential":
        model = keras.Sequential(layers)
    else:
        model = keras.Model(layers[0], layers[2](layers[1](layers[0])))
    secateur.save(model, tmp_path / "saved")
    assert list(Artifact(tmp_path / "saved")) == ["fc/kernel", "fc/bias", "out/kernel", "out/bias"]
    loaded = secateur.load(tmp_path / "saved")
    assert [held.tolist() for held in loaded.get_weights()] == [held.tolist() for held in model.get_weights()]


def test_the_current_folder_is_a_path_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    secateur.save(torch.nn.Linear(4, 4), tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")
    assert secateur.verify(".").problems == {}
