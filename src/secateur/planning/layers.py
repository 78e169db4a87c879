"""Data classes for the layers of a plan: candidates, decisions and rows of the table."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from secateur.config import PruningConfig
from secateur.results import LayerRecord

__all__ = ["LAYER_FAMILIES", "Candidate", "LayerDecision", "PlannedLayer", "format_range", "shorten_name"]

LAYER_FAMILIES = frozenset({"Conv", "Linear"})
"""Type names that configurations may use even for models without such layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layer whose weight has at least two axes.

    Attributes:
        name: Name of the layer in the model.
        module: The layer.
        types: Its type and its families, most specific first.
        shape: Shape of its weight as stored.
        weight_id: Identifier of its weight, equal for layers that share a weight.
        is_output: Whether it is an output layer of the model, such as a classifier or a language-model head.
        is_router: Whether it chooses among the experts of a mixture.
        is_refused: Whether selecting the layer is an error, rather than a reason to leave it dense.
        reason: Why it cannot be pruned; ``None`` if it can.
        is_frozen: Whether the only reason is that it is not trained, so that a pattern lock can still verify its zeros.
        owner: Name of the module that has this weight and others; ``None``: the layer is the module.
        only_locks: Whether patterns do not support the weight, so that only ``kind="pattern_lock"`` can apply to it.
    """

    name: str
    module: Any
    types: tuple[str, ...]
    shape: tuple[int, ...]
    weight_id: int
    is_output: bool = False
    is_router: bool = False
    is_refused: bool = False
    reason: str | None = None
    is_frozen: bool = False
    owner: str | None = None
    only_locks: bool = False

    @property
    def is_supported(self) -> bool:
        """Whether patterns support layers of its type."""
        return not LAYER_FAMILIES.isdisjoint(self.types)

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which a configuration can select the layer."""
        return (self.name,) if self.owner is None else (self.name, self.owner)


@dataclass(frozen=True, slots=True)
class LayerDecision:
    """The decision to prune a layer with a configuration, or to keep it dense for a reason.

    Attributes:
        candidate: The layer.
        config: How it is pruned; ``None`` if it stays dense.
        reason: Why it stays dense.
        is_requested_dense: Whether it stays dense because of the configuration, or as an output layer or router, rather
            than because it cannot be pruned. If so, layers that share its weight stay dense too.
    """

    candidate: Candidate
    config: PruningConfig | None = None
    reason: str | None = None
    is_requested_dense: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLayer:
    """One row of a plan.

    Attributes:
        name: Name of the layer in the model.
        kind: Its type.
        shape: Shape of its weight as stored.
        config: How it is pruned; ``None`` if it stays dense.
        units: Number of units with parts in its weight; 0 if it stays dense.
        unit_size: Weights in one unit; 0 if units differ in size, because the layer has parts of several groups.
        sizes: For each group of units that are ranked together, their number and the weights of the layer in each.
        weights: Number of weights that belong to a unit.
        groups: Names of the groups that the units belong to, if these have slices in several layers.
        target_sparsity: Target of the layer, or of all layers that are ranked with it.
        sparsity_range: Minimum and maximum sparsity that the layer can have at the end; equal if it is ranked alone.
        reason: Why it stays dense; ``None`` if it is pruned.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    config: PruningConfig | None = None
    units: int = 0
    unit_size: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    weights: int = 0
    groups: tuple[str, ...] = ()
    target_sparsity: float = 0.0
    sparsity_range: tuple[float, float] = (0.0, 0.0)
    reason: str | None = None

    @property
    def is_pruned(self) -> bool:
        """Whether the layer is pruned."""
        return self.reason is None

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the row in the plan's table."""
        shape = "×".join(str(size) for size in self.shape)
        if self.config is None:
            return self.name, self.kind, shape, "dense", "", "", "", self.reason or ""
        if self.config.kind == "pattern_lock":
            return self.name, self.kind, shape, "pattern_lock", f"{self.units:,}", "", "", "keeps its zeros"
        low, high = self.sparsity_range
        scope = "globally" if self.config.pruning_scope == "global" and low < high else "locally"
        units = " + ".join(f"{units:,} × {size}" if size > 1 else f"{units:,}" for units, size in self.sizes)
        target, span = f"{self.target_sparsity:.1%}", format_range(self.sparsity_range)
        groups = ", ".join(shorten_name(group, self.name) for group in self.groups)
        ranked = f"{scope} in {groups}" if groups else scope
        return self.name, self.kind, shape, self.config.pattern, units, target, span, ranked

    def record(self) -> LayerRecord:
        """Return the record of the layer."""
        is_planned = self.config is not None and self.config.kind != "pattern_lock"
        return LayerRecord(
            name=self.name,
            kind=self.kind,
            shape=self.shape,
            pattern=None if self.config is None else self.config.pattern,
            target_sparsity=self.target_sparsity if is_planned else None,
            units=self.units or None,
            dense_reason=self.reason,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.name,
            "type": self.kind,
            "shape": list(self.shape),
            "pattern": None if self.config is None else self.config.pattern,
            "units": self.units,
            "unit_size": self.unit_size,
            "target_sparsity": self.target_sparsity,
            "sparsity_range": list(self.sparsity_range),
            "scope": None if self.config is None else self.config.pruning_scope,
            "groups": list(self.groups),
            "reason": self.reason,
        }


def format_range(shares: tuple[float, float]) -> str:
    """Format a range of shares as percentages.

    Examples:
        >>> format_range((0.0, 0.5)), format_range((0.25, 0.25))
        ('0%–50.0%', '25.0%')
    """
    return "–".join(dict.fromkeys(f"{share:.0%}" if share in (0, 1) else f"{share:.1%}" for share in shares))


def shorten_name(name: str, near: str) -> str:
    """Leave out the leading parts that a name shares with another name, but not its last two parts.

    Equal rows of repeated blocks then have equal cells, which a table shows once.

    Examples:
        >>> shorten_name("blocks.0.mlp.up.channels", "blocks.0.mlp.down")
        'up.channels'
        >>> shorten_name("blocks.0.attention", "blocks.0.attention.query")
        'attention'
    """
    parts = name.split(".")
    pairs = zip(parts, near.split("."), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    kept = 1 if shared == len(parts) else 2
    return ".".join(parts[min(shared, max(0, len(parts) - kept)) :])
