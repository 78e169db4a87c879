"""SR-STE with Keras: the masks and weights of torch, and zeros in compiled steps."""

from typing import Any

import keras
import numpy as np
import pytest

import secateur
from backends.kit import CONFIG, Watch, compiled, fit, host, pruning
from backends.two_frameworks import SHAPES, make_values, train_keras, train_torch
from secateur.keras import PruningOptimizer
from tiny_keras_models import net

SR_STE: dict[str, Any] = {
    **CONFIG,
    "kind": "sr_ste",
    "pattern": "2:4",
    "target_sparsity": None,
    "criterion": "magnitude",
    "start_step": 1,
    "end_step": 9,
    "pruning_frequency": 2,
    "sr_ste_decay": 0.25,
}
STEPS = 11


@pytest.mark.parametrize("pattern", ["2:4", "2:4-transposable"])
def test_masks_and_weights_are_those_of_torch(pattern: str) -> None:
    config = {**SR_STE, "pattern": pattern, "op_names": ["first", "second"]}
    ours, theirs = train_keras(config, STEPS, 0.125), train_torch(config, STEPS, 0.125)
    assert any((ours[0][f"{name} mask"] != ours[-1][f"{name} mask"]).any() for name in SHAPES)
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for key, values in mine.items():
            np.testing.assert_allclose(values, other[key], rtol=1e-5, atol=1e-6, err_msg=f"{key} after {step + 1}")


class Recorder(keras.optimizers.SGD):
    """Notes how many weights are zero when a step begins."""

    def __init__(self) -> None:
        super().__init__(0.125)
        self.zeros: list[int] = []

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self.zeros.append(int((host(variable) == 0).sum()))
        super().update_step(gradient, variable, learning_rate)


def test_the_inner_optimizer_sees_pruned_weights_until_the_last_update() -> None:
    """Optimizers such as LAMB depend on the norm of all weights."""
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(24, use_bias=False, name="first")])
    model.get_layer("first").kernel.assign(make_values(0)["first"] + 0.1)
    recorder = Recorder()
    optimizer = PruningOptimizer(model, SR_STE, recorder)
    for step in range(STEPS):
        optimizer.apply([keras.ops.convert_to_tensor(make_values(1 + step)["first"])], model.trainable_variables)
        optimizer.update_masks()
    assert max(recorder.zeros[:9]) < 10
    assert recorder.zeros[9:] == [192, 192]


def test_a_step_of_other_kernels_leaves_the_latent_values() -> None:
    model = net()
    optimizer = PruningOptimizer(model, SR_STE, keras.optimizers.SGD(0.125))
    optimizer.build(model.trainable_variables)
    kernels = optimizer._require_built().kernels
    before = {name: host(kernel.latent) for name, kernel in kernels.items()}
    conv = model.get_layer("conv").kernel
    optimizer.apply([keras.ops.ones(conv.shape)], [conv])
    other = model.trainable_variables[-1]
    optimizer.apply([keras.ops.ones(other.shape)], [other])
    assert before["fc"][~optimizer.masks["fc"]].all()
    assert np.array_equal(host(kernels["fc"].latent), before["fc"])
    assert not np.array_equal(host(kernels["conv"].latent), before["conv"])


@pytest.mark.parametrize("accumulated", [None, 2])
def test_pruned_weights_are_zero_between_steps_and_some_return(accumulated: int | None) -> None:
    inner = keras.optimizers.Adam(0.03, gradient_accumulation_steps=accumulated)
    model = compiled({**SR_STE, "end_step": 5 if accumulated else 9}, inner=inner)
    before = pruning(model).masks
    fit(model, 2, Watch())
    masks = pruning(model).masks
    assert any((masks[name] & ~mask).any() for name, mask in before.items())
    report = secateur.keras.finalize(model)
    assert report.is_complete
    assert [layer.sparsity for layer in report.layers] == [0.5, 0.5]
