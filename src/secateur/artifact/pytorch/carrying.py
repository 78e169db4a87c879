"""Write a pruned model over the checkpoint that it was loaded from, without changing anything else."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

import torch

from secateur.artifact.dtypes import Bits
from secateur.artifact.pytorch.tensors import read_bits, to_torch
from secateur.artifact.reader import RawTensor
from secateur.artifact.source import Source, SourceTensor

__all__ = ["carry_over", "is_slimmed"]


def carry_over(model: Source, checkpoint: Source, prefix: str) -> Source | None:
    """Replace the tensors of a checkpoint that pruning changed, and carry over all others bit for bit.

    Tensors that the model does not know, such as extra heads, and files of the checkpoint are kept.

    Args:
        model: The pruned model.
        checkpoint: The checkpoint that it was loaded from.
        prefix: The prefix of the base model's tensors, which a checkpoint may have or lack.

    Returns:
        The result; ``None`` if a weight that can be pruned is not in the checkpoint under a known name.
    """
    names = _match_names(model, checkpoint.tensors, prefix)
    if any(tensor.layer is not None and name not in names for name, tensor in model.tensors.items()):
        return None
    changed = {names[name]: tensor for name, tensor in model.tensors.items() if name in names}
    tensors = {
        name: _carry_tensor(tensor, changed[name]) if name in changed else _keep_tensor(tensor)
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(
        checkpoint, tensors=tensors, model=model.model, converted=model.converted, claims=model.claims, configs=()
    )


def is_slimmed(model: Source, checkpoint: Source, prefix: str) -> bool:
    """Whether a model has fewer layers than a checkpoint, or a tensor fewer elements; see `carry_over`."""
    if model.is_slimmed or _lacks_blocks(model.tensors, checkpoint.tensors, prefix):
        return True
    pairs = (
        (tensor.shape, checkpoint.tensors[key].shape)
        for name, tensor in model.tensors.items()
        for key in _list_forms(name, prefix)
        if key in checkpoint.tensors
    )
    return any(math.prod(shape) < math.prod(before) for shape, before in pairs)


def _lacks_blocks(model: Collection[str], checkpoint: Collection[str], prefix: str) -> bool:
    """Whether a checkpoint has tensors that a model only has with other numbers in their names, such as of layers."""
    known = {form for name in model for form in _list_forms(name, prefix)}
    kinds = {re.sub(r"\d+", "#", name) for name in known}
    return any(
        name not in known and "#" in (kind := re.sub(r"\d+", "#", name)) and kind in kinds for name in checkpoint
    )


def _list_forms(name: str, prefix: str) -> tuple[str, ...]:
    """List the names that a tensor may have in a checkpoint."""
    return name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")


def _match_names(model: Source, checkpoint: Mapping[str, SourceTensor], prefix: str) -> dict[str, str]:
    """Map the tensors of a model to those of the checkpoint."""
    known: dict[str, list[str]] = {name: [name] for name in model.tensors}
    for alias, name in model.aliases.items():
        known[name].append(alias)
    matched = {}
    for name, names in known.items():
        candidates = [form for key in names for form in _list_forms(key, prefix)]
        fitting = (
            key for key in candidates if key in checkpoint and checkpoint[key].shape == model.tensors[name].shape
        )
        if (found := next(fitting, None)) is not None:
            matched[name] = found
    return matched


def _keep_tensor(tensor: SourceTensor) -> SourceTensor:
    """Keep a tensor that the model does not know; it is not a layer."""
    return replace(tensor, layer=None, is_prunable=False)


def _carry_tensor(stored: SourceTensor, pruned: SourceTensor) -> SourceTensor:
    return replace(pruned, dtype=stored.dtype, read=partial(_read_changes, stored, pruned))


def _read_changes(stored: SourceTensor, pruned: SourceTensor) -> Bits:
    """Read a stored tensor, with the numbers that pruning changed, in the data type in which it is stored."""
    bits = stored.read()
    before = to_torch(RawTensor(stored.dtype, bits))
    after = to_torch(RawTensor(pruned.dtype, pruned.read()))
    loaded = before.to(after.dtype)  # the model may have been loaded in another data type
    is_same = (loaded == after) & ((after != 0) | (before == 0))
    is_same |= loaded.isnan() & after.isnan()
    return bits if bool(is_same.all()) else read_bits(torch.where(is_same, before, after.to(before.dtype)))
