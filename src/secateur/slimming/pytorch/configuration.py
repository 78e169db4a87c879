"""Update the configurations of transformers models, so that ``from_pretrained`` builds the slimmed model.

Which fields describe a width is not guessed: candidates are fields with its old value, and a model that is built from
the changed configuration, without memory, must have the shapes and attributes of the slimmed model.
"""

from __future__ import annotations

import copy
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import combinations, islice, product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._huggingface.pytorch import build_empty_model, is_pretrained
from secateur._model_limits import LIMITS_WITHOUT_WEIGHTS
from secateur._resizing.pytorch import CONFIG, clear_sizes, list_branches, read_sizes
from secateur.graph import Group
from secateur.slimming.removal import Flags, Removal

__all__ = ["list_configs", "update_configs"]

Fields = dict[str, int]

FIRST_BUILDS, MAX_PASSES = 8, 2
"""Number of combinations of fields to try first, and maximum passes that then improve one width at a time."""

WIDTH = re.compile(r"size|dim|width|ffn|inner|embd|d_ff|d_model|hidden|channels|rank")
OTHER_SIZE = re.compile(r"vocab|token|position|head|layer|kernel|patch|image|window|chunk|length|groups")
"""Parts of the names of fields that can be widths, and of those that cannot."""

MAX_FIELDS = 3
"""Fields to change for one width: several experts may have the same one."""

HEAD_COUNTS = (
    *("decoder_attention_heads", "encoder_attention_heads", "n_head", "n_heads", "num_attention_heads", "num_heads"),
    *("num_key_value_heads", "num_kv_heads"),
)


def update_configs(model: nn.Module, removal: Removal) -> Fields:
    """Update the configurations of the transformers models in a model where they can describe its new sizes.

    Their recorded sizes are then removed, because the configuration has them.

    Returns:
        The changed fields and their new values, such as ``{"text_config.intermediate_size": 64}``.
    """
    changed: Fields = {}
    done: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if is_pretrained(module) and not (done and name.startswith(done)):
            done = (*done, f"{name}." if name else "")
            fields = None if list_branches(module) else _find_fields(module, name, removal)
            if fields is not None:
                _set_fields(module.config, fields)
                _share_configs(module)
                clear_sizes(module)
                changed |= fields
    return changed


def list_configs(config: Any) -> dict[str, Any]:
    """Return a configuration and those inside it, each by the beginning of the names of its fields."""
    inner = {f"{name}.": value for name, value in vars(config).items() if hasattr(value, "model_type")}
    return {"": config, **{key: value for key, value in inner.items() if not isinstance(value, type)}}


def _share_configs(model: Any) -> None:
    """Replace copies of a configuration, which modules have while their sizes are not in it."""
    sizes = read_sizes(model)
    originals = {type(config): config for config in list_configs(model.config).values()}
    for name, module in model.named_modules():
        if any(key.startswith(CONFIG) for key in sizes.get(name, ())):
            module.config = originals.get(type(module.config), module.config)


def _find_fields(model: nn.Module, name: str, removal: Removal) -> Fields | None:
    """Return the fields that describe the slimmed model; ``None``: none do."""
    prefix = f"{name}." if name else ""
    groups = [
        (removal.graph.groups[number], removal.keep[number])
        for number in removal.groups
        if removal.graph.groups[number].members[0].parameter.startswith(prefix)
    ]
    widths = _collect_widths(groups)
    if not groups or widths is None:
        return None
    options = [_list_all_options(model.config, *width) for width in widths]
    for choice in islice(product(*options), FIRST_BUILDS):
        if _count_mismatches(model, merged := _merge(choice)) == 0:
            return merged
    return _descend(model, options)


def _descend(model: nn.Module, options: Sequence[Sequence[Fields]]) -> Fields | None:
    """Choose the best option for one width after the other."""
    choice: list[Fields] = [{} for _ in options]
    fewest = _count_mismatches(model, {})
    for _ in range(MAX_PASSES):
        for position, candidates in enumerate(options):
            for candidate in candidates:
                changed = [*choice[:position], candidate, *choice[position + 1 :]]
                mismatches = _count_mismatches(model, _merge(changed))
                if mismatches < fewest:
                    choice, fewest = changed, mismatches
                if fewest == 0:
                    return _merge(choice)
    return None


def _merge(choice: Sequence[Fields]) -> Fields:
    return {name: value for option in choice for name, value in option.items()}


def _collect_widths(groups: Sequence[tuple[Group, Flags]]) -> list[tuple[str, int, int]] | None:
    """Return the kinds of groups with their old and new widths; ``None``: layers of a kind have different ones."""
    found: dict[tuple[str, str, int], set[tuple[int, int]]] = {}
    for group, keep in groups:
        kept = int(keep.sum())
        for member in group.members if group.kind != "heads" else group.members[:1]:
            name = re.sub(r"\d+", "#", member.parameter)
            before = member.shape[member.axis]
            pair = (before, before - (group.units - kept) * member.index_map.width)
            found.setdefault((group.kind, name, member.axis), set()).add(
                pair if group.kind != "heads" else (group.units, kept)
            )
    if any(len(pairs) > 1 for pairs in found.values()):
        return None
    return list(dict.fromkeys((kind, *pair) for (kind, *_), pairs in found.items() for pair in pairs))


def _list_all_options(config: Any, kind: str, before: int, after: int) -> list[Fields]:
    """List sets of fields, of a configuration and those inside it, that may describe a width; the last one is empty."""
    options: list[Fields] = []
    for place, part in list_configs(config).items():
        for option in _list_options(part, kind, before, after):
            fields = {f"{place}{field}": value for field, value in option.items()}
            if fields and fields not in options:
                options.append(fields)
    return [*options, {}]


def _list_options(config: Any, kind: str, before: int, after: int) -> Iterator[Fields]:
    """Yield sets of fields that may describe a width."""
    numbers = {name: value for name, value in vars(config).items() if isinstance(value, int)}
    if kind == "heads":
        counts = {name: numbers[name] for name in HEAD_COUNTS if _is_multiple(numbers.get(name), before)}
        fields = {name: value // before * after for name, value in counts.items()}
        yield fields
        if "num_attention_heads" in counts and "hidden_size" in numbers:  # the size of a head does not change
            yield fields | {"head_dim": numbers["hidden_size"] // counts["num_attention_heads"]}
        yield from ({name: value} for name, value in fields.items())
        return
    widths = [name for name in numbers if WIDTH.search(name) and not OTHER_SIZE.search(name)]
    names = [name for name in widths if numbers[name] == before]
    for size in range(1, min(len(names), MAX_FIELDS) + 1):
        yield from (dict.fromkeys(chosen, after) for chosen in combinations(names, size))
    if vars(config).get("n_inner", before) is None:  # four times the width of the model
        yield {"n_inner": after}


def _is_multiple(value: Any, units: int) -> bool:
    return isinstance(value, int) and value >= units and value % units == 0


def _set_fields(config: Any, fields: Mapping[str, int]) -> None:
    configs = list_configs(config)
    for name, value in fields.items():
        place, dot, field = name.rpartition(".")
        setattr(configs[place + dot], field, value)


def _count_mismatches(model: Any, fields: Fields) -> float:
    """Count the shapes and numbers that a model has if it is built from the configuration with other fields, not here.

    Returns:
        The count; infinite if there is no such model.
    """
    config = copy.deepcopy(model.config)
    try:
        _set_fields(config, fields)
        with torch.device("meta"), redirect_stderr(io.StringIO()):
            built = build_empty_model(type(model), config, LIMITS_WITHOUT_WEIGHTS, Path())
    except Exception:  # noqa: BLE001 - transformers raises many kinds of exceptions for impossible configurations
        return math.inf
    return len(_list_shapes(built) ^ _list_shapes(model)) + len(_list_numbers(built) ^ _list_numbers(model))


def _list_shapes(model: nn.Module) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(tensor.shape)) for name, tensor in model.state_dict(keep_vars=True).items()}


def _list_numbers(model: nn.Module) -> set[tuple[str, str, str]]:
    """Return the whole numbers and tuples that are attributes of modules."""
    return {
        (name, key, repr(value))
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        if isinstance(value, int | tuple) and key != "training" and not key.startswith("_")
    }
