"""The layers of a torch model, and which of them is its output."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

from torch import nn

from secateur.config import PruningConfig
from secateur.errors import LayerError
from secateur.frameworks.pytorch import (
    find_weight_layers,
    get_matrices,
    get_parameter,
    get_type_names,
    list_layers,
    unwrap_model,
)
from secateur.planning.layers import Candidate
from secateur.planning.resolve import Plan, make_plan

__all__ = ["find_candidates", "plan"]

OUTPUT_NAMES = frozenset(
    {"classifier", "cls", "embed_out", "fc_out", "head", "lm_head", "output_projection", "qa_outputs", "score"}
)
"""Names that model families give their output layer, or the part of the model that it ends."""


FROZEN = "frozen (requires_grad=False)"


def plan(model: nn.Module, config: PruningConfig | Mapping[str, Any], *, prune_frozen: bool = False) -> Plan:
    """See `secateur.plan`; with `prune_frozen`, layers that training leaves alone may be pruned too."""
    return make_plan(
        config,
        find_candidates(model, prune_frozen=prune_frozen),
        list(list_layers(model)),
        "pytorch",
    )


def find_candidates(model: nn.Module, *, prune_frozen: bool = False) -> list[Candidate]:
    """Every layer that owns a parameter of two axes or more, in the model's order.

    A frozen one has that as a reason to stay dense, unless `prune_frozen`.
    """
    layers = find_weight_layers(model)
    outputs = _output_layers(unwrap_model(model), layers)
    found = [_describe_layer(name, module, is_output=id(module) in outputs) for name, module in layers.items()]
    return [replace(one, reason=None) if prune_frozen and one.reason == FROZEN else one for one in found]


def _describe_layer(name: str, module: nn.Module, *, is_output: bool) -> Candidate:
    weight: nn.Parameter | None
    reason: str | None = None
    try:
        weight = get_parameter(module)
        if not weight.requires_grad:
            reason = FROZEN
    except LayerError as error:
        weight = next(iter(get_matrices(module)), None)
        reason = str(error)
    return Candidate(
        name=name,
        module=module,
        types=get_type_names(module) or (type(module).__name__,),
        shape=() if weight is None else tuple(weight.shape),
        weight_id=id(module) if weight is None else id(weight),
        is_output=is_output,
        reason=reason,
    )


def _output_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> set[int]:
    """Identities of the language-model heads and classifiers, as far as names and order tell."""
    declared = getattr(model, "get_output_embeddings", lambda: None)()
    if declared is not None:
        return {id(declared)}
    fitting = [name for name, module in layers.items() if get_type_names(module)]
    if not fitting:
        return set()
    heads = _named_heads(model, fitting)
    if not heads and not _is_repeated(model, fitting[-1]):
        heads = [fitting[-1]]
    return {id(layers[name]) for name in heads}


def _named_heads(model: nn.Module, layers: Collection[str]) -> list[str]:
    """The last layer of each part of the model that is named as heads are.

    Only parts of the model itself, or of what it wraps, count: inside blocks such names mean something else, as in
    ``attention.score``.
    """
    levels = zip(*(name.split(".")[:-1] for name in layers), strict=False)
    depth = len(list(takewhile(lambda parts: len(set(parts)) == 1, levels)))
    last: dict[str, str] = {}
    for name in layers:
        path = name.split(".")
        if path[depth] in OUTPUT_NAMES:
            is_list = isinstance(model.get_submodule(".".join(path[: depth + 1])), nn.ModuleList)
            last[".".join(path[: depth + 1 + is_list])] = name
    return list(last.values())


def _is_repeated(model: nn.Module, name: str) -> bool:
    """Whether a layer sits in a stack of blocks, as the last layer of an encoder without a head does."""
    parents = name.split(".")[:-1]
    return any(
        isinstance(model.get_submodule(".".join(parents[:depth])), nn.ModuleList)
        for depth in range(1, len(parents) + 1)
    )
