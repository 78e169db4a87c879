"""The pruning report: what was pruned, layer by layer."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

from secateur._wording import format_count, format_list, format_shape
from secateur.config import PruningConfig
from secateur.results.layer_record import LayerRecord
from secateur.results.records import Column, Record, Row
from secateur.results.report_base import Report
from secateur.results.sensitivity_map import SensitivityMap
from secateur.results.summary import Summary, UnitGroupRecord, describe_config

__all__ = ["GroupResult", "LayerResult", "PruningReport"]

logger = logging.getLogger(__name__)

MIN_DIFFERENCE = 0.005
"""Smallest difference between the share of units and the share of weights that a report mentions."""


MAX_SAFE_SPARSITY = 0.95
"""Share of the weights of a layer above which a report warns that little is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult(Row):
    """One pruned layer.

    Attributes:
        name: Name of the layer in the model.
        pattern: Its pattern specification.
        shape: Shape of its weight as stored.
        weights: Number of its weights.
        pruned_weights: Weights that the mask prunes; each is exactly zero.
        units: Number of units with slices in its weight.
        pruned_units: Units of which every weight in this layer is pruned.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("layer", "name"),
        Column(">shape", "shape", format_shape),
        Column("pattern", "pattern"),
        Column(">sparsity", "sparsity", "{:.2%}"),
        Column(">weights pruned", lambda row: f"{row.pruned_weights:,} of {row.weights:,}"),
        Column(">units pruned", lambda row: f"{row.pruned_units:,} of {row.units:,}"),
    )

    name: str
    pattern: str
    shape: tuple[int, ...]
    weights: int
    pruned_weights: int
    units: int
    pruned_units: int

    @property
    def sparsity(self) -> float:
        """Share of weights pruned, in [0, 1]."""
        return self.pruned_weights / self.weights

    def record(self, **more: Any) -> LayerRecord:
        """Return the record of the layer, with additional values."""
        return LayerRecord(
            name=self.name,
            shape=self.shape,
            pattern=self.pattern,
            weights=self.weights,
            sparsity=self.sparsity,
            units=self.units,
            pruned_units=self.pruned_units,
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult(Record):
    """Units with slices in several layers, which were pruned together.

    Attributes:
        name: Name of the group.
        kind: ``"channels"`` or ``"heads"``.
        layers: The layers with slices of its units.
        units: Number of units.
        pruned_units: Units of which every weight in these layers is pruned.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    units: int
    pruned_units: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PruningReport(Report):
    """The result of a run, verified against its masks and weights.

    Attributes:
        layers: Every pruned layer.
        dense: Layer left dense → the reason.
        step: Optimizer steps taken.
        last_step: Step at which the target is reached.
        model_weights: Number of parameters of the whole model; shared parameters count once.
        configs: The configurations of the run; layers with equal settings share one.
        groups: The units with slices in several layers.
        history: Share of units pruned after each update that changed it, since the run was prepared or its state was
            loaded: (step, share).
        sensitivity: The losses by which the target was distributed over layers; ``None``: it was not.
    """

    computed: ClassVar[tuple[str, ...]] = ("sparsity", "unit_sparsity", "model_sparsity", "is_complete")
    omitted: ClassVar[tuple[str, ...]] = ("configs", "sensitivity")

    layers: tuple[LayerResult, ...]
    dense: dict[str, str]
    step: int
    last_step: int
    model_weights: int
    configs: tuple[PruningConfig, ...] = ()
    groups: tuple[GroupResult, ...] = ()
    history: tuple[tuple[int, float], ...] = field(default=(), compare=False)  # a resumed run has only part of it
    sensitivity: SensitivityMap | None = field(default=None, compare=False)

    @property
    def sparsity(self) -> float:
        """Share of weights pruned over all pruned layers, in [0, 1]."""
        return sum(layer.pruned_weights for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def unit_sparsity(self) -> float:
        """Share of units pruned over all pruned layers, in [0, 1]; a unit with slices in several layers counts once."""
        coupled = {layer for group in self.groups for layer in group.layers}
        single: list[LayerResult] = [layer for layer in self.layers if layer.name not in coupled]
        counted: list[LayerResult | GroupResult] = [*self.groups, *single]
        return sum(row.pruned_units for row in counted) / sum(row.units for row in counted)

    @property
    def model_sparsity(self) -> float:
        """Share of the whole model's parameters pruned, in [0, 1]."""
        return sum(layer.pruned_weights for layer in self.layers) / self.model_weights

    @property
    def is_complete(self) -> bool:
        """Whether the run reached its last step, and therefore its target and its final masks."""
        return self.step >= self.last_step

    def summarize(self) -> Summary:
        """Return what was pruned, layer by layer."""
        dense = [LayerRecord(name=name, dense_reason=reason) for name, reason in self.dense.items()]
        return Summary(
            title=self.table_title,
            headlines=tuple(self.footer[:1]),
            facts={"Steps": f"{self.step:,}; the schedule ends at {self.last_step:,}"} if self.last_step else {},
            configs=tuple(describe_config(config) for config in self.configs),
            layers=(*(layer.record() for layer in self.layers), *dense),
            groups=tuple(
                UnitGroupRecord(name=group.name, kind=group.kind, units=group.units, gone=group.pruned_units)
                for group in self.groups
            ),
            sensitivity=self.sensitivity,
            history=self.history,
            last_step=self.last_step or None,
            notes=tuple(self.footer[1:]),
            interruption=None if self.is_complete else f"It stopped at step {self.step:,} of {self.last_step:,}.",
        )

    def warn_if_incomplete(self) -> None:
        """Log a warning if the run ended before its target."""
        if not self.is_complete:
            logger.warning(
                "finalize() after step %d, but the schedule ends at step %d: sparsity is %.4f so far. "
                "Train longer, or set a smaller end_step.",
                self.step,
                self.last_step,
                self.sparsity,
            )

    def warn_of_nearly_empty_layers(self) -> None:
        """Log one warning that names the layers of which nearly all weights are pruned."""
        layers = [layer for layer in self.layers if layer.sparsity > MAX_SAFE_SPARSITY]
        if layers and not all(config.kind == "pattern_lock" for config in self.configs):
            is_local = all(config.pruning_scope == "local" for config in self.configs)
            logger.warning(
                "%s lost more than %.0f %% of the weights: %s. The model may not work; lower target_sparsity%s or "
                "exclude them with excluded_op_names.",
                format_count(len(layers), "layer"),
                100 * MAX_SAFE_SPARSITY,
                format_list(f"{layer.name!r} ({layer.sparsity:.2%})" for layer in layers),
                "" if is_local else " or max_sparsity_ratio_per_op, set pruning_scope='local',",
            )

    @property
    def table_title(self) -> str:
        """The line above the table."""
        return "Pruned"

    @property
    def rows(self) -> tuple[LayerResult, ...]:
        """The rows of the table."""
        return self.layers

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table."""
        return LayerResult.columns

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        lines = [
            f"Pruned {self.sparsity:.2%} of the weights in {format_count(len(self.layers), 'layer')}, which is "
            f"{self.model_sparsity:.2%} of the model. Left {format_count(len(self.dense), 'other layer')} dense."
        ]
        is_locked = bool(self.configs) and all(config.kind == "pattern_lock" for config in self.configs)
        sizes = {layer.weights // layer.units for layer in self.layers if not is_locked}
        if len(sizes) > 1 and not is_locked and abs(self.unit_sparsity - self.sparsity) > MIN_DIFFERENCE:
            lines.append(
                "Units differ in size: the target is a share of units, and "
                f"{self.unit_sparsity:.2%} of them are pruned."
            )
        if narrow := self._find_narrow_groups():
            granularity = max(config.granularity for config in self.configs)
            lines.append(
                f"A multiple of granularity={granularity} units stays, so groups with no more units keep all: "
                f"{format_list(f'{group.name!r} ({group.units})' for group in narrow)}."
            )
        if not self.is_complete:
            has_target = bool(self.configs) and all(config.has_regrowth for config in self.configs)
            reason = "Masks would still have changed" if has_target else "The target was not reached"
            lines.append(f"{reason}: stopped at step {self.step} of {self.last_step}.")
        return lines

    def _find_narrow_groups(self) -> list[GroupResult]:
        """Return the groups that the granularity keeps whole; none if configurations differ in it."""
        sizes = {config.granularity for config in self.configs}
        if len(sizes) != 1 or max(sizes) == 1:
            return []
        return [group for group in self.groups if group.units <= max(sizes) and not group.pruned_units]
