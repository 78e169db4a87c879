"""Keras models as artifacts on the backend of this process; ``tests/artifact/test_keras.py`` tests more of them."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import secateur
from backends.kit import data
from secateur.artifact import Artifact
from tiny_keras_models import net


def values(model: keras.Model) -> list[Any]:
    return [np.asarray(keras.ops.convert_to_numpy(weight)).copy() for weight in model.weights]


def same(mine: keras.Model, theirs: keras.Model) -> bool:
    """Whether two models hold the same bits in the same order."""
    pairs = list(zip(values(mine), values(theirs), strict=True))
    return all(first.dtype == second.dtype and first.tobytes() == second.tobytes() for first, second in pairs)


@pytest.mark.parametrize(("pattern", "dtype"), [("4x1", "float32"), ("2:4", "mixed_bfloat16")])
def test_a_pruned_model_is_built_again(pattern: str, dtype: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = net(dtype=dtype)
    report = secateur.prune(model, {"pattern": pattern, "target_sparsity": None if ":" in pattern else 0.5})
    saved = secateur.save(model, tmp_path / "saved", report=report)
    assert saved.packed_bytes < saved.dense_bytes
    loaded = secateur.load(tmp_path / "saved")
    assert same(loaded, model)
    inputs, _ = data()
    assert np.array_equal(loaded.predict(inputs, verbose=0), model.predict(inputs, verbose=0))
    assert secateur.verify(tmp_path / "saved").problems == {}


def test_a_model_that_was_trained_loads_without_its_optimizer(tmp_path: Path) -> None:
    model = net()
    config = {"pattern": "4x1", "target_sparsity": 0.75, "start_step": 0, "sparsity_decay_type": "one_shot"}
    optimizer = secateur.keras.PruningOptimizer(model, config, keras.optimizers.Adam(0.01))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data(), verbose=0, callbacks=[secateur.keras.PruningCallback()])
    report = secateur.keras.finalize(model)
    secateur.save(model, tmp_path / "saved", report=report)
    entry = Artifact(tmp_path / "saved").entry("fc/kernel")
    assert (entry.layer, entry.pattern) == ("fc", "4x1")
    assert entry.sparsity >= 0.7
    loaded = secateur.load(tmp_path / "saved")
    assert same(loaded, model)
    assert not loaded.compiled
