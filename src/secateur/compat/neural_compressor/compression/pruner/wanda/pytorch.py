"""Accumulate statistics of the inputs of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.frameworks.pytorch import get_view
from secateur.oneshot.pytorch.calibration.input_features import iterate_features

__all__ = ["WrappedGPT"]


class WrappedGPT:
    """Statistics of the input features of a linear layer.

    Args:
        layer: The layer.
        layer_id: Stored unchanged.
        layer_name: Stored unchanged; also names the layer in error messages.

    Attributes:
        rows: Number of outputs.
        columns: Number of input features.
        scaler_row: Sum of squares of each feature, divided by the number of sequences, of shape (columns,).
        sum_metric_row: Sum of each feature, divided by the number of sequences.
        mean: Mean of each feature over all tokens.
        var: Variance of each feature over all tokens.
        nsamples: Number of sequences.
        ntokens: Number of tokens.

    Examples:
        >>> wrapped = WrappedGPT(nn.Linear(2, 3))
        >>> wrapped.add_batch(torch.tensor([[[1.0, 2.0], [3.0, 2.0]]]), None)
        >>> wrapped.scaler_row.tolist(), wrapped.mean.tolist(), wrapped.var.tolist()
        ([10.0, 8.0], [2.0, 2.0], [1.0, 0.0])
    """

    def __init__(self, layer: nn.Module, layer_id: int = 0, layer_name: str = "none") -> None:
        self.layer = layer
        self.layer_id, self.layer_name = layer_id, layer_name
        self.rows, _, self.columns = get_view(layer).canonical_shape
        self.dev = next(layer.parameters()).device
        self.nsamples = self.ntokens = 0
        self._sum = torch.zeros(self.columns, device=self.dev)
        self._squares = torch.zeros(self.columns, device=self.dev)

    def add_batch(self, inp: torch.Tensor, out: Any) -> None:  # noqa: ARG002 - part of the interface
        """Add a batch of inputs.

        Args:
            inp: Inputs of shape (sequences, tokens, columns), or (tokens, columns) for one sequence.
            out: Not used.

        Raises:
            CalibrationError: The inputs do not fit the layer.
        """
        self.nsamples += inp.shape[0] if inp.dim() > 2 else 1
        for features in iterate_features(self.layer_name, self.layer, (inp,), None):
            rows = features.reshape(-1, self.columns)
            self._sum += rows.sum(0)
            self._squares += rows.square().sum(0)
            self.ntokens += rows.shape[0]

    @property
    def scaler_row(self) -> torch.Tensor:
        """See `WrappedGPT`."""
        return self._squares / max(1, self.nsamples)

    @property
    def sum_metric_row(self) -> torch.Tensor:
        """See `WrappedGPT`."""
        return self._sum / max(1, self.nsamples)

    @property
    def mean(self) -> torch.Tensor:
        """See `WrappedGPT`."""
        return self._sum / max(1, self.ntokens)

    @property
    def var(self) -> torch.Tensor:
        """See `WrappedGPT`."""
        return (self._squares / max(1, self.ntokens) - self.mean.square()).clamp(min=0)
