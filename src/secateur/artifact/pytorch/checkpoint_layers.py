"""Describe the layers of the model that a transformers folder configures, by the names of published tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from secateur._huggingface.config import check_config, read_config_json
from secateur._huggingface.folders import CONFIG_FILE
from secateur._huggingface.pytorch import explain_failures
from secateur._model_limits import LIMITS_WITHOUT_WEIGHTS
from secateur.artifact.pytorch.loading import build_configured
from secateur.artifact.pytorch.model_source import describe_tensors
from secateur.frameworks.view import WeightView

__all__ = ["describe_layers"]


def describe_layers(folder: Path) -> dict[str, tuple[WeightView, str, bool] | None]:
    """Describe the model of a folder: tensor → its view, its layer, and whether a plan would prune the layer.

    ``None`` marks tensors that patterns do not prune. Each name is listed with and without the base model's prefix, in
    the form in which the model is published and as the model itself has it.

    Raises:
        ModelLoadError: transformers cannot build the model.
        ArtifactError: The configuration has an impossible number of layers, heads or similar.
    """
    with explain_failures(folder):
        config = read_config_json(folder / CONFIG_FILE)
    check_config(config, folder / CONFIG_FILE)
    with torch.device("meta"):
        model: Any = build_configured(folder, folder, LIMITS_WITHOUT_WEIGHTS)
    described = {
        name: None if tensor.layer is None or tensor.view is None else (tensor.view, tensor.layer, tensor.is_prunable)
        for name, tensor in describe_tensors(model).items()
    }
    prefix = f"{model.base_model_prefix}."
    return (
        {prefix + name: layer for name, layer in described.items()}
        | {name.removeprefix(prefix): layer for name, layer in described.items()}
        | described
    )
