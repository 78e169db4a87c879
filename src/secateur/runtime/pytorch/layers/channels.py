"""Smaller dense layers, for weights with whole channels of zeros."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack
from torch.nn import functional

from secateur.frameworks.pytorch import get_view
from secateur.runtime.pytorch.layers.base import SparseLayer, detach_parameters, is_strided

__all__ = ["ChannelConv2d", "ChannelLayer", "ChannelLinear"]


class ChannelLayer(SparseLayer):
    """A smaller dense layer with only the nonzero input and output channels.

    Args:
        layer: The dense layer.
        outputs: Booleans of shape (O,) that select the output channels with a nonzero weight.
        inputs: Booleans of shape (I,) that select the input channels with a nonzero weight.

    Attributes:
        axis: Axis of the channels in inputs and outputs, as a negative index.
    """

    axis: ClassVar[int]

    kept_weight: torch.Tensor
    kept_outputs: torch.Tensor
    kept_inputs: torch.Tensor
    packed_bias: torch.Tensor | None

    def __init__(self, layer: nn.Module, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        super().__init__(layer)
        weight, bias = detach_parameters(layer)
        self.is_transposed = get_view(layer).output_axes == (1,)
        self.outputs, self.inputs = len(outputs), len(inputs)
        matrix = weight.T if self.is_transposed else weight
        for name, tensor in {
            "kept_weight": matrix[outputs.to(weight.device)][:, inputs.to(weight.device)].contiguous(),
            "kept_outputs": outputs.nonzero().flatten().to(weight.device),
            "kept_inputs": inputs.nonzero().flatten().to(weight.device),
            "packed_bias": None if bias is None else bias.clone(),
        }.items():
            self.register_buffer(name, tensor, persistent=False)

    @abstractmethod
    def apply_weight(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Apply a weight of shape (O, I) or (O, I, H, W) to inputs."""

    @property
    def dtype(self) -> torch.dtype:
        """See `SparseLayer.dtype`."""
        return self.kept_weight.dtype

    @property
    def device(self) -> torch.device:
        """See `SparseLayer.device`."""
        return self.kept_weight.device

    def unpack_bias(self) -> torch.Tensor | None:
        """See `SparseLayer.unpack_bias`."""
        return self.packed_bias

    @property
    def nbytes(self) -> int:
        """See `SparseLayer.nbytes`. The channel indices are included."""
        return int(sum(buffer.nbytes for buffer in (self.kept_weight, self.kept_outputs, self.kept_inputs)))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name in the dense layer
        """Compute outputs with O channels from inputs with I channels."""
        inputs = input
        if not torch.compiler.is_compiling() and (peek_interpreter_stack() is not None or not is_strided(inputs)):
            return self.compute_densely(inputs)  # inside a torch.func transform, or not strided
        if len(self.kept_inputs) < self.inputs:
            inputs = inputs.index_select(self.axis, self.kept_inputs)
        bias = self.packed_bias
        if len(self.kept_outputs) == self.outputs:
            return self.apply_weight(inputs, self.kept_weight, bias)
        kept = self.apply_weight(inputs, self.kept_weight, None if bias is None else bias[self.kept_outputs])
        shape = list(kept.shape)
        shape[self.axis] = self.outputs
        constant = kept.new_zeros(self.outputs) if bias is None else bias
        result = kept.new_empty(shape).copy_(constant.reshape(-1, *[1] * (-1 - self.axis)))
        return result.index_copy_(self.axis, self.kept_outputs, kept)

    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `SparseLayer.multiply_densely`."""
        weight = self.unpack_weight()
        return self.apply_weight(tensor, weight.T if self.is_transposed else weight, self.packed_bias)

    def unpack_weight(self) -> torch.Tensor:
        """See `SparseLayer.unpack_weight`."""
        dense = self.kept_weight.new_zeros(self.outputs, self.inputs, *self.kept_weight.shape[2:])
        dense[self.kept_outputs[:, None], self.kept_inputs] = self.kept_weight
        return dense.T.contiguous() if self.is_transposed else dense

    def extra_repr(self) -> str:
        """Show how many channels remain."""
        inputs = f"{len(self.kept_inputs)} of {self.inputs} inputs"
        return f"{inputs}, {len(self.kept_outputs)} of {self.outputs} outputs"


class ChannelLinear(ChannelLayer):
    """Replaces ``nn.Linear`` or transformers' ``Conv1D``. Inputs have shape (…, I)."""

    axis = -1

    def apply_weight(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `ChannelLayer.apply_weight`."""
        return functional.linear(inputs, weight, bias)

    @property
    def in_features(self) -> int:
        """Input features of the dense layer."""
        return self.inputs

    @property
    def out_features(self) -> int:
        """Output features of the dense layer."""
        return self.outputs


class ChannelConv2d(ChannelLayer):
    """Replaces ``nn.Conv2d`` with one group. Inputs have shape (B, I, H, W) or (I, H, W).

    If all channels are zero, it keeps one of them, because torch does not support convolutions without channels.
    """

    axis = -3

    def __init__(self, layer: nn.Conv2d, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        kept = [flags if flags.any() else torch.arange(len(flags)) == 0 for flags in (outputs, inputs)]
        super().__init__(layer, *kept)
        self.stride, self.dilation, self.padding = layer.stride, layer.dilation, layer.padding
        self.padding_mode = layer.padding_mode
        # nn.Conv2d stores its padding in the order that `functional.pad` expects.
        self._padding = tuple(layer._reversed_padding_repeated_twice)

    def apply_weight(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `ChannelLayer.apply_weight`."""
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            inputs, padding = functional.pad(inputs, self._padding, mode=self.padding_mode), (0, 0)
        return functional.conv2d(inputs, weight, bias, self.stride, padding, self.dilation)
