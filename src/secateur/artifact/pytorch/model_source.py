"""Describe a torch module for an artifact: its tensors, which layers they belong to, and its companion files."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._huggingface.pytorch import is_pretrained
from secateur._resizing.pytorch import list_branches, list_removed_blocks, read_sizes
from secateur.artifact.manifest import BranchEntry, Builder
from secateur.artifact.pytorch.carrying import carry_over, is_slimmed
from secateur.artifact.pytorch.publishing import publish_source
from secateur.artifact.pytorch.sentence_encoders import find_encoder
from secateur.artifact.pytorch.tensors import NAMES, find_aliases, get_state, read_bits
from secateur.artifact.source import Source, SourceTensor, guess_view
from secateur.errors import ConfigError
from secateur.frameworks.pytorch import get_parameter_name, get_view, unwrap_model
from secateur.planning.layers import Candidate
from secateur.planning.output_layer import explain_default
from secateur.planning.pytorch import find_candidates

__all__ = ["describe_tensors", "make_carried_source", "make_source"]

logger = logging.getLogger(__name__)


def make_source(model: nn.Module, tokenizer: Any = None) -> Source:
    """Collect the parameters and persistent buffers of a model, and for transformers models the companion files.

    Args:
        model: The model.
        tokenizer: The tokenizer or processor to save with it; any object with ``save_pretrained``.

    Raises:
        UnsupportedModelError: The model has a tensor that is not a plain dense tensor.
    """
    model = unwrap_model(model)
    if (encoder := find_encoder(model)) is not None:
        return encoder.add_modules(make_source(encoder.transformer, tokenizer))
    state = get_state(model)
    stored, aliases = find_aliases(state)
    pretrained = model if is_pretrained(model) else None
    branches = {name: BranchEntry(**asdict(layout)) for name, layout in list_branches(model).items()}
    source = Source(
        tensors=_describe_tensors(model, stored, aliases),
        aliases=aliases,
        sizes=read_sizes(model) or None,
        branches=branches or None,
        blocks=list_removed_blocks(model) or None,
        model=Builder(
            framework="pytorch", kind="code" if pretrained is None else "transformers", name=type(model).__qualname__
        ),
        write_files=partial(_write_files, pretrained, tokenizer),
    )
    # Other programs cannot build a slimmed model whose configuration does not describe it.
    return source if pretrained is None or source.is_slimmed else publish_source(model, state, source)


def make_carried_source(model: nn.Module, checkpoint: Source) -> Source:
    """Collect the tensors and files of a checkpoint, with the changes in the model that was loaded from it.

    If the names in the checkpoint are unknown, only its files are carried over. Slimmed models have their own
    configuration.
    """
    module: Any = unwrap_model(model)
    source = make_source(module)
    if is_slimmed(source, checkpoint, module.base_model_prefix):
        return replace(source, write_files=partial(_write_over, checkpoint, source))
    carried = carry_over(source, checkpoint, module.base_model_prefix)
    if carried is None:
        logger.warning("The names of tensors in the source are unknown. Only the tensors of the model are saved.")
    return carried or replace(source, write_files=checkpoint.write_files)


def _write_over(checkpoint: Source, source: Source, folder: Path) -> None:
    """Write the files of a checkpoint, such as the tokenizer, and over them those of the model."""
    checkpoint.write_files(folder)
    source.write_files(folder)


def describe_tensors(model: nn.Module) -> dict[str, SourceTensor]:
    """Describe the tensors of a transformers model on the meta device, under their own names and as it is published."""
    state = model.state_dict(keep_vars=True)
    own = _describe_tensors(model, state, {})
    return own | dict(publish_source(model, state, Source(tensors=own)).tensors)


def _describe_tensors(
    model: nn.Module, stored: Mapping[str, torch.Tensor], aliases: Mapping[str, str]
) -> dict[str, SourceTensor]:
    layers = _find_layers(model)
    layers |= {name: layers[alias] for alias, name in aliases.items() if alias in layers and name not in layers}
    return {name: _make_tensor(name, tensor, layers) for name, tensor in stored.items()}


def _make_tensor(name: str, tensor: torch.Tensor, layers: Mapping[str, Candidate]) -> SourceTensor:
    layer = layers.get(name)
    return SourceTensor(
        dtype=NAMES[tensor.dtype],
        shape=tuple(tensor.shape),
        read=partial(read_bits, tensor),
        view=guess_view(tuple(tensor.shape)) if layer is None else get_view(layer.module),
        layer=None if layer is None else layer.name,
        is_prunable=layer is not None and explain_default(layer, [*layers.values()]) is None,
    )


def _find_layers(model: nn.Module) -> dict[str, Candidate]:
    """Map each parameter that patterns can prune to its layer."""
    return {
        get_parameter_name(candidate.name, candidate.module): candidate
        for candidate in find_candidates(model, prune_frozen=True)
        if candidate.reason is None
    }


def _write_files(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer and the configuration of a transformers model."""
    if tokenizer is not None:
        if not hasattr(tokenizer, "save_pretrained"):
            raise ConfigError(f"tokenizer must have a method save_pretrained, found {type(tokenizer).__name__}.")
        tokenizer.save_pretrained(folder)
    if model is None:
        return
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", model.dtype)
    if getattr(model, "hf_quantizer", None) is None and hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights were dequantized on loading, as from a GGUF file
    config.save_pretrained(folder)
    if model.can_generate() and getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
