"""Log the sparsity of a model and pictures of its masks to TensorBoard while it trains."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from secateur._array import to_numpy
from secateur.errors import ConfigError
from secateur.report.masks import compute_density
from secateur.training import Pruner

__all__ = ["ScalarImageWriter", "TensorBoardCallback"]

PIXELS = 256
"""Maximum number of pixels on each side of a picture."""


class ScalarImageWriter(Protocol):
    """The methods that the callback calls, such as those of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Log a number."""

    def add_image(self, tag: str, img_tensor: Any, global_step: int, *, dataformats: str) -> Any:
        """Log a picture."""


class TensorBoardCallback:
    """Log the sparsity of a run and its layers, and pictures of masks, to any writer for TensorBoard.

    Call `after_step` after each optimizer step. It logs every few steps, and when the target is reached.

    Args:
        pruner: The pruner that `secateur.prepare` returned, or a `secateur.keras.PruningOptimizer`.
        writer: An object with ``add_scalar`` and ``add_image``, such as ``torch.utils.tensorboard.SummaryWriter``.
        every: Number of steps between entries.
        images: Number of layers whose masks are drawn, starting with the first. Masks of sharded weights are not drawn.

    Raises:
        ConfigError: `every` is less than 1, or `images` is negative.

    Examples:
        >>> import secateur, torch
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag, value)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters())
        >>> config = {"target_sparsity": 0.5, "end_step": 4, "pruning_frequency": 2}
        >>> config |= {"start_step": 0, "sparsity_decay_type": "linear"}
        >>> pruner = secateur.prepare(model, config, optimizer=optimizer)
        >>> callback = TensorBoardCallback(pruner, Printer(), every=2, images=0)
        >>> for _ in range(4):
        ...     _ = model(torch.ones(1, 8)).sum().backward()
        ...     optimizer.step()
        ...     callback.after_step()
        2 sparsity 0.25
        2 sparsity/0 0.25
        4 sparsity 0.5
        4 sparsity/0 0.5
    """

    def __init__(self, pruner: Pruner, writer: ScalarImageWriter, *, every: int = 100, images: int = 8) -> None:
        if every < 1 or images < 0:
            raise ConfigError(f"every must be at least 1, and images at least 0, found {every} and {images}.")
        self._pruner = pruner
        self._writer = writer
        self._every = every
        self._images = images
        self._last_step = pruner.report().last_step
        self._written = pruner.step

    def after_step(self) -> None:
        """Log an entry if one is due at the current step of the pruner."""
        step = self._pruner.step
        is_due = step // self._every > self._written // self._every or self._written < self._last_step <= step
        if is_due and step > self._written:
            self.write()

    def write(self) -> None:
        """Log an entry now."""
        self._written = step = self._pruner.step
        report = self._pruner.report()
        self._writer.add_scalar("sparsity", report.sparsity, step)
        for layer in report.layers:
            self._writer.add_scalar(f"sparsity/{layer.name}", layer.sparsity, step)
        if self._images:
            self._draw(step)

    def _draw(self, step: int) -> None:
        masks = [(name, mask) for name, mask in self._pruner.masks.items() if not hasattr(mask, "full_tensor")]
        for name, mask in masks[: self._images]:
            image = 1.0 - compute_density(_flatten(mask), PIXELS)
            self._writer.add_image(f"mask/{name}", image.astype(np.float32), step, dataformats="HW")


def _flatten(mask: Any) -> npt.NDArray[np.bool_]:
    """Return a mask with two axes, one of which is the output axis: the first in torch, the last in Keras."""
    array: npt.NDArray[np.bool_] = np.asarray(to_numpy(mask))
    if type(mask).__module__.startswith("torch"):
        return array.reshape(len(array), -1)
    return array.reshape(-1, array.shape[-1])
