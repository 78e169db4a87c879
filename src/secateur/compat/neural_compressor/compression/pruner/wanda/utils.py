"""List the blocks of a model and their layers, and count zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.compat.neural_compressor.compression.pruner.utils import get_layers
from secateur.errors import UnsupportedModelError

__all__ = ["find_layers", "get_module_list", "get_tensor_sparsity_ratio"]


def find_layers(module: Any, op_types: Sequence[str] = ("Linear", "Conv1D"), name: str = "") -> dict[str, Any]:
    """Return the layers in a module whose class names contain one of some words, by name.

    Args:
        module: A torch module.
        op_types: The words.
        name: Name of the module itself, which starts the names of its layers.

    Examples:
        >>> from torch import nn
        >>> list(find_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), name="block"))
        ['block.0']
    """
    if any(kind in type(module).__name__ for kind in op_types):
        return {name: module}
    layers: dict[str, Any] = {}
    for key, child in module.named_children():
        layers |= find_layers(child, op_types, f"{name}.{key}" if name else key)
    return layers


def get_module_list(model: Any) -> Any:
    """Return the first ``nn.ModuleList`` of a model, which contains its blocks.

    Raises:
        UnsupportedModelError: There is none.
    """
    blocks = get_layers(model)
    if not len(blocks):
        raise UnsupportedModelError(
            f"The model must contain a list of blocks (nn.ModuleList), found none in {type(model).__name__}. Prune it "
            f"with secateur.prune(model, config, calibration=batches, solver='wanda')."
        )
    return blocks


def get_tensor_sparsity_ratio(target_tensor: Any) -> float:
    """Return the share of zeros in a tensor, rounded to six digits.

    Examples:
        >>> import torch
        >>> get_tensor_sparsity_ratio(torch.tensor([0.0, 1.0, 2.0]))
        0.333333
    """
    share = float((target_tensor == 0).sum()) / int(target_tensor.numel())
    return round(share, 6)
