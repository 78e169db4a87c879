"""Attributes of torch's layers that follow from the shapes of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from secateur.errors import LayerError
from secateur.frameworks.pytorch import is_transformers_conv1d
from secateur.slimming.pytorch.tensors import AxisIndices

__all__ = ["describe_layer"]

Attributes = dict[str, "int | tuple[int, ...]"]
Cuts = Mapping[str, AxisIndices]
Describe = Callable[[Any, Cuts], Attributes]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.modules.batchnorm._NormBase,)


def describe_layer(name: str, layer: nn.Module, cuts: Cuts) -> Attributes:
    """Return the attributes of a layer that its new tensors change; none for layers of unknown types.

    Args:
        name: Name of the layer, for messages.
        layer: The layer, with its new tensors.
        cuts: Name of a tensor in the layer → axis → the removed indices.

    Raises:
        LayerError: The groups of a convolution or a group norm would keep different numbers of channels.
    """
    describe = next((rule for types, rule in RULES if isinstance(layer, types)), None)
    if describe is None and is_transformers_conv1d(layer):
        describe = _describe_conv1d
    if describe is None:
        return {}
    try:
        attributes = describe(layer, cuts)
    except LayerError as error:
        raise LayerError(f"{name!r}: {error}") from error
    return {key: value for key, value in attributes.items() if layer.__dict__.get(key) != value}


def _describe_linear(layer: nn.Linear, _: Cuts) -> Attributes:
    outputs, inputs = _get_shape(layer)
    return {"in_features": inputs, "out_features": outputs}


def _describe_bilinear(layer: nn.Bilinear, _: Cuts) -> Attributes:
    outputs, first, second = _get_shape(layer)
    return {"in1_features": first, "in2_features": second, "out_features": outputs}


def _describe_conv1d(layer: Any, _: Cuts) -> Attributes:
    inputs, outputs = _get_shape(layer)
    return {"nx": inputs, "nf": outputs}


def _describe_conv(layer: Any, cuts: Cuts) -> Attributes:
    """Describe a convolution: its weight has all channels of one side along axis 0, those of one group along axis 1."""
    along_groups, per_group = _get_shape(layer)[:2]
    before = layer.in_channels if layer.transposed else layer.out_channels
    groups = _count_groups(before, layer.groups, cuts.get("weight", {}))
    sides = along_groups, per_group * groups
    inputs, outputs = sides if layer.transposed else sides[::-1]
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


def _count_groups(channels: int, groups: int, cuts: AxisIndices) -> int:
    """Return the new number of groups of channels along axis 0: whole groups are removed, or a part of each."""
    gone = np.zeros(channels, dtype=bool)
    gone[cuts.get(0, [])] = True
    counts = gone.reshape(groups, -1).sum(axis=1)
    empty = counts == channels // groups
    left = counts[~empty]
    if left.size == 0 or (left != left[0]).any():
        raise LayerError(
            f"each of its {groups} groups must lose all of its {channels // groups} channels or none, or each the "
            f"same number, found losses of {counts.tolist()}"
        )
    return int(left.size)


def _describe_features(layer: Any, _: Cuts) -> Attributes:
    tensor = layer.weight if layer.weight is not None else layer.running_mean
    return {} if tensor is None else {"num_features": tensor.shape[0]}


def _describe_norm(layer: Any, _: Cuts) -> Attributes:
    return {} if layer.weight is None else {"normalized_shape": _get_shape(layer)}


def _describe_group_norm(layer: nn.GroupNorm, cuts: Cuts) -> Attributes:
    groups = _count_groups(layer.num_channels, layer.num_groups, cuts.get("weight", {}))
    return {"num_channels": _get_shape(layer)[0], "num_groups": groups}


def _describe_embedding(layer: Any, _: Cuts) -> Attributes:
    rows, columns = _get_shape(layer)
    return {"num_embeddings": rows, "embedding_dim": columns}


def _describe_prelu(layer: nn.PReLU, _: Cuts) -> Attributes:
    return {"num_parameters": _get_shape(layer)[0]}


def _get_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of the weight, even if the next call computes it, as with torch's masks."""
    weight: Any = layer._parameters.get("weight_orig")
    if weight is None:
        weight = layer.weight
    return tuple(weight.shape)


RULES: tuple[tuple[tuple[type, ...], Describe], ...] = (
    ((nn.Linear,), _describe_linear),
    ((nn.Bilinear,), _describe_bilinear),
    (CONVOLUTIONS, _describe_conv),
    (BATCH_NORMS, _describe_features),
    ((nn.LayerNorm, nn.RMSNorm), _describe_norm),
    ((nn.GroupNorm,), _describe_group_norm),
    ((nn.Embedding, nn.EmbeddingBag), _describe_embedding),
    ((nn.PReLU,), _describe_prelu),
)
"""Types of layers → what describes them."""
