"""Update attributes that only describe the size of a module, such as ``intermediate_size``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile

from torch import nn

from secateur.graph import Group
from secateur.slimming.pytorch.code_sizes import HEAD_COUNTS
from secateur.slimming.pytorch.journal import Journal
from secateur.slimming.removal import Flags, Removal

__all__ = ["update_descriptions"]

HEAD_WIDTHS = frozenset({"all_head_size", "inner_dim"})

CHANNEL_WIDTHS = frozenset(
    {"d_ff", "expert_dim", "ffn_dim", "hidden_channels", "hidden_dim", "hidden_features", "inner_dim", "inner_size"}
    | {"intermediate_dim", "intermediate_size", "mid_channels", "mlp_dim"}
)

AMBIGUOUS = frozenset({"hidden_dim", "hidden_features"})
"""Attributes that mean the width of the model in modules that have another name for the hidden width."""

STREAM_WIDTHS = frozenset({"d_model", "dim", "embed_dim", "hidden_size", "n_embd"})
"""Attributes for the width of a residual stream, where removal is not exact because norms compute statistics."""


def update_descriptions(model: nn.Module, removal: Removal, journal: Journal) -> None:
    """Set the attributes of the modules around each group that equal its old numbers of units or channels.

    Attributes that the journal has changed already have their new values.
    """
    changed = {(owner, key) for owner, keys in journal.list_attributes().items() for key in keys}
    for number in removal.groups:
        group, keep = removal.graph.groups[number], removal.keep[number]
        for owner, widths in _find_owners(model, group, keep):
            numbers = {key: value for key, value in owner.__dict__.items() if type(value) is int}
            for attribute in _list_names(group, numbers):
                value, place = numbers[attribute], (id(owner.__dict__), attribute)
                new = _count_heads(value, keep) if attribute in HEAD_COUNTS else widths.get(value)
                if new is not None and new != value and place not in changed:
                    changed.add(place)
                    journal.set_attribute(owner, attribute, new)


def _list_names(group: Group, numbers: Collection[str]) -> list[str]:
    """Return the attributes of a module that can describe a group."""
    names = HEAD_COUNTS | HEAD_WIDTHS if group.kind == "heads" else CHANNEL_WIDTHS
    if any(name in CHANNEL_WIDTHS - AMBIGUOUS for name in numbers):
        names -= AMBIGUOUS
    if group.inexact is not None:
        names |= STREAM_WIDTHS
    return [name for name in numbers if name in names]


def _count_heads(heads: int, keep: Flags) -> int | None:
    """Return the number of remaining heads if each unit is a fixed number of heads; ``None``: they are not heads."""
    return heads // len(keep) * int(keep.sum()) if heads and heads % len(keep) == 0 else None


def _find_owners(model: nn.Module, group: Group, keep: Flags) -> Iterator[tuple[nn.Module, dict[int, int]]]:
    """Yield the modules that contain the layers of a group, each with the old and new lengths of their axes."""
    removed = int((~keep).sum())
    lengths: dict[str, dict[int, int]] = {}
    for member in group.members:
        layer = member.parameter.rpartition(".")[0]
        before = member.shape[member.axis]
        pair = {before: before - removed * member.index_map.width}
        for owner in (layer, layer.rpartition(".")[0]):
            lengths.setdefault(owner, {}).update(pair)
    shared = _find_common_owner([member.parameter for member in group.members])
    lengths.setdefault(shared, {}).update({key: new for pair in [*lengths.values()] for key, new in pair.items()})
    for name, widths in lengths.items():
        yield model.get_submodule(name), widths


def _find_common_owner(parameters: Sequence[str]) -> str:
    """Return the innermost module that contains all parameters."""
    columns = zip(*(name.split(".")[:-1] for name in parameters), strict=False)
    return ".".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
