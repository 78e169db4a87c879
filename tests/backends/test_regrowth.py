"""RigL and SET with Keras: the masks of torch, and exact counts in compiled steps."""

from itertools import product
from typing import Any

import keras
import numpy as np
import pytest

import secateur
from backends.kit import CONFIG, Watch, compiled, fit, host, pruning
from backends.two_frameworks import SHAPES, train_keras, train_torch
from secateur.errors import ScoreError
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


def test_a_layer_without_gradients_is_named() -> None:
    model = net()
    optimizer = PruningOptimizer(model, RIGL, keras.optimizers.SGD(0.1))
    kernel = model.get_layer("conv").kernel
    with pytest.raises(ScoreError, match="layer 'fc': kind='rigl' regrows by gradients, but none reaches this layer"):
        optimizer.apply([keras.ops.ones(kernel.shape)], [kernel])
