"""The plan of a run: how each layer of a model will be pruned, or why it stays dense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from secateur._table import Table
from secateur._wording import format_count, format_reasons
from secateur.config import ConfigLike, PruningConfig, make_config
from secateur.errors import LayerError
from secateur.frameworks import get_framework
from secateur.graph import Group
from secateur.patterns import BasePattern, get_pattern
from secateur.patterns.base import get_pattern_class
from secateur.planning.groups import PlannedGroup, describe_groups
from secateur.planning.layer_selection import raise_if_named, select_layers
from secateur.planning.layer_units import LayerUnits, describe_units
from secateur.planning.layers import Candidate, LayerDecision, PlannedLayer
from secateur.planning.zeros import find_free_layers
from secateur.results import FORMAT_VERSION, Summarizable, Summary, describe_config

__all__ = ["Plan", "make_plan"]

COLUMNS = ("layer", "type", ">shape", "pattern", ">units", ">target", ">range", "ranked / reason")
FROZEN_ADVICE = "To train frozen layers, unfreeze them. secateur.prune prunes frozen layers too, without training."
TARGET, RANGE = COLUMNS.index(">target"), COLUMNS.index(">range")


@dataclass(frozen=True, repr=False)
class Plan(Summarizable):
    """How a configuration prunes the layers of a model.

    Attributes:
        config: The configuration.
        layers: Every layer whose weight has at least two axes, in the order of the model.
        patterns: The patterns of the pruned layers; layers with equal settings share a pattern.
        groups: The groups of units with slices in several layers, including those that are not pruned, with the reason.
        barriers: Operations without a rule; units that reach them are not pruned.

    Examples:
        >>> import torch, secateur
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> plan = secateur.plan(model, secateur.PruningConfig(pattern="4x1"))
        >>> [(layer.name, layer.is_pruned) for layer in plan.layers]
        [('0', True), ('2', False)]
    """

    config: PruningConfig
    layers: tuple[PlannedLayer, ...]
    patterns: tuple[BasePattern, ...] = field(repr=False)
    groups: tuple[PlannedGroup, ...] = ()
    barriers: tuple[str, ...] = ()

    @property
    def dense(self) -> dict[str, str]:
        """Layer that stays dense → the reason."""
        return {layer.name: layer.reason for layer in self.layers if layer.reason is not None}

    def table(self) -> Table:
        """Return the plan as a table."""
        described: list[PlannedLayer | PlannedGroup] = [*self.layers, *self.groups]
        dense = frozenset(index for index, row in enumerate(described) if not row.is_pruned)
        rows = [row.cells() for row in described]
        shown = [
            index for index in range(len(COLUMNS)) if index != RANGE or any(row[RANGE] != row[TARGET] for row in rows)
        ]
        return Table(
            title="Pruning plan",
            columns=[COLUMNS[index] for index in shown],
            rows=[[row[index] for index in shown] for row in rows],
            dimmed=dense,
            footer=[
                self._summarize(),
                *dict.fromkeys(line for pattern in self.patterns for line in _make_notes(pattern)),
                *_explain_scope(self),
                *([f"Operations without a rule: {'; '.join(self.barriers)}."] if self.barriers else []),
            ],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "format_version": FORMAT_VERSION,
            "layers": [layer.to_dict() for layer in self.layers],
            "groups": [group.to_dict() for group in self.groups],
            "barriers": list(self.barriers),
        }

    def summarize(self) -> Summary:
        """Return what pruning would do to each layer."""
        summary, *notes = self.table().footer
        return Summary(
            title="Plan",
            headlines=(summary, "This is a plan: nothing has been pruned."),
            configs=(describe_config(self.config),),
            layers=tuple(layer.record() for layer in self.layers),
            groups=tuple(group.record() for group in self.groups),
            notes=tuple(notes),
        )

    def __str__(self) -> str:
        return self.table().text()

    def __repr__(self) -> str:
        return f"<Plan: {self._summarize()}>"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def _summarize(self) -> str:
        pruned = [layer for layer in self.layers if layer.is_pruned]
        weights = sum(layer.weights for layer in pruned)
        is_locked = all(pattern.config.kind == "pattern_lock" for pattern in self.patterns)
        action = "keep their zeros" if is_locked else "will be pruned"
        return f"{len(pruned):,} of {format_count(len(self.layers), 'layer')} with {weights:,} weights {action}."


def make_plan(
    config: ConfigLike,
    candidates: Sequence[Candidate],
    modules: Sequence[str],
    framework: str,
    find_groups: Callable[[str], Sequence[Group]] = lambda _: (),
) -> Plan:
    """Resolve a configuration against the layers of a model.

    Args:
        config: The configuration.
        candidates: Layers whose weight has at least two axes.
        modules: Names of all modules of the model, with or without such a weight.
        framework: ``"pytorch"`` or ``"keras"``.
        find_groups: Returns the groups of a kind, such as ``"heads"``, in the parameters of the model.

    Raises:
        UnknownNameError: A name in the configuration is unknown.
        LayerError: A layer that the configuration names cannot be pruned, or no layer can.
        ConfigError: A target is impossible within its bounds.
    """
    config = make_config(config)
    decisions = select_layers(config, candidates, modules)
    shown = _leave_free(decisions, find_free_layers(decisions, get_framework(framework)))
    members = decisions if get_framework(framework).can_lock_later else shown
    patterns = tuple(
        get_pattern(
            settings, modules, framework, groups=() if (kind := _get_coupling(settings)) is None else find_groups(kind)
        )
        for settings, modules in _group_by_settings(members)
    )
    for pattern in patterns:
        pattern.limit_layers()
    pattern_by_layer = {name: pattern for pattern in patterns for name in pattern.modules}
    filled = {name: units for pattern in patterns for name, units in describe_units(pattern).items()}
    rows = tuple(_make_row(config, decision, pattern_by_layer, filled) for decision in shown)
    if not any(row.is_pruned for row in rows):
        reasons = format_reasons((row.name, row.reason or "") for row in rows)
        action = (
            "has zeros to keep" if config.kind == "pattern_lock" else f"can be pruned with pattern {config.pattern!r}"
        )
        is_frozen = any(row.reason is not None and row.reason.startswith("frozen") for row in rows)
        advice = f"\n{FROZEN_ADVICE}" if is_frozen else ""
        raise LayerError(f"No layer of the model {action}:\n{reasons or '  it has none.'}{advice}")
    return Plan(config, rows, patterns, describe_groups(patterns))


def _get_coupling(config: PruningConfig) -> str | None:
    return get_pattern_class(config.pattern).coupling


def _leave_free(decisions: Sequence[LayerDecision], free: Mapping[str, str]) -> list[LayerDecision]:
    """Replace the decisions for layers that a pattern lock leaves free."""
    names = [decision.candidate.name for decision in decisions]
    return [
        replace(decision, config=None, reason=free[name]) if name in free else decision
        for name, decision in zip(names, decisions, strict=True)
    ]


def _group_by_settings(decisions: Sequence[LayerDecision]) -> list[tuple[PruningConfig, dict[str, Any]]]:
    groups: dict[PruningConfig, dict[str, Any]] = {}
    for decision in decisions:
        if decision.config is not None:
            groups.setdefault(decision.config, {})[decision.candidate.name] = decision.candidate.module
    return list(groups.items())


def _make_row(
    config: PruningConfig,
    decision: LayerDecision,
    pattern_by_layer: Mapping[str, BasePattern],
    filled: Mapping[str, LayerUnits],
) -> PlannedLayer:
    candidate = decision.candidate
    row = PlannedLayer(name=candidate.name, kind=candidate.types[0], shape=candidate.shape, reason=decision.reason)
    pattern = None if decision.config is None else pattern_by_layer.get(candidate.name)
    if pattern is None:
        return row
    if (reason := pattern.invalid_layers.get(candidate.name)) is not None:
        raise_if_named(config, candidate.names, reason)
        return replace(row, reason=reason)
    units = filled[candidate.name]
    return replace(
        row,
        config=pattern.config,
        target_sparsity=pattern.target_sparsity,
        units=units.units,
        unit_size=units.unit_size,
        sizes=units.sizes,
        weights=units.weights,
        groups=units.names if pattern.coupling is not None else (),
        sparsity_range=units.sparsity_range,
    )


def _make_notes(pattern: BasePattern) -> list[str]:
    if pattern.config.kind == "pattern_lock":
        return ["pattern_lock: weights that are zero stay zero."] if pattern.units else []
    lines = [_describe_timing(pattern.config)]
    if pattern.config.granularity > 1:
        lines.append(f"Each group keeps a multiple of {pattern.config.granularity} units, or all; targets are rounded.")
    if pattern.is_global and len({units.unit_size for units in pattern.units.values()}) > 1:
        lines.append("Channels differ in size: the share of pruned weights will differ from the target.")
    return lines


def _explain_scope(plan: Plan) -> list[str]:
    """Explain that one-shot pruning has a different default scope, if the configuration does not set one."""
    is_global = any(pattern.is_global and pattern.config.kind != "pattern_lock" for pattern in plan.patterns)
    has_ranges = any(low < high for low, high in (row.sparsity_range for row in plan.layers))
    if plan.config.pruning_scope is not None or not (is_global and has_ranges):
        return []
    return [
        "This plan is for training. Without pruning_scope, secateur.prune ranks each layer separately, so every "
        "layer reaches the target."
    ]


def _describe_timing(config: PruningConfig) -> str:
    if config.kind == "sr_ste":
        return (
            f"{config.pattern}: every group is pruned before the first step. Every {config.pruning_frequency} steps "
            f"from step {config.start_step} to {config.last_step}, the weights with the highest {config.criterion} are "
            f"kept; pruned ones keep training until then."
        )
    if config.has_regrowth:
        others = "random others" if config.kind == "set" else "those with the largest gradients"
        return (
            f"{config.pattern}: the target is reached before the first step. Every {config.pruning_frequency} steps "
            f"from step {config.start_step} to {config.last_step}, units with the lowest {config.criterion} are "
            f"replaced by {others}: {config.regrow_fraction:.0%} of the kept ones at first, decreasing to zero."
        )
    schedule = config.sparsity_decay_type
    name = schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "custom")
    action = "pruned weight by weight" if config.kind == "progressive" else "pruned"
    when = (
        f"all at once at step {config.start_step}"
        if config.start_step == config.last_step
        else f"every {config.pruning_frequency} steps from step {config.start_step} to {config.last_step}, on a {name} "
        "schedule"
    )
    return f"{config.pattern}: units with the lowest {config.criterion} are {action} {when}."
