"""Find the weights with which a module computes: its parameters, after parametrizations and masks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from secateur.frameworks.pytorch import get_type_names

__all__ = ["UNINITIALIZED", "find_weights"]

UNINITIALIZED = (nn.UninitializedParameter, nn.UninitializedBuffer)
"""Types of weights that have no shape before the first batch."""

SUPPORTED_NAMES = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Attributes that may contain a weight of a layer that can be pruned."""

MASKED_SUFFIX = "_orig"
"""Ending of a parameter's name after `torch.nn.utils.prune` has masked it."""


def find_weights(module: nn.Module) -> list[torch.Tensor]:
    """Return the effective weights of a module that have at least two axes, detached from autograd.

    A mask of `torch.nn.utils.prune` or a parametrization is applied. Parameters without values are left out.
    """
    if isinstance(module, parametrize.ParametrizationList):  # belongs to the module that it parametrizes
        return []
    names = SUPPORTED_NAMES if get_type_names(module) else _list_names(module)
    values = [getattr(module, name, None) for name in names]
    return [
        value.detach()
        for value in values
        if isinstance(value, torch.Tensor) and not isinstance(value, UNINITIALIZED) and value.ndim > 1
    ]


def _list_names(module: nn.Module) -> list[str]:
    """List the names of the parameters of a module, and of tensors that are computed from them."""
    names = [
        name.removesuffix(MASKED_SUFFIX) if _is_masked(module, name) else name
        for name, _ in module.named_parameters(recurse=False)
    ]
    return names + list(getattr(module, "parametrizations", ()))


def _is_masked(module: nn.Module, name: str) -> bool:
    return name.endswith(MASKED_SUFFIX) and f"{name.removesuffix(MASKED_SUFFIX)}_mask" in module._buffers
