"""Gradient steps on the parameters that may change, with masks held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count

import torch
from torch import nn

from secateur.errors import CalibrationError

__all__ = ["MaskedAdam", "turns"]


MOST_GRADIENT = 1.0
"""Norm that the gradient of one step is cut to."""

LEAST_SCALE = 0.01
"""Root mean square that a parameter has at the least, for its learning rate; biases may start at zero."""


class MaskedAdam:
    """Adam on a module's parameters in float32, with a learning rate that falls linearly to 0.

    Pruned weights stay exactly 0.0: they start there and get no gradient.

    Args:
        module: The module.
        masks: Name of a pruned parameter in it → booleans of its shape, ``True`` = kept.
        rate: First learning rate, as a share of each parameter's root mean square (of what is kept of it), so that
            one rate serves models of every width.
    """

    def __init__(self, module: nn.Module, masks: Mapping[str, torch.Tensor], rate: float) -> None:
        self.rate = rate
        self._module = module
        self._masks = masks
        names = {name for name, weight in module.named_parameters() if name in masks or weight.ndim < 2}
        self._tuned = {name: weight for name, weight in module.named_parameters() if name in names}
        # Steps are too small for short types: the optimizer changes float32 copies.
        self._wide = {name: weight.detach().float().clone() for name, weight in self._tuned.items()}
        self._scales = [self._scale(name, weight) for name, weight in self._wide.items()]
        groups = [{"params": [weight]} for weight in self._wide.values()]
        self._optimizer = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.95))

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Let these parameters and no others have gradients."""
        required = {name: weight.requires_grad for name, weight in self._module.named_parameters()}
        try:
            for name, weight in self._module.named_parameters():
                weight.requires_grad_(name in self._tuned)
            with torch.enable_grad():
                yield
        finally:
            for name, weight in self._module.named_parameters():
                weight.requires_grad_(required[name])
                weight.grad = None

    def step(self, left: float) -> None:
        """One step from the gradients that are there; `left` is the share of all steps that is still to come.

        Raises:
            CalibrationError: A gradient is not finite.
        """
        for name, weight in self._tuned.items():
            gradient, mask = weight.grad, self._masks.get(name)
            if gradient is None:
                gradient = torch.zeros_like(weight)
            if not bool(torch.isfinite(gradient).all()):
                raise CalibrationError(f"The gradient of {name!r} is not finite. Lower the learning rate.")
            wide = gradient.float()
            self._wide[name].grad = wide if mask is None else wide * mask.to(wide.device)
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self._wide.values(), MOST_GRADIENT)
        for group, scale in zip(self._optimizer.param_groups, self._scales, strict=True):
            group["lr"] = self.rate * left * scale
        self._optimizer.step()
        with torch.no_grad():
            for name, weight in self._tuned.items():
                weight.copy_(self._wide[name])

    def _scale(self, name: str, weight: torch.Tensor) -> float:
        kept = weight[self._masks[name].to(weight.device)] if name in self._masks else weight
        return max(float(kept.square().mean().sqrt()) if kept.numel() else 0.0, LEAST_SCALE)


def turns(total: int, size: int, seed: int) -> Iterator[list[int]]:
    """Batches for one step after another, without end: all of them in a new order each time round."""
    for turn in count():
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed + turn)).tolist()
        yield from (order[start : start + size] for start in range(0, total - total % size or total, size))
