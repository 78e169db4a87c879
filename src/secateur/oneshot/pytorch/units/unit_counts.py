"""Choose how many units each group loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur._wording import format_list
from secateur.allocations import Allocation
from secateur.allocations.global_ranking import Global
from secateur.allocations.uniform import Uniform
from secateur.errors import ConfigError
from secateur.oneshot.pytorch.units.unit_groups import UnitGroup
from secateur.patterns.coupled import GroupPattern
from secateur.patterns.rounding import KeepRule, choose_counts
from secateur.solvers.unit_problem import RemovalPath

__all__ = ["check_counts", "count_globally", "count_uniformly", "refuse_allocation"]


@dataclass(frozen=True)
class RankedPath:
    """A group with its losses.

    Attributes:
        path: The order in which units are removed, and the losses.
        rule: Which numbers of units the group can lose.
    """

    path: RemovalPath
    rule: KeepRule

    def score_block(self, start: int, stop: int) -> float:
        """Return the mean increase of the loss per unit from `start` to `stop`."""
        return float(self.path.losses[stop] - self.path.losses[start]) / (stop - start)


def refuse_allocation(allocation: Allocation) -> None:
    """Raise `ConfigError` for an allocation that does not support groups of units."""
    if not isinstance(allocation, (Uniform, Global)):
        raise ConfigError(
            f"allocation must be 'uniform' or 'global' for patterns of units in several layers, such as 'channels', "
            f"found {type(allocation).__name__}."
        )


def count_uniformly(groups: Sequence[UnitGroup]) -> dict[str, int]:
    """Return group → number of units to remove, so that every group loses the target of its pattern."""
    counts = {}
    for group in groups:
        budget, target = group.pattern.budget, group.pattern.target_sparsity
        counts[group.name] = max(budget.count_locally(group.name, target), budget.lower_bounds(target)[group.name])
    return counts


def count_globally(groups: Sequence[UnitGroup], paths: Mapping[str, RemovalPath]) -> dict[str, int]:
    """Return group → number of units to remove: those that increase the loss least, over all groups of a pattern."""
    counts: dict[str, int] = {}
    patterns: list[GroupPattern] = list({id(group.pattern): group.pattern for group in groups}.values())
    for pattern in patterns:
        budget, target = pattern.budget, pattern.target_sparsity
        lower, upper = budget.lower_bounds(target), budget.upper_bounds()
        total = min(max(budget.count_total(target), sum(lower.values())), sum(upper.values()))
        ranked = {name: RankedPath(paths[name], budget.rules[name]) for name in pattern.units}
        bounds = [(lower[name], max(lower[name], upper[name])) for name in ranked]
        counts |= dict(zip(ranked, choose_counts(list(ranked.values()), total, bounds), strict=True))
    return counts


def check_counts(groups: Sequence[UnitGroup], counts: Mapping[str, int]) -> dict[str, int]:
    """Return group → number of units to remove, 0 for groups without a count.

    Raises:
        ConfigError: A group is unknown, or cannot lose so many units. Each can lose all of them.
    """
    rules = {group.name: group.rule for group in groups}
    if unknown := counts.keys() - rules.keys():
        raise ConfigError(
            f"counts must be of the groups {format_list(map(repr, rules))}, found {format_list(map(repr, unknown))}."
        )
    for name, count in counts.items():
        rule = rules[name]
        if count != rule.units and (count < 0 or rule.round_nearest(count) != count):
            raise ConfigError(
                f"group {name!r}: it has {rule.units} units and cannot lose {count} of them. The nearest number that "
                f"it can lose is {rule.round_nearest(max(count, 0))}."
            )
    return {name: int(counts.get(name, 0)) for name in rules}
