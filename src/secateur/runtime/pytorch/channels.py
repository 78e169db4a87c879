"""Layers whose channels are zero as a whole: a smaller dense product."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack
from torch.nn import functional

from secateur.frameworks.pytorch import get_view
from secateur.runtime.pytorch.layers import ExchangedLayer, parts
from secateur.runtime.pytorch.operator import is_strided

__all__ = ["ChannelConv2d", "ChannelLayer", "ChannelLinear"]


class ChannelLayer(ExchangedLayer):
    """The product of the input and output channels that are left.

    Its state is that of the dense layer.

    Args:
        layer: The dense layer.
        outputs: Booleans of shape (O,): which outputs read anything.
        inputs: Booleans of shape (I,): which inputs are read.

    Attributes:
        axis: Where channels are in inputs and outputs, from behind.
    """

    axis: ClassVar[int]

    rest: torch.Tensor
    kept_outputs: torch.Tensor
    kept_inputs: torch.Tensor
    packed_bias: torch.Tensor | None

    def __init__(self, layer: nn.Module, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        super().__init__(layer)
        weight, bias = parts(layer)
        self.is_transposed = get_view(layer).output_axes == (1,)
        self.outputs, self.inputs = len(outputs), len(inputs)
        matrix = weight.T if self.is_transposed else weight
        for name, tensor in {
            "rest": matrix[outputs.to(weight.device)][:, inputs.to(weight.device)].contiguous(),
            "kept_outputs": outputs.nonzero().flatten().to(weight.device),
            "kept_inputs": inputs.nonzero().flatten().to(weight.device),
            "packed_bias": None if bias is None else bias.clone(),
        }.items():
            self.register_buffer(name, tensor, persistent=False)

    @abstractmethod
    def product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Inputs times a weight of shape (O, I), or (O, I, H, W)."""

    @property
    def dtype(self) -> torch.dtype:
        """See `ExchangedLayer.dtype`."""
        return self.rest.dtype

    @property
    def device(self) -> torch.device:
        """See `ExchangedLayer.device`."""
        return self.rest.device

    def dense_bias(self) -> torch.Tensor | None:
        """See `ExchangedLayer.dense_bias`."""
        return self.packed_bias

    @property
    def nbytes(self) -> int:
        """See `ExchangedLayer.nbytes`; with the numbers of its channels."""
        return int(sum(one.nbytes for one in (self.rest, self.kept_outputs, self.kept_inputs)))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as the dense layer names it
        """Inputs with I channels to outputs with O channels."""
        inputs = input
        if not torch.compiler.is_compiling() and (peek_interpreter_stack() is not None or not is_strided(inputs)):
            return self.compute_densely(inputs)  # in a transform of torch, or a tensor without memory
        if len(self.kept_inputs) < self.inputs:
            inputs = inputs.index_select(self.axis, self.kept_inputs)
        bias = self.packed_bias
        if len(self.kept_outputs) == self.outputs:
            return self.product(inputs, self.rest, bias)
        some = self.product(inputs, self.rest, None if bias is None else bias[self.kept_outputs])
        shape = list(some.shape)
        shape[self.axis] = self.outputs
        alone = some.new_zeros(self.outputs) if bias is None else bias
        result = some.new_empty(shape).copy_(alone.reshape(-1, *[1] * (-1 - self.axis)))
        return result.index_copy_(self.axis, self.kept_outputs, some)

    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `ExchangedLayer.multiply_densely`."""
        weight = self.dense_weight()
        return self.product(tensor, weight.T if self.is_transposed else weight, self.packed_bias)

    def dense_weight(self) -> torch.Tensor:
        """See `ExchangedLayer.dense_weight`."""
        dense = self.rest.new_zeros(self.outputs, self.inputs, *self.rest.shape[2:])
        dense[self.kept_outputs[:, None], self.kept_inputs] = self.rest
        return dense.T.contiguous() if self.is_transposed else dense

    def extra_repr(self) -> str:
        """Channels before and after."""
        left = f"{len(self.kept_inputs)} of {self.inputs} inputs, {len(self.kept_outputs)} of {self.outputs}"
        return f"{left} outputs"


class ChannelLinear(ChannelLayer):
    """In the place of ``nn.Linear`` or transformers' ``Conv1D``; inputs have shape (…, I)."""

    axis = -1

    def product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `ChannelLayer.product`."""
        return functional.linear(inputs, weight, bias)

    @property
    def in_features(self) -> int:
        """Of the dense layer."""
        return self.inputs

    @property
    def out_features(self) -> int:
        """Of the dense layer."""
        return self.outputs


class ChannelConv2d(ChannelLayer):
    """In the place of ``nn.Conv2d`` of one group; inputs have shape (B, I, H, W) or (I, H, W).

    One channel is kept where none is left, for torch has no convolution of none.
    """

    axis = -3

    def __init__(self, layer: nn.Conv2d, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        first = [torch.arange(len(kept)) == 0 for kept in (outputs, inputs)]
        some = [kept if kept.any() else one for kept, one in zip((outputs, inputs), first, strict=True)]
        super().__init__(layer, *some)
        self.stride, self.dilation, self.padding = layer.stride, layer.dilation, layer.padding
        self.padding_mode = layer.padding_mode
        # The convolution itself keeps its padding in the form that `functional.pad` takes.
        self._margins = tuple(layer._reversed_padding_repeated_twice)

    def product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `ChannelLayer.product`."""
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            inputs, padding = functional.pad(inputs, self._margins, mode=self.padding_mode), (0, 0)
        return functional.conv2d(inputs, weight, bias, self.stride, padding, self.dilation)
