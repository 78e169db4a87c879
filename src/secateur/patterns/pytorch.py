"""How torch stores weights, and how to get them in and out of selection."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from secateur._array import Array, to_numpy
from secateur.errors import LayerError, UnsupportedModelError
from secateur.patterns.base import BasePattern
from secateur.patterns.view import WeightView

__all__ = ["PytorchBasePattern", "families", "is_transformers_conv1d", "parameter", "weight_name"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class PytorchBasePattern(BasePattern):
    """The binding of patterns to torch modules.

    Serves ``Linear``, ``Conv1d/2d/3d`` (grouped and depthwise too), ``ConvTranspose1d/2d/3d`` of one group, the input
    projection of ``MultiheadAttention``, and the ``Conv1D`` of transformers. In place of a module, the `WeightView` of
    a weight serves where only its shape matters.
    """

    framework: ClassVar[str | None] = "pytorch"

    def weight_view(self, module: Any) -> WeightView:
        """See `BasePattern.weight_view`."""
        if isinstance(module, WeightView):
            return module
        if not isinstance(module, nn.Module):
            raise UnsupportedModelError(f"torch patterns need torch.nn.Module layers, found {type(module).__name__}.")
        weight = self.weight(module)
        shape = tuple(weight.shape)
        kernel = tuple(range(2, len(shape)))
        if isinstance(module, TRANSPOSED):
            if module.groups > 1:
                raise LayerError("a transposed convolution with groups numbers its output channels within each group")
            return WeightView(shape=shape, output_axes=(1,), kernel_axes=kernel, input_axes=(0,))
        if isinstance(module, CONVOLUTIONS):
            return WeightView(shape=shape, output_axes=(0,), kernel_axes=kernel, input_axes=(1,), groups=module.groups)
        if is_transformers_conv1d(module):
            return WeightView(shape=shape, output_axes=(1,), input_axes=(0,))
        return WeightView(shape=shape, output_axes=(0,), input_axes=(1,))

    def weight(self, module: nn.Module) -> torch.Tensor:
        """The parameter itself, detached from autograd."""
        return parameter(module).detach()

    def weight_id(self, module: nn.Module) -> int:
        """The parameter's identity."""
        return id(module if isinstance(module, WeightView) else parameter(module))

    def as_array(self, value: torch.Tensor | Array) -> Array:
        """On the CPU a NumPy array of the same memory, on which comparisons run twice as fast; else the tensor."""
        if isinstance(value, np.ndarray):
            return value
        tensor = value.detach()
        if tensor.device.type != "cpu":
            return tensor
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()
        return tensor.numpy()

    def like(self, array: Array, tensor: torch.Tensor | Array) -> Any:
        """The inverse of `as_array`: a tensor on the device of `tensor`, or NumPy where that is."""
        if isinstance(tensor, np.ndarray):
            return to_numpy(array)
        return torch.as_tensor(array, device=tensor.device)


def parameter(module: nn.Module) -> nn.Parameter:
    """The parameter that is pruned in a module.

    Raises:
        LayerError: There is none; the message says why.
    """
    if not families(module):
        raise LayerError(f"{type(module).__name__} is not a type of layer that patterns know")
    name = weight_name(module)
    found = module._parameters.get(name)
    if found is None:
        computed = isinstance(getattr(module, name, None), torch.Tensor)
        reason = "is computed from other parameters (parametrized)" if computed else "is missing"
        raise LayerError(f"its parameter {name!r} {reason}")
    if isinstance(found, nn.UninitializedParameter):
        raise LayerError("its weight has no shape before the first batch; run one batch through the model first")
    if not found.is_floating_point():
        raise LayerError(f"its weight has dtype {found.dtype}; patterns need floating point")
    if found.layout != torch.strided:
        raise LayerError(f"its weight is stored as {found.layout}; patterns need a dense tensor")
    if _has_own_operators(found):
        raise LayerError(
            f"its weight is a {type(found).__name__}; patterns need a plain tensor. Prune before the model is sharded "
            f"or quantized"
        )
    if found.dim() < 2:
        raise LayerError(
            f"its weight has shape {tuple(found.shape)}; patterns need two axes or more. Prune before the model is "
            f"sharded"
        )
    return found


def _has_own_operators(weight: torch.Tensor) -> bool:
    """Whether its class replaces torch's operators, as those of sharded (DTensor) and quantized tensors do."""
    return type(weight).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def families(module: nn.Module) -> tuple[str, ...]:
    """The names under which configurations may mean a module's type, the most specific first; empty if unknown."""
    own = type(module).__name__
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return own, "Conv"
    if isinstance(module, (nn.Linear, nn.MultiheadAttention)) or is_transformers_conv1d(module):
        return own, "Linear"
    return ()


def weight_name(module: nn.Module) -> str:
    """The name of the parameter that is pruned."""
    return "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"


def is_transformers_conv1d(module: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2's making, which stores its weight transposed."""
    return any(
        base.__name__ == "Conv1D" and base.__module__ == "transformers.pytorch_utils" for base in type(module).__mro__
    )
