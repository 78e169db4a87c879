"""Simulate int8 quantization of torch models through torchao."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from secateur._packages import is_installed
from secateur.compat.neural_compressor._quantization_config import QuantizationAwareTrainingConfig
from secateur.errors import ConfigError, MissingPackageError
from secateur.frameworks.pytorch import unwrap_model

__all__ = ["QuantizationSimulator"]


class QuantizationSimulator:
    """Replaces linear layers with those of torchao that round weights and inputs; the parameters stay the same objects.

    Args:
        config: The layers.
        model: A torch module.

    Raises:
        MissingPackageError: torchao is not installed.
        ConfigError: The model has no linear layer to quantize.
    """

    def __init__(self, config: QuantizationAwareTrainingConfig, model: nn.Module) -> None:
        if not is_installed("torchao"):
            raise MissingPackageError(
                "QuantizationAwareTrainingConfig needs the package 'torchao', which is not installed. Install it with: "
                "pip install torchao. Without it, remove this configuration from the list, and quantize the pruned "
                "model afterwards.",
                name="torchao",
            )
        self.model = unwrap_model(model)
        self.names = {
            name
            for name, module in self.model.named_modules()
            if name and isinstance(module, nn.Linear) and config.is_quantized(name, type(module).__name__)
        }
        if not self.names:
            raise ConfigError("Quantization needs at least one linear layer inside the model, found none to quantize.")
        self.is_active = False

    def start(self) -> None:
        """Start rounding weights and inputs; no effect if it has already started."""
        if self.is_active:
            return
        qat = import_module("torchao.quantization.qat")
        int8 = torch.int8
        inputs = qat.IntxFakeQuantizeConfig(int8, "per_token", is_symmetric=False)  # torchao has no other
        weights = qat.IntxFakeQuantizeConfig(int8, "per_channel", is_symmetric=True)
        self._apply(qat.QATConfig(activation_config=inputs, weight_config=weights, step="prepare"))
        self.is_active = True

    def convert(self) -> None:
        """Replace the layers with quantized ones; no effect if rounding has not started."""
        if not self.is_active:
            return
        quantization, qat = import_module("torchao.quantization"), import_module("torchao.quantization.qat")
        self._apply(qat.QATConfig(step="convert"))
        self._apply(quantization.Int8DynamicActivationInt8WeightConfig())
        self.is_active = False

    def _apply(self, config: Any) -> None:
        quantize = import_module("torchao.quantization").quantize_
        quantize(self.model, config, filter_fn=lambda _module, name: name in self.names)
