"""Give the tensors of a transformers model the names and shapes in which the model is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from secateur.artifact.dtypes import Bits
from secateur.artifact.pytorch.published import Conversion, PublishedTensor, list_published
from secateur.artifact.pytorch.tensors import read_bits
from secateur.artifact.source import Source, SourceTensor

__all__ = ["name_layer", "publish_source"]

WEIGHT_SUFFIX = ".weight"


def publish_source(model: nn.Module, state: Mapping[str, torch.Tensor], source: Source) -> Source:
    """Replace the tensors of a model with those of its published form.

    Tensors that are only renamed keep their layer. Each of the others is a separate layer.

    Args:
        model: The model.
        state: Its parameters and persistent buffers, under all their names.
        source: The tensors of the model under their own names.
    """
    published = list_published(model, state)
    conversion = Conversion(model, state, published)
    renamed = {tensor.sources[0]: name for name, tensor in published.items() if tensor.is_renamed}
    aliases = {
        renamed[alias]: renamed[name] for alias, name in source.aliases.items() if alias in renamed and name in renamed
    }
    views = {name: tensor.view for name, tensor in source.tensors.items() if tensor.view is not None}
    tensors: dict[str, SourceTensor] = {}
    converted: dict[str, SourceTensor] = {}
    for name, tensor in published.items():
        if name in aliases:
            continue
        parts = [source.tensors[source.aliases.get(part, part)] for part in tensor.sources]
        if tensor.is_renamed:
            tensors[name] = parts[0]
            continue
        view = conversion.trace_views(tensor.sources[0], views).get(name)
        tensors[name] = _make_tensor(name, tensor, parts, partial(_read, conversion, tensor.sources[0], name))
        tensors[name] = replace(tensors[name], view=view)
        converted |= {part.layer: part for part in parts if part.layer is not None}
    return replace(source, tensors=tensors, aliases=aliases, converted=converted)


def name_layer(tensor: str) -> str:
    """Return the name of the layer that a published weight belongs to.

    Examples:
        >>> name_layer("experts.0.w1.weight")
        'experts.0.w1'
    """
    return tensor.removesuffix(WEIGHT_SUFFIX)


def _make_tensor(name: str, tensor: PublishedTensor, parts: list[SourceTensor], read: partial[Bits]) -> SourceTensor:
    origins = tuple(part.layer for part in parts if part.layer is not None)
    return SourceTensor(
        dtype=parts[0].dtype,
        shape=tensor.shape,
        read=read,
        layer=name_layer(name) if origins else None,
        is_prunable=bool(origins) and all(part.is_prunable for part in parts),
        origins=origins,
    )


def _read(conversion: Conversion, source: str, name: str) -> Bits:
    return read_bits(conversion.read(source, name))
