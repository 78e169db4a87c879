"""Whole attention heads, and other units with slices in several layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import ClassVar

import numpy as np

from secateur._wording import format_list
from secateur.errors import LayerError
from secateur.frameworks import WeightView
from secateur.graph import Group, Member, Role
from secateur.patterns.base import BasePattern, register_pattern
from secateur.patterns.slices import INPUTS, OUTPUTS, SliceTiling
from secateur.patterns.tiling import BlockTiling, Tiling, Units

__all__ = ["GroupPattern", "HeadsPattern"]


class GroupPattern(BasePattern):
    """Base class of patterns whose units are those of the `groups`, with slices in several layers.

    The scores of a unit's slices are added. A layer without a group, and the layers of a group of which others are not
    selected, are invalid.
    """

    def tile(self, view: WeightView) -> Tiling:
        """Return one unit, which `couple` replaces."""
        return BlockTiling(view.canonical_shape, view.canonical_shape)

    def couple(self, tilings: dict[str, Tiling]) -> dict[str, Units]:
        """Return the units of the groups; see `BasePattern.couple`."""
        layers = {self.framework.get_parameter_name(name, self.modules[name]): name for name in tilings}
        reasons = dict.fromkeys(tilings, f"no {self.coupling} are known in it")
        units: dict[str, Units] = {}
        for group in self.groups:
            members = [member for member in group.members if member.role is not Role.PER_CHANNEL]
            owners = {layers[name]: None for member in members if (name := _find_name(member, layers)) is not None}
            reason = self._explain_unusable(group, [member for member in members if not _find_name(member, layers)])
            if reason is None:
                parts = {name: self._slice_weight(name, members, layers) for name in owners}
                units[_name_units(list(parts), units)] = Units(parts)
            for name in owners:
                if reason is None:
                    reasons.pop(name, None)
                elif name in reasons:
                    reasons[name] = reason
        for name, reason in reasons.items():
            self.invalid_layers[name] = reason
            del self.views[name]
        return units

    def _explain_unusable(self, group: Group, missing: Sequence[Member]) -> str | None:
        if missing:
            names = format_list(member.parameter for member in missing)
            return f"its {self.coupling} have parts in {names}, which this configuration does not prune"
        return None if group.obstacle is None else f"its {self.coupling} cannot be pruned: {group.obstacle}"

    def _slice_weight(self, layer: str, members: Sequence[Member], layers: dict[str, str]) -> SliceTiling:
        """Join the slices of a layer's weight, along its outputs or its inputs."""
        view = self.views[layer]
        own = [member for member in members if layers.get(_find_name(member, layers) or "") == layer]
        axes = {member.axis % len(view.shape) for member in own}
        places = {(axis,): place for axis in axes for place in (OUTPUTS, INPUTS) if _get_axes(view, place) == (axis,)}
        if len(axes) != 1 or not places or view.groups > 1:
            raise LayerError(
                f"layer {layer!r}: units along axes {sorted(axes)} of a weight {view.shape} are not supported"
            )
        indices = np.concatenate([member.index_map.indices() for member in own], axis=1)
        return SliceTiling(view.canonical_shape, next(iter(places.values())), indices)


@register_pattern("heads")
class HeadsPattern(GroupPattern):
    """Whole attention heads: their rows of the query, key and value projections, and their columns of the output.

    If query heads share keys and values (GQA, MQA), a unit is a key/value head with all its query heads. Heads are
    known for attention of torch models with separate projections, as in BERT and LLaMA, and for
    ``MultiheadAttention``.

    Source:
        Michel et al., "Are Sixteen Heads Really Better than One?", arXiv:1905.10650.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.TransformerEncoderLayer(d_model=16, nhead=4, dim_feedforward=32)
        >>> report = secateur.prune(model, {"pattern": "heads", "target_sparsity": 0.25})
        >>> (model.self_attn.out_proj.weight == 0).all(dim=0).sum()
        tensor(4)
    """

    coupling: ClassVar[str | None] = "heads"


def _find_name(member: Member, layers: dict[str, str]) -> str | None:
    return next((name for name in (member.parameter, *member.aliases) if name in layers), None)


def _get_axes(view: WeightView, place: int) -> tuple[int, ...]:
    return view.output_axes if place == OUTPUTS else view.input_axes


def _name_units(layers: Sequence[str], taken: dict[str, Units]) -> str:
    """Return the name of the module that contains all layers, or of the first layer if that is none or taken."""
    parts = zip(*(name.split(".") for name in layers), strict=False)
    common = ".".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, parts))
    return common if common and common not in taken else layers[0]
