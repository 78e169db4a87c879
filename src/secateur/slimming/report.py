"""Report what slimming removed, and what the checks measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from secateur._wording import format_count, format_list
from secateur.results import Column, LayerRecord, Measure, PruningReport, Report, Row, Summary, UnitGroupRecord
from secateur.slimming.budget import BudgetResult

__all__ = ["SlimReport", "SlimmedGroup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimmedGroup(Row):
    """The changes of one group of units.

    Attributes:
        name: Name of the group.
        kind: ``"channels"`` or ``"heads"``.
        units: Number of units before.
        zero_units: Units that nothing reads, because all weights that do are zero.
        removed_units: Units that were removed.
        reason: Why zero units were kept; empty if there are none.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("group", "name"),
        Column("kind", "kind"),
        Column(">units", "units", "{:,}"),
        Column(">zero", "zero_units", "{:,}"),
        Column(">removed", "removed_units", "{:,}"),
        Column(">left", "kept_units", "{:,}"),
        Column("reason", "reason"),
    )
    computed: ClassVar[tuple[str, ...]] = ("kept_units",)

    name: str
    kind: str
    units: int
    zero_units: int
    removed_units: int
    reason: str = ""

    @property
    def kept_units(self) -> int:
        """Number of units after."""
        return self.units - self.removed_units

    def record(self) -> UnitGroupRecord:
        """Return the record of the group."""
        return UnitGroupRecord(
            name=self.name, kind=self.kind, units=self.units, gone=self.removed_units, reason=self.reason
        )

    @property
    def is_dimmed(self) -> bool:
        """See `Row.is_dimmed`: groups that did not change."""
        return not self.removed_units


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SlimReport(Report):
    """The result of `secateur.slim`.

    Attributes:
        groups: Every group of units.
        barriers: Operations without a rule; units that reach them are kept.
        weights_before: Number of parameters of the model before; shared parameters count once.
        weights: Number of parameters after.
        probe_difference: Largest difference of the outputs after noise in the weights of all removed units, relative to
            the largest output, or to 1 if all are smaller.
        proof_difference: The same between the outputs of the slimmed and the masked model, excluding groups whose
            removal is not exact.
        inexact_difference: The same including these groups; ``None``: none of them lost units.
        attributes: Module → its attributes that changed, such as ``out_features``, and their new values.
        branches: Modules that were removed as a whole, because their output is zero or a bias, by their names before.
        blocks: Blocks that were removed with all their branches, because they return their input.
        config: Fields of the transformers configuration that changed, and their new values.
        is_configured: Whether the configuration of a transformers model describes all widths, so that
            ``save_pretrained`` and ``from_pretrained`` work. If not, save the model with `secateur.save`. ``None``: it
            is not a transformers model.
        pruning: What was pruned first; ``None``: nothing.
        budget: How the budget was met; ``None``: there was none.
        model: The slimmed model: a torch module is slimmed in place; for a Keras model, this is a new model.
    """

    computed: ClassVar[tuple[str, ...]] = ("removed_units", "removed_share")
    omitted: ClassVar[tuple[str, ...]] = ("model",)

    groups: tuple[SlimmedGroup, ...]
    barriers: tuple[str, ...]
    weights_before: int
    weights: int
    probe_difference: float
    proof_difference: float
    inexact_difference: float | None
    attributes: dict[str, dict[str, int | tuple[int, ...]]]
    config: dict[str, Any]
    is_configured: bool | None
    branches: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    pruning: PruningReport | None = None
    budget: BudgetResult | None = None
    model: Any = field(default=None, compare=False)

    @property
    def removed_units(self) -> int:
        """Number of units that were removed, over all groups."""
        return sum(group.removed_units for group in self.groups)

    @property
    def removed_share(self) -> float:
        """Share of the parameters that were removed, in [0, 1]."""
        return 1 - self.weights / self.weights_before if self.weights_before else 0.0

    def summarize(self) -> Summary:
        """Return what was removed, how large the rest is, and what was pruned before."""
        summary = Summary(
            title=self.table_title,
            headlines=tuple(self.footer[:1]),
            measures=self._measure(),
            layers=tuple(LayerRecord(name=name, attributes=changed) for name, changed in self.attributes.items()),
            groups=tuple(group.record() for group in self.groups),
            notes=tuple(self.footer[1:]),
        )
        return summary if self.pruning is None else summary.join(self._summarize_pruning(self.pruning))

    def _summarize_pruning(self, pruning: PruningReport) -> Summary:
        """Return what was pruned first; under a budget, without `target_sparsity`, which has no effect."""
        summary = pruning.summarize()
        if self.budget is None:
            return summary
        configs = tuple(
            {key: value for key, value in config.items() if key != "target_sparsity"} for config in summary.configs
        )
        return replace(summary, configs=configs)

    def _measure(self) -> tuple[Measure, ...]:
        """Return what is smaller or faster."""
        size = Measure(
            quantity="size", name="parameters", unit="parameters", dense=self.weights_before, present=self.weights
        )
        if self.budget is None or self.budget.quantity == "parameters":
            return (size,)
        return size, self.budget.measure()

    @property
    def table_title(self) -> str:
        """The line above the table."""
        return "Slimmed"

    @property
    def rows(self) -> tuple[SlimmedGroup, ...]:
        """The rows of the table."""
        return self.groups

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table."""
        return SlimmedGroup.columns

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        lines = [
            f"Removed {format_count(self.removed_units, 'unit')}: {self.weights_before:,} parameters before, "
            f"{self.weights:,} after ({0 - self.removed_share:.1%})."
        ]
        if self.branches:
            lines.append(f"Removed branches: {format_list(self.branches)}.")
        if self.blocks:
            lines.append(f"Removed blocks: {format_list(self.blocks)}.")
        if self.budget is not None:
            lines.append(str(self.budget))
        if not any(group.zero_units for group in self.groups):
            lines.append(
                "No unit is zero: every unit is read by a weight that is not zero. Prune with the pattern 'channels' "
                "or 'heads' first; other patterns, such as '1xchannel', do not prune the weights that read a unit."
            )
        if self.removed_units:
            lines.append(
                f"Outputs changed by {self.probe_difference:.1e} with noise in the removed units, and by "
                f"{self.proof_difference:.1e} without them."
            )
        if self.inexact_difference is not None:
            lines.append(f"Groups whose removal is not exact changed the outputs by {self.inexact_difference:.1e}.")
        if self.is_configured is False:
            lines.append(
                "The configuration of the model cannot describe its widths or missing branches: only secateur.save and "
                "secateur.load keep them, and from_pretrained cannot load what save_pretrained writes. mode='uniform' "
                "leaves equal widths and whole blocks, which more configurations can describe, but not a pooler that "
                "is narrower than the model, nor fewer heads without a field for their size, such as head_dim."
            )
        if self.barriers:
            lines.append(f"Operations without a rule: {'; '.join(self.barriers)}.")
        return lines
