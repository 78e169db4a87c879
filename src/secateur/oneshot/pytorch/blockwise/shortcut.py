"""Stop forward passes at the last layer whose inputs are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from secateur.oneshot.pytorch.blockwise.stages import Stage
from secateur.oneshot.pytorch.calibration.batches import Batch

__all__ = ["Shortcut"]


class _EnoughCallsError(Exception):
    """Stops a forward pass."""


class Shortcut:
    """Runs batches through a stage up to the last call of some layers.

    The first batch of each shape runs to its end. Others stop once all layers were called as often as in that batch,
    if all of them were called at all.

    Args:
        layers: The layers; none: every batch runs to its end.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._layers = list(layers)
        # The output projections of `nn.MultiheadAttention` never run as modules, so their calls cannot be counted.
        self._can_stop = not any(isinstance(layer, NonDynamicallyQuantizableLinear) for layer in self._layers)
        self._calls: Counter[int] = Counter()
        self._needed: Counter[int] | None = None
        self._needed_by_shape: dict[Any, Counter[int]] = {}

    @contextmanager
    def watch_calls(self) -> Iterator[None]:
        """Count the calls of the layers in this context; other hooks that must run first are registered before."""
        with ExitStack() as hooks:
            for layer in self._layers if self._can_stop else ():
                hooks.callback(layer.register_forward_pre_hook(lambda module, _: self.count(module)).remove)
            yield

    def run(self, stage: Stage, batch: Batch) -> torch.Tensor | None:
        """Run one batch, and return the output of the stage; ``None`` if it has none, or if the run was stopped."""
        shapes = tuple(tensor.shape for tensor in batch.tensors)
        self._calls.clear()
        self._needed = self._needed_by_shape.get(shapes)
        try:
            output = stage.forward(batch.number)
        except _EnoughCallsError:
            return None
        self._needed_by_shape.setdefault(shapes, self._calls.copy())
        return output

    def count(self, layer: nn.Module) -> None:
        """Count a call of a layer, and stop if all calls are done. Callers count again what must follow a call."""
        self._calls[id(layer)] += 1
        if self._needed is not None and len(self._needed) == len(self._layers) and self._calls >= self._needed:
            raise _EnoughCallsError
