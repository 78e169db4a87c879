"""Make random inputs for transformers models: token ids for text models, pixel values for image models."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

__all__ = ["add_decoder_inputs", "make_random_inputs"]

IMAGE_SIZE = 224
"""Height and width of random images for a model that accepts any size."""

TOKENS = "input_ids"
PIXELS = "pixel_values"


def make_random_inputs(model: nn.Module, batch: int, length: int) -> dict[str, torch.Tensor] | None:
    """Make random inputs of the sizes in the configuration of a model, the same in every call.

    Args:
        model: The model.
        batch: Number of examples.
        length: Tokens per example, for a text model; fewer if the model has fewer positions.

    Returns:
        The arguments of the model by name; ``None``: it takes neither text nor images, or its configuration does not
        have their sizes.
    """
    config: Any = getattr(model, "config", None)
    main, generator = getattr(model, "main_input_name", TOKENS), torch.Generator().manual_seed(0)
    if not _accepts(model, main):
        return None
    if main == PIXELS and hasattr(config, "num_channels"):
        size = getattr(config, "image_size", None) or IMAGE_SIZE
        shape = batch, config.num_channels, *(size if isinstance(size, (list, tuple)) else (size, size))
        return {PIXELS: torch.randn(shape, generator=generator)}
    if main != TOKENS or not hasattr(config, "vocab_size"):
        return None
    limit = getattr(config, "max_position_embeddings", None)
    length = min(length, limit) if isinstance(limit, int) and limit > 0 else length
    tokens = torch.randint(config.vocab_size, (batch, length), generator=generator)
    return add_decoder_inputs(model, {TOKENS: tokens})


def add_decoder_inputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs of a text model, for an encoder-decoder with the same tokens for its decoder."""
    config: Any = getattr(model, "config", None)
    is_pair = getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_decoder")
    return {**inputs, "decoder_input_ids": inputs[TOKENS].clone()} if is_pair and TOKENS in inputs else inputs


def _accepts(model: nn.Module, name: str) -> bool:
    """Whether a model has an argument of this name; parts of a transformers model share its configuration."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(kind.kind is kind.VAR_POSITIONAL for kind in parameters.values())
