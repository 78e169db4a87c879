"""Models of transformers, without their weights."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import nn

from secateur.errors import ModelLoadError

__all__ = ["from_folder"]


def from_folder(folder: Path) -> nn.Module:
    """The architecture that a folder's ``config.json`` describes, on the meta device.

    Raises:
        ModelLoadError: transformers does not know the architecture, or it fails to build it.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return _build(config)
    # Hundreds of architectures, each with its own errors.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelLoadError(f"transformers cannot build a model from {str(folder)!r}: {first_line}") from error


def _build(config: transformers.PreTrainedConfig) -> nn.Module:
    for name in config.architectures or ():
        architecture = getattr(transformers, name, None)
        if isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel):
            return architecture(config)
    model: nn.Module = transformers.AutoModel.from_config(config)
    return model
