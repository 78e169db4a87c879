"""The same steps of a small model with torch and with Keras."""

from typing import Any

import keras
import numpy as np
import torch

import secateur
from backends.kit import host
from secateur.keras import PruningOptimizer

SHAPES = {"first": (16, 24), "second": (24, 8)}

Steps = list[dict[str, Any]]
"""After each step: the kernel of each layer, by its name, and its mask, by ``"<name> mask"``."""


def make_values(seed: int) -> dict[str, Any]:
    """Kernels or gradients with many equal ones, and small enough for exact sums."""
    rng = np.random.default_rng(seed)
    return {name: (rng.integers(-8, 9, shape) / 4).astype(np.float32) for name, shape in SHAPES.items()}


def train_torch(config: dict[str, Any], steps: int, rate: float) -> Steps:
    model = torch.nn.Sequential()
    for name, (inputs, outputs) in SHAPES.items():
        model.add_module(name, torch.nn.Linear(inputs, outputs, bias=False))
        model.get_submodule(name).weight.data = torch.from_numpy(make_values(0)[name].T.copy())
    pruner = secateur.prepare(model, config, optimizer := torch.optim.SGD(model.parameters(), lr=rate))
    taken = []
    for step in range(steps):
        for name, gradient in make_values(1 + step).items():
            model.get_submodule(name).weight.grad = torch.from_numpy(gradient.T.copy())
        optimizer.step()
        weights = {name: model.get_submodule(name).weight.detach().numpy().T.copy() for name in SHAPES}
        taken.append(weights | {f"{name} mask": mask.numpy().T for name, mask in pruner.masks.items()})
    return taken


def train_keras(config: dict[str, Any], steps: int, rate: float) -> Steps:
    layers = [keras.layers.Dense(outputs, use_bias=False, name=name) for name, (_, outputs) in SHAPES.items()]
    model = keras.Sequential([keras.Input((16,)), *layers])
    for name in SHAPES:
        model.get_layer(name).kernel.assign(make_values(0)[name])
    optimizer = PruningOptimizer(model, config, keras.optimizers.SGD(rate))
    taken = []
    for step in range(steps):
        gradients = [keras.ops.convert_to_tensor(gradient) for gradient in make_values(1 + step).values()]
        optimizer.apply(gradients, model.trainable_variables)
        optimizer.update_masks()
        weights = {name: host(model.get_layer(name).kernel) for name in SHAPES}
        taken.append(weights | {f"{name} mask": mask for name, mask in optimizer.masks.items()})
    return taken
