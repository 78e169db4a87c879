"""Tune the parameters of a pruned module with Adam, and keep its pruned weights zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count

import torch
from torch import nn

from secateur.distributed.pytorch.team import Team
from secateur.errors import CalibrationError

__all__ = ["MaskedAdam", "shuffle_batches"]


MAX_GRADIENT_NORM = 1.0
"""Norm to which the gradient of a step is clipped."""

FUSED_DEVICES = ("cpu", "cuda")
"""Devices with a fused kernel for Adam, which passes over the parameters once."""

MIN_SCALE = 0.01
"""Lower bound on the root mean square that scales a parameter's learning rate; biases may start at zero."""


class MaskedAdam:
    """Adam on a module's parameters in float32.

    Pruned weights stay exactly 0.0, because they start at zero and get no gradient.

    Args:
        module: The module.
        masks: Name of a pruned parameter in it → booleans of its shape, ``True`` = kept.
        rate: Full learning rate, relative to the root mean square of each parameter's kept weights, so that one
            rate suits models of any width.
        team: The processes that compute gradients on their batches; a step takes the sum. By default one process.
    """

    def __init__(
        self, module: nn.Module, masks: Mapping[str, torch.Tensor], rate: float, team: Team | None = None
    ) -> None:
        self.rate = rate
        self._team = team or Team()
        self._module = module
        self._masks = masks
        names = {name for name, weight in module.named_parameters() if name in masks or weight.ndim < 2}
        self._parameters = {name: weight for name, weight in module.named_parameters() if name in names}
        # Steps are too small for 16-bit dtypes, so the optimizer updates float32 copies of such parameters.
        self._values = {name: weight.detach().float() for name, weight in self._parameters.items()}
        self._scales = [self._scale(name, weight) for name, weight in self._values.items()]
        groups = [{"params": [weight]} for weight in self._values.values()]
        is_fused = all(value.device.type in FUSED_DEVICES for value in self._values.values())
        self._optimizer = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.95), fused=is_fused)

    @contextmanager
    def enable_gradients(self) -> Iterator[None]:
        """Enable gradients for the tuned parameters only."""
        required = {name: weight.requires_grad for name, weight in self._module.named_parameters()}
        try:
            for name, weight in self._module.named_parameters():
                weight.requires_grad_(name in self._parameters)
            with torch.enable_grad():
                yield
        finally:
            for name, weight in self._module.named_parameters():
                weight.requires_grad_(required[name])
                weight.grad = None

    def step(self, share: float) -> None:
        """Take one step with the current gradients.

        Args:
            share: Share of the learning rate.

        Raises:
            CalibrationError: A gradient is not finite.
        """
        for (name, value), gradient in zip(self._values.items(), self._team.add(self._pop_gradients()), strict=True):
            mask = self._masks.get(name)
            value.grad = gradient if mask is None else gradient * mask.to(gradient.device)
        self._clip_gradients()
        for group, scale in zip(self._optimizer.param_groups, self._scales, strict=True):
            group["lr"] = self.rate * share * scale
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._write_values()

    def save_values(self) -> list[torch.Tensor]:
        """Return a copy of the tuned values."""
        return [value.clone() for value in self._values.values()]

    def load_values(self, saved: Sequence[torch.Tensor]) -> None:
        """Overwrite the tuned values with saved ones."""
        for value, old in zip(self._values.values(), saved, strict=True):
            value.copy_(old)
        self._write_values()

    def _write_values(self) -> None:
        with torch.no_grad():
            for name, weight in self._parameters.items():
                if weight.dtype != torch.float32:
                    weight.copy_(self._values[name])

    def _pop_gradients(self) -> Iterator[torch.Tensor]:
        """Yield the gradient of each parameter in float32, and clear it."""
        for name, weight in self._parameters.items():
            yield torch.zeros_like(self._values[name]) if weight.grad is None else weight.grad.float()
            weight.grad = None

    def _clip_gradients(self) -> None:
        gradients = {name: value.grad for name, value in self._values.items() if value.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        if not bool(torch.isfinite(norm)):
            names = (name for name, gradient in gradients.items() if not bool(torch.isfinite(gradient).all()))
            raise CalibrationError(
                f"The gradient of {next(names, next(iter(gradients)))!r} is not finite. Lower the learning rate."
            )
        torch.nn.utils.clip_grads_with_norm_(self._values.values(), MAX_GRADIENT_NORM, norm)

    def _scale(self, name: str, weight: torch.Tensor) -> float:
        kept = weight[self._masks[name].to(weight.device)] if name in self._masks else weight
        return max(float(kept.square().mean().sqrt()) if kept.numel() else 0.0, MIN_SCALE)


def shuffle_batches(total: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield the batch numbers of one step after another, without end; every epoch has a new order."""
    for epoch in count():
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        yield from (order[start : start + size] for start in range(0, total - total % size or total, size))
