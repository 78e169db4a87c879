"""Layers whose channels are zero as a whole: a smaller dense product."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from secateur.patterns.pytorch import PytorchBasePattern
from secateur.runtime.pytorch.layers import ExchangedLayer, parts

__all__ = ["ChannelLinear"]


class ChannelLinear(ExchangedLayer):
    """In the place of a linear layer: the product of the input and output channels that are left.

    Its state is that of the dense layer.

    Args:
        layer: The dense layer.
        outputs: Booleans of shape (O,): which outputs read anything.
        inputs: Booleans of shape (I,): which inputs are read.
    """

    rest: torch.Tensor
    kept_outputs: torch.Tensor
    kept_inputs: torch.Tensor
    packed_bias: torch.Tensor | None

    def __init__(self, layer: nn.Module, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        super().__init__(layer)
        weight, bias = parts(layer)
        view = PytorchBasePattern({}, {}).weight_view(layer)
        self.is_transposed = view.output_axes == (1,)
        self.out_features, self.in_features = len(outputs), len(inputs)
        matrix = weight.T if self.is_transposed else weight
        for name, tensor in {
            "rest": matrix[outputs.to(weight.device)][:, inputs.to(weight.device)].contiguous(),
            "kept_outputs": outputs.nonzero().flatten().to(weight.device),
            "kept_inputs": inputs.nonzero().flatten().to(weight.device),
            "packed_bias": None if bias is None else bias.clone(),
        }.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def bias(self) -> torch.Tensor | None:
        """See `ExchangedLayer.bias`."""
        return self.packed_bias

    @property
    def nbytes(self) -> int:
        """See `ExchangedLayer.nbytes`; with the numbers of its channels."""
        return int(sum(one.nbytes for one in (self.rest, self.kept_outputs, self.kept_inputs)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of shape (…, I) to outputs of shape (…, O)."""
        if len(self.kept_inputs) < self.in_features:
            inputs = inputs.index_select(-1, self.kept_inputs)
        if len(self.kept_outputs) == self.out_features:
            return functional.linear(inputs, self.rest, self.packed_bias)
        some = functional.linear(inputs, self.rest)
        result = some.new_zeros(*inputs.shape[:-1], self.out_features)
        result.index_copy_(-1, self.kept_outputs, some)
        return result if self.packed_bias is None else result.add_(self.packed_bias)

    def dense_weight(self) -> torch.Tensor:
        """See `ExchangedLayer.dense_weight`."""
        dense = self.rest.new_zeros(self.out_features, self.in_features)
        dense[self.kept_outputs[:, None], self.kept_inputs] = self.rest
        return dense.T.contiguous() if self.is_transposed else dense

    def extra_repr(self) -> str:
        """Channels before and after."""
        left = f"{len(self.kept_inputs)} of {self.in_features} inputs, {len(self.kept_outputs)} of {self.out_features}"
        return f"{left} outputs"
