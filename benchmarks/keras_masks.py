"""Measure the time to update the masks of 28 million weights in 24 layers with global ranking, in Keras and torch.

Both run a whole update, from the weights to masks in the framework's memory and zeros in the weights. Keras stores
masks and counters in variables of the optimizer, and kernels as (inputs, outputs). torch stores weights as (outputs,
inputs). Run it once per backend, while no other program is running:

    OMP_WAIT_POLICY=PASSIVE KERAS_BACKEND=jax python benchmarks/keras_masks.py
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import keras
import numpy as np
import torch
from rich.console import Console

import secateur
import secateur.keras
from _timing import measure_wall_seconds, parse_options
from secateur._table import Table

LAYERS = 24
INPUTS, OUTPUTS = 1152, 1024
CASES = {"1x1": 0.9, "4x1": 0.9, "16x16": 0.9, "1xchannel": 0.5, "channelx1": 0.5, "2:4": 0.5}


def prune_immediately(initial: float, target: float, progress: float) -> float:  # noqa: ARG001
    """Return the target at the first update, although more updates follow."""
    return target


def create_config(pattern: str) -> secateur.PruningConfig:
    """Create a config that updates the masks in every step."""
    return secateur.PruningConfig(
        pattern=pattern,
        target_sparsity=CASES[pattern],
        end_step=1_000_000,
        pruning_frequency=1,
        sparsity_decay_type=prune_immediately,
        op_names=(".*",),
    )


def create_torch_update(kernels: list[np.ndarray[Any, Any]], pattern: str) -> Callable[[], None]:
    """Create a function that updates the masks of a torch pruner once."""
    model = torch.nn.ModuleList([torch.nn.Linear(INPUTS, OUTPUTS, bias=False) for _ in kernels])
    for layer, kernel in zip(model, kernels, strict=True):
        layer.weight.data.copy_(torch.from_numpy(kernel.T))
    pruner = secateur.prepare(model, create_config(pattern), optimizer=torch.optim.SGD(model.parameters(), 0.1))
    (run,), steps = pruner._runs, count(1)

    def update() -> None:
        run.set_masks(run.masks_after(next(steps)))
        pruner._apply(None)

    return update


def create_keras_update(kernels: list[np.ndarray[Any, Any]], pattern: str) -> Callable[[], None]:
    """Create a function that updates the masks of a Keras optimizer once."""
    inputs = keras.Input((INPUTS,))
    layers = [keras.layers.Dense(OUTPUTS, use_bias=False) for _ in kernels]
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    for layer, kernel in zip(layers, kernels, strict=True):
        layer.kernel.assign(kernel)
    optimizer = secateur.keras.PruningOptimizer(model, create_config(pattern), keras.optimizers.SGD(0.1))

    def update() -> None:
        optimizer._iterations.assign_add(1)
        assert optimizer.update_masks()
        if keras.backend.backend() == "jax":
            layers[-1].kernel.value.block_until_ready()

    return update


def main() -> None:
    arguments = parse_options(__doc__, rounds=7)
    generator = np.random.default_rng(0)
    kernels = [generator.standard_normal((INPUTS, OUTPUTS), dtype=np.float32) for _ in range(LAYERS)]
    joined = np.concatenate(kernels)
    backend, rows = keras.backend.backend(), []
    for pattern in CASES:
        times = measure_wall_seconds(
            {
                "copy": joined.copy,
                "torch": create_torch_update(kernels, pattern),
                "keras": create_keras_update(kernels, pattern),
            },
            arguments.rounds,
        )
        allowed = times["torch"] + times["copy"]
        cells = [f"{seconds * 1e3:.0f}" for seconds in times.values()]
        rows.append([pattern, *cells, f"{times['keras'] / allowed:.2f}"])
    title = (
        f"{LAYERS * INPUTS * OUTPUTS:,} weights, Keras on {backend}, {arguments.threads} threads, of {arguments.rounds}"
    )
    columns = ("pattern", ">copy of the weights, ms", ">torch, ms", ">Keras, ms", ">Keras / (torch + copy)")
    Console().print(Table(title=title, columns=columns, rows=rows))


if __name__ == "__main__":
    main()
