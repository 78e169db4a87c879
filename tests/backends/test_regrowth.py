"""RigL and SET with Keras: the masks of torch, and exact counts in compiled steps."""

from itertools import product
from typing import Any

import keras
import numpy as np
import pytest

import secateur
from backends.kit import CONFIG, Watch, compiled, fit, host, pruning
from backends.two_frameworks import SHAPES, make_values, train_keras, train_torch
from secateur.errors import LayerError, ScoreError
from secateur.keras import PruningOptimizer
from tiny_keras_models import net

RIGL: dict[str, Any] = {
    **CONFIG,
    "kind": "rigl",
    "criterion": "magnitude",
    "start_step": 1,
    "end_step": 9,
    "pruning_frequency": 2,
    "regrow_fraction": 0.5,
}


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [*product(["rigl", "set"], ["1x1", "4x1", "2:4"]), ("rigl", "2:4-transposable")],
)
def test_masks_are_those_of_torch(kind: str, pattern: str) -> None:
    target = None if ":" in pattern else 0.75
    config = {**RIGL, "kind": kind, "pattern": pattern, "target_sparsity": target, "op_names": ["first", "second"]}
    torch_steps, keras_steps = train_torch(config, 6, 0.5), train_keras(config, 6, 0.5)
    masks = [f"{name} mask" for name in SHAPES]
    assert any((torch_steps[0][mask] != torch_steps[-1][mask]).any() for mask in masks)
    for theirs, ours in zip(torch_steps, keras_steps, strict=True):
        assert all(np.array_equal(theirs[mask], ours[mask]) for mask in masks)


class Exchanges(keras.callbacks.Callback):
    """After each batch: counts are those of the start, and what was exchanged has no momentum."""

    def __init__(self, before: dict[str, Any]) -> None:
        super().__init__()
        self.before = before
        self.counts = {name: mask.sum() for name, mask in before.items()}
        self.steps: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        optimizer = pruning(self.model)
        masks = optimizer.masks
        assert {name: mask.sum() for name, mask in masks.items()} == self.counts, batch
        changed = {name: mask != self.before[name] for name, mask in masks.items()}
        if any(flags.any() for flags in changed.values()):
            self.steps.append(optimizer.step)
        for name, variables in find_states(self.model).items():
            for state in map(host, variables):
                assert not state[changed[name]].any(), (batch, name)
                assert state[masks[name] & ~changed[name]].any(), (batch, name)
        self.before = masks


def find_states(model: Any) -> dict[str, list[Any]]:
    """Layer → first and second moments of its kernel in Adam."""
    inner = pruning(model).inner_optimizer
    places = {name: inner._get_variable_index(model.get_layer(name).kernel) for name in ("conv", "fc")}
    return {name: [inner._momentums[place], inner._velocities[place]] for name, place in places.items()}


@pytest.mark.parametrize("config", [{}, {"kind": "set", "pattern": "2:4", "target_sparsity": 0.5}])
def test_counts_are_exact_after_every_batch(config: dict[str, Any]) -> None:
    model = compiled({**RIGL, **config}, inner=keras.optimizers.Adam(0.01))
    watch = Exchanges(pruning(model).masks)
    fit(model, 2, Watch(), watch)
    assert watch.steps == [1, 3, 5, 7]
    report = secateur.keras.finalize(model)
    assert report.is_complete
    units = sum(layer.units for layer in report.layers)
    assert sum(layer.pruned_units for layer in report.layers) == round(config.get("target_sparsity", 0.75) * units)


ONE = {"op_names": ["first"], "pattern": "1x1", "target_sparsity": 0.5}


def make_one(config: dict[str, Any], inner: Any) -> tuple[Any, PruningOptimizer]:
    """A model of one layer whose weights are all different, and its optimizer."""
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(24, use_bias=False, name="first")])
    model.get_layer("first").kernel.assign(np.linspace(-1, 1.1, 16 * 24, dtype=np.float32).reshape(16, 24))
    return model, PruningOptimizer(model, {**RIGL, **ONE, **config}, inner)


def test_an_update_reads_the_gradients_of_steps_and_not_of_batches() -> None:
    """Two batches that are accumulated are one step with the mean of their gradients."""
    model, optimizer = make_one({}, keras.optimizers.SGD(0.125, gradient_accumulation_steps=2))
    other, single = make_one({}, keras.optimizers.SGD(0.125))
    start = optimizer.masks["first"]
    for step in range(6):
        pair = [make_values(2 * step + part)["first"] for part in range(2)]
        for gradient in pair:
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], model.trainable_variables)
            optimizer.update_masks()
        single.apply([keras.ops.convert_to_tensor(sum(pair) / 2)], other.trainable_variables)
        single.update_masks()
        assert np.array_equal(optimizer.masks["first"], single.masks["first"])
    assert not np.array_equal(start, single.masks["first"])


def test_updates_that_are_late_read_the_same_gradients() -> None:
    """As with steps_per_execution: without gradients, the weights with the lowest index would regrow."""
    model, optimizer = make_one({}, keras.optimizers.SGD(0.0))
    start = optimizer.masks["first"]
    gradient = np.ones((16, 24), np.float32)
    gradient[:, :12] = 0
    for _ in range(4):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], model.trainable_variables)
    assert optimizer.update_masks()
    grown = optimizer.masks["first"] & ~start
    assert grown.sum() > 30
    assert not grown[:, :12].any()
    kernel = optimizer._require_built().kernels["first"]
    assert kernel.gradient_sum is not None
    assert not host(kernel.gradient_sum).any()


NEEDS_CHANGES = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="With JAX, Keras refuses steps of a model whose trainable weights changed."
)


@NEEDS_CHANGES
@pytest.mark.parametrize("kind", ["rigl", "set"])
def test_a_layer_that_is_frozen_while_weights_regrow_is_refused(kind: str) -> None:
    model = compiled({**RIGL, "kind": kind}, inner=keras.optimizers.SGD(0.1))
    fit(model, 1)  # six steps
    masks, layer = pruning(model).masks, model.get_layer("fc")
    layer.trainable = False
    model.compile(pruning(model), model.loss)
    with pytest.raises(LayerError, match=r"layer 'fc': its kernel must train with kind='.* until step 9"):
        fit(model, 1)
    assert all(np.array_equal(mask, masks[name]) for name, mask in pruning(model).masks.items())


@NEEDS_CHANGES
def test_a_layer_can_be_frozen_after_the_last_update_or_with_its_mask() -> None:
    model = compiled({**RIGL, "end_step": 5}, inner=keras.optimizers.SGD(0.1))
    optimizer, layer = pruning(model), model.get_layer("fc")
    optimizer.patterns[0].keep_mask_layers["fc"] = "good as it is"
    layer.trainable = False
    model.compile(optimizer, model.loss)
    masks = optimizer.masks
    fit(model, 1)
    assert [np.array_equal(mask, masks[name]) for name, mask in optimizer.masks.items()] == [False, True]
    del optimizer.patterns[0].keep_mask_layers["fc"]
    model.compile(optimizer, model.loss)
    fit(model, 1)
    assert secateur.keras.finalize(model).is_complete


def test_a_layer_without_gradients_is_named() -> None:
    model = net()
    optimizer = PruningOptimizer(model, RIGL, keras.optimizers.SGD(0.1))
    kernel = model.get_layer("conv").kernel
    with pytest.raises(ScoreError, match="layer 'fc': kind='rigl' regrows by gradients, but none reaches this layer"):
        optimizer.apply([keras.ops.ones(kernel.shape)], [kernel])
