"""Report which groups of channels were reordered, and how much of the scores is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secateur._wording import format_count
from secateur.results import Column, Report, Row

__all__ = ["PermutationReport", "PermutedGroup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PermutedGroup(Row):
    """A group of channels whose order was searched.

    Attributes:
        name: Its name, as in `secateur.slim`.
        units: Number of channels.
        layers: The layers that are pruned in groups or blocks of them.
        before: Share of the scores of these layers that is kept in the original order, in [0, 1].
        after: The same in the new order; never less.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("group", "name"),
        Column(">channels", "units", "{:,}"),
        Column("pruned in", "layers", ", ".join),
        Column(">kept before", "before", "{:.2%}"),
        Column(">kept after", "after", "{:.2%}"),
    )

    name: str
    units: int
    layers: tuple[str, ...]
    before: float
    after: float

    @property
    def is_dimmed(self) -> bool:
        """See `Row.is_dimmed`: groups whose order is as good as any that was found."""
        return self.after <= self.before


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PermutationReport(Report):
    """The result of `secateur.permutation.permute_channels`.

    Attributes:
        groups: The groups of channels whose order was searched, in the order of the model.
    """

    groups: tuple[PermutedGroup, ...]

    @property
    def table_title(self) -> str:
        """See `Report.table_title`."""
        return "Reordered channels"

    @property
    def rows(self) -> tuple[PermutedGroup, ...]:
        """See `Report.rows`."""
        return self.groups

    @property
    def columns(self) -> tuple[Column, ...]:
        """See `Report.columns`."""
        return PermutedGroup.columns

    @property
    def footer(self) -> list[str]:
        """See `Report.footer`."""
        if not self.groups:
            return ["No group of channels can be reordered so that it matters to pruning."]
        improved = sum(group.after > group.before for group in self.groups)
        lost = [sum(1 - getattr(group, side) for group in self.groups) for side in ("before", "after")]
        share = f"{1 - lost[1] / lost[0]:.1%}" if lost[0] else "none"
        count = format_count(len(self.groups), "group")
        return [f"Reordered {improved} of {count} of channels: pruning removes {share} less of the scores."]
