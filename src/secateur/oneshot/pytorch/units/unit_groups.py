"""The groups of units to prune, the layers that read them, and the problems that solvers get.

Legend: U units, G groups of a grouped convolution, R rows (output channels) of each, F its input features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from secateur._wording import format_list
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.frameworks.pytorch import OwnedWeight
from secateur.masking.pytorch import ParameterWeight
from secateur.oneshot.pytorch.calibration.input_features import explain_unsupported
from secateur.patterns import BasePattern
from secateur.patterns.coupled import GroupPattern
from secateur.patterns.rounding import KeepRule
from secateur.patterns.slices import CrossTiling, SliceTiling
from secateur.patterns.tiling import Tiling
from secateur.planning.planner import Plan

__all__ = ["Reader", "UnitGroup", "UnitMasks", "build_groups", "refuse_mixed_patterns"]

INPUTS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """A layer that reads the units of a group.

    Attributes:
        name: The layer's name in the model.
        module: The layer.
        pattern: The pattern of the plan that prunes it.
        unit_of: The unit of each input feature, int64, of shape (F,); -1: none. It is the same in all groups of a
            grouped convolution.
        blind: Why its inputs cannot be measured, or its weights not be repaired; ``None``: they can.
    """

    name: str
    module: nn.Module
    pattern: GroupPattern
    unit_of: torch.Tensor
    blind: str | None

    @property
    def weight(self) -> ParameterWeight:
        """The current weight."""
        return ParameterWeight(self.name, self.pattern)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias; ``None``: the layer has none, or cannot be repaired."""
        name = "in_proj_bias" if isinstance(self.module, nn.MultiheadAttention) else "bias"
        bias = getattr(self.module, name, None)
        return bias if isinstance(bias, nn.Parameter) and self.blind is None else None

    def read_matrix(self) -> torch.Tensor:
        """Return the weight in float32, of shape (G, R, F)."""
        view = self.pattern.views[self.name]
        return self.weight.canonical().float().reshape(view.groups, view.canonical_shape[0] // view.groups, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitGroup:
    """Units that are removed together.

    Attributes:
        name: Name of the group, as in the pattern's `units`.
        pattern: The pattern of the plan that prunes it.
        readers: The layers that read the units, in the order in which they run.
    """

    name: str
    pattern: GroupPattern
    readers: Sequence[Reader]

    @property
    def layers(self) -> list[str]:
        """The layers with slices of the units."""
        return list(self.pattern.units[self.name].parts)

    @property
    def rule(self) -> KeepRule:
        """Which numbers of units the group can lose."""
        return self.pattern.budget.rules[self.name]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that change if units are removed."""
        weights = [ParameterWeight(layer, self.pattern).parameter for layer in self.layers]
        return [*weights, *(reader.bias for reader in self.readers if reader.bias is not None)]


class UnitMasks:
    """The units that are left, in all groups of a model.

    Args:
        groups: The groups.

    Attributes:
        keep: Name of a group → booleans of shape (U,) on the CPU, ``False`` where a unit was removed.
    """

    def __init__(self, groups: Sequence[UnitGroup]) -> None:
        self.keep = {group.name: torch.ones(group.rule.units, dtype=torch.bool) for group in groups}

    def remove(self, removed: Mapping[str, Sequence[int]]) -> None:
        """Remove units, given by their numbers."""
        for name, units in removed.items():
            self.keep[name][list(units)] = False

    def mask_weight(self, pattern: GroupPattern, layer: str) -> torch.Tensor:
        """Return the mask of a layer's weight, in its stored shape, on the CPU: all of its groups keep a weight."""
        mask = torch.ones(pattern.views[layer].canonical_shape, dtype=torch.bool)
        for name, tiling in _list_parts(pattern, layer):
            mask &= tiling.expand(self.keep[name])
        stored: torch.Tensor = pattern.views[layer].to_stored(mask)
        return stored

    def find_features(self, reader: Reader) -> torch.Tensor:
        """Return which input features of a layer no group has removed, as numbers, of shape (F,) or shorter."""
        _, positions, inputs = reader.pattern.views[reader.name].canonical_shape
        alive = torch.ones(inputs, dtype=torch.bool)
        for name, tiling in _list_parts(reader.pattern, reader.name):
            if (channels := _get_inputs(tiling)) is not None:
                alive[torch.from_numpy(channels.indices)[~self.keep[name]].reshape(-1)] = False
        return alive.repeat(positions).nonzero()[:, 0]


def build_groups(model: nn.Module, plan: Plan) -> list[UnitGroup]:
    """Build the groups that a plan prunes, all of whose patterns are of units in several layers.

    Raises:
        ConfigError: The settings of a pattern do not work with solvers.
        UnsupportedModelError: Two groups have the same name.
    """
    groups: dict[str, UnitGroup] = {}
    owners = _count_owners(model)
    for pattern in plan.patterns:
        if not pattern.views:
            continue
        assert isinstance(pattern, GroupPattern)
        _refuse_settings(pattern)
        for name in pattern.units:
            if name in groups:
                raise UnsupportedModelError(
                    f"Two groups are named {name!r}. Prune them with one pattern, or exclude the layers of one."
                )
            groups[name] = UnitGroup(name=name, pattern=pattern, readers=list(_find_readers(name, pattern, owners)))
    return list(groups.values())


def refuse_mixed_patterns(plan: Plan) -> None:
    """Raise `ConfigError` if only some patterns of a plan are of units in several layers."""
    specifications = {pattern.pattern: isinstance(pattern, GroupPattern) for pattern in plan.patterns if pattern.views}
    single = [name for name, is_coupled in specifications.items() if not is_coupled]
    if single:
        coupled = [name for name, is_coupled in specifications.items() if is_coupled]
        raise ConfigError(
            f"With calibration data, patterns of units in several layers, here {format_list(map(repr, coupled))}, "
            f"cannot be mixed with others, here {format_list(map(repr, single))}. Prune in two calls."
        )


def _refuse_settings(pattern: BasePattern) -> None:
    if pattern.config.keep_zeros:
        raise ConfigError(
            "solvers do not support keep_zeros=True, because they select from all units. Leave it out, or prune "
            "without calibration data."
        )


def _find_readers(name: str, pattern: GroupPattern, owners: Mapping[int, list[str]]) -> Iterator[Reader]:
    for layer, tiling in pattern.units[name].parts.items():
        if (channels := _get_inputs(tiling)) is None:
            continue
        module, view = pattern.modules[layer], pattern.views[layer]
        _, positions, inputs = view.canonical_shape
        unit_of = np.full(inputs, -1)
        unit_of[channels.indices] = np.arange(len(channels.indices))[:, None]
        weight = ParameterWeight(layer, pattern).parameter
        yield Reader(
            name=layer,
            module=module,
            pattern=pattern,
            unit_of=torch.from_numpy(np.tile(unit_of, positions)),
            blind=_explain_blind(module, owners.get(id(weight), [])),
        )


def _explain_blind(module: nn.Module | OwnedWeight, names: Sequence[str]) -> str | None:
    if isinstance(module, OwnedWeight):
        return "it stacks several matrices"
    if len(names) > 1:
        return f"{names[0]} and {names[1]} are one parameter"
    if (reason := explain_unsupported(module)) is not None:
        return reason.rstrip(".").replace("Its", "its", 1).replace("It ", "it ", 1)
    return None


def _count_owners(model: nn.Module) -> dict[int, list[str]]:
    """Return the identity of each parameter → its names."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _list_parts(pattern: GroupPattern, layer: str) -> Iterator[tuple[str, Tiling]]:
    """Yield the groups with slices in a layer, and the tiling of its weight into their units."""
    return ((name, units.parts[layer]) for name, units in pattern.units.items() if layer in units.parts)


def _get_inputs(tiling: Tiling) -> SliceTiling | None:
    """Return the tiling of the input channels; ``None``: units have none."""
    if isinstance(tiling, CrossTiling):
        tiling = tiling.inputs
    return tiling if isinstance(tiling, SliceTiling) and tiling.axis == INPUTS else None
