"""Prunes one model on one JAX device and on several, in a process of its own, and prints what came out as JSON.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 KERAS_BACKEND=jax python -m backends.jax_devices

The 4x1 blocks and 2:4 groups of the model are cut by the borders between devices, and so is its global ranking.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import keras
import numpy as np
from keras import distribution

from backends.kit import host
from secateur.keras import PruningCallback, PruningOptimizer, finalize

CONFIG = {
    "pattern": "1x1",
    "layers": {"block": {"pattern": "4x1"}, "group": {"pattern": "2:4"}},
    "pruning_scope": "global",
    "target_sparsity": 0.5,
    "criterion": "snip_momentum",
    "start_step": 1,
    "end_step": 5,
    "pruning_frequency": 2,
}
STEPS = 4  # an epoch
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.standard_normal((4 * STEPS, 8), dtype=np.float32)
LABELS = GENERATOR.integers(0, 4, 4 * STEPS)

COLUMNS = {".*(block|group|single).*kernel": (None, "model"), ".*bias": ("model",)}
ROWS = {".*(block|group|single).*kernel": ("model", None)}
LOOSE = {".*(block|group|single).*": (None, "model")}
"""A layout of kernels, by an expression that the names of vectors match too: those of scores and units."""


def net() -> keras.Sequential:
    keras.utils.set_random_seed(0)
    sizes = {"block": 8, "group": 8, "single_first": 8, "single_last": 8}
    layers = [keras.layers.Dense(size, "tanh", use_bias=False, name=name) for name, size in sizes.items()]
    return keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(4, name="out")], name="net")


def data_parallel(count: int) -> Any:
    return distribution.DataParallel(devices=distribution.list_devices()[:count])


def model_parallel(batch: int, model: int, layouts: dict[str, Any]) -> Any:
    devices = distribution.list_devices()[: batch * model]
    mesh = distribution.DeviceMesh((batch, model), ("batch", "model"), devices)
    layout_map = distribution.LayoutMap(mesh)
    layout_map.update(layouts)
    return distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")


def optimizer(model: keras.Model) -> PruningOptimizer:
    return PruningOptimizer(model, CONFIG, keras.optimizers.SGD(0.1, momentum=0.9))


def fit(model: keras.Model) -> keras.Model:
    model.fit(INPUTS, LABELS, batch_size=4, shuffle=False, verbose=0, callbacks=[PruningCallback()])
    return model


def trained(epochs: int = 2) -> keras.Model:
    model = net()
    model.compile(optimizer(model), LOSS)
    for _ in range(epochs):
        fit(model)
    return model


def resumed() -> keras.Model:
    """Train for an epoch with rows on four devices, and for another with columns on two, and half of each batch."""
    with tempfile.TemporaryDirectory() as folder, model_parallel(1, 4, ROWS).scope():
        trained(1).save(f"{folder}/net.keras")
        with model_parallel(2, 2, COLUMNS).scope():
            return fit(keras.saving.load_model(f"{folder}/net.keras"))


def describe(model: keras.Model) -> dict[str, Any]:
    """Digests of the masks, and where kernels and masks are. Pruned weights are verified to be zero."""
    masks, kernels = model.optimizer.masks, model.optimizer._pruning.kernels
    assert not any(host(kernel.variable)[~masks[name]].any() for name, kernel in kernels.items())
    placed = [
        variable.value.sharding for kernel in kernels.values() for variable in (kernel.variable, kernel.mask_variable)
    ]
    return {
        "masks": {name: hashlib.sha256(mask.tobytes()).hexdigest() for name, mask in masks.items()},
        "devices": sorted({len(sharding.device_set) for sharding in placed}),
        "specs": sorted({json.dumps([*getattr(sharding, "spec", ())]) for sharding in placed}),
        "sparsity": finalize(model).unit_sparsity,
    }


def loop() -> dict[str, Any]:
    """Train in a loop that manages the state itself, and count how often its step is compiled."""
    import jax

    model = net()
    pruning = optimizer(model)

    def compute_loss(trainable: Any, fixed: Any, inputs: Any, labels: Any) -> Any:
        outputs, _ = model.stateless_call(trainable, fixed, inputs)
        return LOSS(labels, outputs)

    @jax.jit
    def train_step(trainable: Any, fixed: Any, state: Any, inputs: Any, labels: Any) -> Any:
        gradients = jax.grad(compute_loss)(trainable, fixed, inputs, labels)
        return pruning.stateless_apply(state, gradients, trainable)

    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, fun_name="", **__: compiled.append(fun_name) if "backend_compile" in event else None
    )
    groups = model.trainable_variables, model.non_trainable_variables, pruning.variables
    trainable, fixed, state = ([variable.value for variable in variables] for variables in groups)
    for step in range(2 * STEPS):
        batch = slice(4 * (step % STEPS), 4 * (step % STEPS) + 4)
        trainable, state = train_step(trainable, fixed, state, INPUTS[batch], LABELS[batch])
        trainable, state = pruning.stateless_update_masks(state, trainable)
    for variable, value in zip([*groups[0], *groups[2]], [*trainable, *state], strict=True):
        variable.assign(value)
    model.compile(pruning, LOSS)
    return describe(model) | {"compiled": compiled.count("jit(train_step)")}


def main() -> None:
    import_module("keras.src.utils.module_utils").tensorflow._available = False  # its import takes two seconds
    runs: dict[str, tuple[Any, Callable[[], Any]]] = {
        "one device": (nullcontext(), trained),
        "data parallel on 2": (data_parallel(2).scope(), trained),
        "columns on 4": (model_parallel(1, 4, COLUMNS).scope(), trained),
        "resumed on 2 by 2": (nullcontext(), resumed),
    }
    found = {}
    for name, (scope, train) in runs.items():
        with scope:
            found[name] = describe(train())
    with model_parallel(1, 4, LOOSE).scope():
        found["loop on 4"] = loop()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
