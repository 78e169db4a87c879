"""Norms without parameters, whose number of channels only shows in their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.slimming.pytorch.journal import Journal

__all__ = ["follow_inputs"]


@contextmanager
def follow_inputs(model: nn.Module, journal: Journal) -> Iterator[None]:
    """While the model runs, set the number of channels of norms without parameters to that of their inputs."""

    def follow(norm: Any, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].dim() > 1:
            for attribute, value in _describe(norm, inputs[0].shape[1]).items():
                if getattr(norm, attribute) != value:
                    journal.set_attribute(norm, attribute, value)

    norms = [module for module in model.modules() if _has_channels(module) and not [*_list_own(module)]]
    handles = [norm.register_forward_pre_hook(follow) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_channels(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm)


def _list_own(module: nn.Module) -> Iterator[torch.Tensor]:
    own = (*module._parameters.values(), *module._buffers.values())
    return (tensor for tensor in own if tensor is not None and tensor.dim())


def _describe(norm: Any, channels: int) -> dict[str, int]:
    if not isinstance(norm, nn.GroupNorm):
        return {"num_features": channels}
    per_group = norm.num_channels // norm.num_groups
    if channels % per_group:
        return {}
    return {"num_channels": channels, "num_groups": channels // per_group}
