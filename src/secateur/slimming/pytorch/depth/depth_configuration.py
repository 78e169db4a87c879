"""Find the fields of the configuration of a transformers model that describe its number of blocks.

Which fields these are is not guessed: candidates are fields with the old number, and a model that is built from the
changed configuration, without memory, must have the modules and attributes of the model without the blocks.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import redirect_stderr
from itertools import combinations
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

from secateur._huggingface.pytorch import build_empty_model
from secateur._model_limits import LIMITS_WITHOUT_WEIGHTS
from secateur._resizing.pytorch import list_branches
from secateur.slimming.pytorch.configuration import list_configs

__all__ = ["DepthFields", "find_depth_fields", "list_differences", "set_fields"]

DepthFields = dict[str, Any]

COUNT = re.compile(r"layer|block|depth")
"""Part of the names of fields that can be a number of blocks."""

USUAL_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
"""Fields to try first."""

MAX_COUNTS = 2
"""Fields to change together."""


def find_depth_fields(
    model: Any, before: int, positions: Collection[int], known: Collection[tuple[str, str]]
) -> DepthFields | None:
    """Return the fields that describe a model after some blocks were removed; ``None``: none do.

    Args:
        model: A transformers model.
        before: Number of modules that the list had.
        positions: Which of them were removed.
        known: Differences that the model already had, as `list_differences` returns them.
    """
    for fields in _list_options(model.config, before, positions):
        differences = list_differences(model, fields)
        if differences is not None and differences <= {*known}:
            return fields
    return None


def list_differences(model: Any, fields: Mapping[str, Any]) -> set[tuple[str, str]] | None:
    """Compare a model with one that is built from its configuration with other fields.

    Modules inside removed branches and shapes are not compared.

    Returns:
        Names of modules, without numbers, and of their attributes that differ; ``None``: there is no such model.
    """
    config = copy.deepcopy(model.config)
    set_fields(config, fields)
    try:
        with torch.device("meta"), redirect_stderr(io.StringIO()):
            built = build_empty_model(type(model), config, LIMITS_WITHOUT_WEIGHTS, Path())
    except Exception:  # noqa: BLE001 - transformers raises many kinds of exceptions for impossible configurations
        return None
    removed = tuple(list_branches(model))
    expected, actual = _list_attributes(built, removed), _list_attributes(model, removed)
    return {(re.sub(r"\d+", "#", name), key) for name, key, _ in expected ^ actual}


def set_fields(config: Any, fields: Mapping[str, Any]) -> None:
    """Set fields of a configuration, or of those inside it."""
    for name, value in fields.items():
        place, dot, field = name.rpartition(".")
        vars(list_configs(config)[place + dot])[field] = value


def _list_options(config: Any, before: int, positions: Collection[int]) -> Iterator[DepthFields]:
    """Yield sets of fields that may describe the number of blocks and their kinds."""
    left = [position for position in range(before) if position not in positions]
    for place, part in list_configs(config).items():
        lists = {
            f"{place}{name}": type(value)(value[position] for position in left)
            for name, value in vars(part).items()
            if isinstance(value, list | tuple) and len(value) == before and COUNT.search(name)
        }
        counts = [name for name, value in vars(part).items() if type(value) is int and value == before]
        counts = [name for name in counts if COUNT.search(name)]
        counts.sort(key=lambda name: USUAL_COUNTS.index(name) if name in USUAL_COUNTS else len(USUAL_COUNTS))
        yield from _list_stages(place, part, before, len(left))
        for size in range(1, MAX_COUNTS + 1):
            for names in combinations(counts, size):
                fields = {f"{place}{name}": len(left) for name in names}
                yield fields | lists
                if lists:
                    yield fields


def _list_stages(place: str, config: Any, before: int, after: int) -> Iterator[DepthFields]:
    """Yield lists with the number of blocks of each stage, one of which changes."""
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and COUNT.search(name):
            for stage in (stage for stage, count in enumerate(value) if count == before):
                yield {f"{place}{name}": type(value)((*value[:stage], after, *value[stage + 1 :]))}


def _list_attributes(model: nn.Module, removed: tuple[str, ...]) -> set[tuple[str, str, str]]:
    """Return the attributes of the modules, and the type of each, except for removed modules."""
    inside = tuple(f"{name}." for name in removed)
    return {
        (name, key, repr(value))
        for name, module in model.named_modules()
        if name not in removed and not name.startswith(inside)
        for key, value in (("", type(module).__qualname__), *module.__dict__.items())
        if isinstance(value, int | float | str | tuple | NoneType) and key != "training" and not key.startswith("_")
    }
