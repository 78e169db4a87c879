"""The base class of patterns whose units have slices in several layers, which the dependencies of a model define."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, takewhile
from typing import ClassVar

import array_api_compat
import numpy as np
import numpy.typing as npt

from secateur._array import Array, namespace
from secateur._wording import format_list
from secateur.errors import ConfigError
from secateur.frameworks import WeightView
from secateur.graph import Group, Member, Role
from secateur.patterns.base import BasePattern
from secateur.patterns.budget import Budget
from secateur.patterns.rounding import KeepRule, RankedUnits, choose_counts
from secateur.patterns.selection import Cut, Scores, find_cuts
from secateur.patterns.slices import INPUTS, OUTPUTS, CrossTiling, SliceTiling
from secateur.patterns.tiling import BlockTiling, Tiling, Units

__all__ = ["GroupPattern"]


class GroupPattern(BasePattern):
    """Base class of patterns whose units are those of the `groups`, with slices in several layers.

    The scores of a unit's slices are added. A layer can be in several groups, such as one along its output channels and
    one along its input channels. Layers without a prunable group are invalid, with the reason of their groups.
    """

    unusable: list[tuple[Group, str]]
    """The groups that are not pruned, with the reason."""

    group_by_name: dict[str, Group]
    """Name in `units` → the group."""

    needed_roles: ClassVar[Collection[Role]] = (Role.PRODUCER, Role.CONSUMER, Role.PINNED)
    """Roles of the members whose layers must be pruned with the group."""

    def tile(self, view: WeightView) -> Tiling:
        """Return one unit, which `couple` replaces."""
        return BlockTiling(view.canonical_shape, view.canonical_shape)

    def couple(self, tilings: dict[str, Tiling]) -> dict[str, Units]:
        """Return the units of the groups; see `BasePattern.couple`."""
        self.unusable, self.group_by_name = [], {}
        layers = {self.framework.get_parameter_name(name, self.modules[name]): name for name in tilings}
        reasons: dict[str, str] = {}
        units: dict[str, Units] = {}
        for group in self.groups:
            members = list(_find_layers(group, layers))
            parts: dict[str, list[Member]] = {}
            for member, layer in members:
                if layer is not None and member.role is not Role.PER_CHANNEL:
                    parts.setdefault(layer, []).append(member)
            reason = self.explain_unusable(group, [member for member, layer in members if layer is None])
            reason = reason or next(filter(None, (self._explain_misfit(*part) for part in parts.items())), None)
            if reason is not None:
                self.unusable.append((group, reason))
                reasons = dict.fromkeys((layer for _, layer in members if layer is not None), reason) | reasons
            else:
                name = self._name_units(group, list(parts), units)
                self.group_by_name[name] = group
                units[name] = Units({layer: _slice_weight(self.views[layer], own) for layer, own in parts.items()})
                passive = f"it only passes on the {self.coupling} of {name!r}, each with its own weights"
                reasons = dict.fromkeys((layer for _, layer in members if layer is not None), passive) | reasons
        valid = {layer for entry in units.values() for layer in entry.parts}
        for layer in tilings.keys() - valid:
            del self.views[layer]
        self.invalid_layers |= {
            layer: reasons.get(layer, f"no {self.coupling} are known in it") for layer in tilings if layer not in valid
        }
        return units

    def explain_unusable(self, group: Group, missing: Sequence[Member]) -> str | None:
        """Return why a group cannot be pruned; ``None``: it can.

        Args:
            group: The group.
            missing: Its members in parameters that the configuration does not prune.
        """
        if group.obstacle is not None:
            return f"its {self.coupling} cannot be pruned: {group.obstacle}"
        if needed := [member for member in missing if member.role in self.needed_roles]:
            names = format_list(dict.fromkeys(member.parameter for member in needed))
            return f"its {self.coupling} have parts in {names}, which this configuration does not prune"
        if not any(member.role in (Role.PRODUCER, Role.CONSUMER) for member in group.members if member not in missing):
            return f"no weight computes or reads its {self.coupling}"
        if group.inexact is not None and not self.config.allow_inexact:
            return (
                f"removing its {self.coupling} would change outputs: {group.inexact} (allow_inexact=True prunes them)"
            )
        return None

    def cut_globally(
        self, scores: Mapping[str, Scores], total: int, lower: Mapping[str, int], upper: Mapping[str, int]
    ) -> dict[str, Cut]:
        """Cut the rankings of all groups at one score, or at numbers of units that their constraints allow."""
        rules = {name: self.budget.rules[name] for name in scores}
        if all(rule.step == 1 for rule in rules.values()):
            return super().cut_globally(scores, total, lower, upper)
        ranked = {name: RankedUnits(units, rules[name]) for name, units in scores.items()}
        least = {name: max(lower[name], units.pruned) for name, units in ranked.items()}
        bounds = [(low, max(low, upper[name])) for name, low in least.items()]
        counts = choose_counts(list(ranked.values()), total, bounds)
        return find_cuts(scores, dict(zip(ranked, counts, strict=True)))

    def keep_units(self, layer: Scores, cut: Cut) -> Array:
        """See `BasePattern.keep_units`; of units in parts, each part keeps the same number."""
        rule = self.budget.rules[layer.name]
        if rule.parts == 1 or cut.pruned == layer.count_pruned():
            return super().keep_units(layer, cut)
        ranked = RankedUnits(layer, rule)
        sample = next(iter(layer.chunks()))
        keep = ranked.select(max(cut.pruned, ranked.pruned))
        return namespace(sample).asarray(keep, device=array_api_compat.device(sample))

    def _make_budget(self) -> Budget:
        """Add the numbers of units that groups can lose; at least one unit of each is kept."""
        if self.target_sparsity >= 1:
            raise ConfigError(
                f"target_sparsity must be less than 1 for {self.pattern!r}, found {self.target_sparsity}: at least "
                "one unit of each group must be kept. Exclude layers, or remove the module."
            )
        return replace(super()._make_budget(), rules={name: self._make_rule(name) for name in self.units})

    def _make_rule(self, name: str) -> KeepRule:
        constraints = self.group_by_name[name].constraints
        return KeepRule(
            units=self.units[name].count,
            step=math.lcm(constraints.step, self.config.granularity),
            minimum=max(1, constraints.minimum),
            parts=constraints.equal_parts,
        )

    def _explain_misfit(self, layer: str, members: Sequence[Member]) -> str | None:
        view = self.views[layer]
        known = {*view.output_axes, *view.input_axes}
        if shapes := [member.shape for member in members if member.shape != view.shape]:
            return f"the weight of {layer!r} has shape {view.shape}, but {shapes[0]} in the graph"
        if wrong := [member.axis for member in members if member.axis not in known]:
            return f"its {self.coupling} are along axis {wrong[0]} of the weight of {layer!r}, which is not supported"
        return None

    def _name_units(self, group: Group, layers: Sequence[str], taken: Mapping[str, Units]) -> str:
        """Return a unique name: that of the group, of the module that contains its layers, or of its first layer.

        It is not the name of a layer, because a layer can be in other groups as well.
        """
        parts = zip(*(name.split(".") for name in layers), strict=False)
        common = ".".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, parts))
        names = [name for name in (group.name, common) if name and name not in taken] or [layers[0]]
        base = f"{names[0]}.{self.coupling}".lstrip(".") if names[0] in self.views else names[0]
        return base if base not in taken else next(name for name in _number(base) if name not in taken)


def _number(name: str) -> Iterator[str]:
    return (f"{name} {number}" for number in count(2))


def _find_layers(group: Group, layers: Mapping[str, str]) -> Iterator[tuple[Member, str | None]]:
    """Yield the members of a group, and the layer of each; ``None``: its parameter is not the weight of a layer."""
    for member in group.members:
        yield member, next((layers[name] for name in (member.parameter, *member.aliases) if name in layers), None)


def _slice_weight(view: WeightView, members: Sequence[Member]) -> Tiling:
    """Join the slices of a weight."""
    slices = {place: _join_slices(view, place, members) for place in (OUTPUTS, INPUTS)}
    outputs, inputs = (
        None if channels is None else SliceTiling(view.canonical_shape, place, channels)
        for place, channels in slices.items()
    )
    tiling = CrossTiling(outputs, inputs) if outputs is not None and inputs is not None else outputs or inputs
    assert tiling is not None
    return tiling


def _join_slices(view: WeightView, place: int, members: Sequence[Member]) -> npt.NDArray[np.int64] | None:
    """Return the channels of each unit, of shape (units, channels); ``None``: no member is along their axes."""
    axes = view.output_axes if place == OUTPUTS else view.input_axes
    sizes = [view.shape[axis] for axis in axes]
    channels = np.arange(math.prod(sizes)).reshape(sizes)
    found = []
    for member in members:
        if member.axis in axes:
            by_index = np.moveaxis(channels, axes.index(member.axis), 0)
            found.append(by_index[member.index_map.indices()].reshape(member.index_map.units, -1))
    return np.concatenate(found, axis=1) if found else None
