"""What a plan says about one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.config import PruningConfig

__all__ = ["Candidate", "PlannedLayer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layer with a weight of two axes or more, as the framework's part finds it in a model.

    Attributes:
        name: The layer's name in the model.
        module: The layer.
        types: Its type and the families it belongs to, the most specific first.
        shape: Its weight as stored.
        weight_id: The same for layers that share one weight.
        is_output: Whether it is a classifier or language-model head of the model.
        reason: Why it cannot be pruned; ``None``: nothing speaks against it.
    """

    name: str
    module: Any
    types: tuple[str, ...]
    shape: tuple[int, ...]
    weight_id: int
    is_output: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLayer:
    """One row of a plan.

    Attributes:
        name: The layer's name in the model.
        kind: Its type.
        shape: Its weight as stored.
        config: What happens to it; ``None`` where it stays dense.
        units: Units that its weight is tiled into; 0 where it stays dense.
        unit_size: Weights in one unit.
        target_sparsity: Target of the layer, or of all layers ranked with it.
        reason: Why it stays dense; ``None`` where it is pruned.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    config: PruningConfig | None = None
    units: int = 0
    unit_size: int = 0
    target_sparsity: float = 0.0
    reason: str | None = None

    @property
    def is_pruned(self) -> bool:
        """Whether the layer is pruned at all."""
        return self.reason is None

    def cells(self) -> tuple[str, ...]:
        """The row as a person reads it."""
        shape = "×".join(str(size) for size in self.shape)
        if self.config is None:
            return self.name, self.kind, shape, "dense", "", "", self.reason or ""
        if self.config.kind == "pattern_lock":
            return self.name, self.kind, shape, "pattern_lock", f"{self.units:,}", "", "keeps its zeros"
        scope = "together" if self.config.pruning_scope == "global" else "by itself"
        units = f"{self.units:,} × {self.unit_size}"
        return self.name, self.kind, shape, self.config.pattern, units, f"{self.target_sparsity:.1%}", scope

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        return {
            "name": self.name,
            "type": self.kind,
            "shape": list(self.shape),
            "pattern": None if self.config is None else self.config.pattern,
            "units": self.units,
            "unit_size": self.unit_size,
            "target_sparsity": self.target_sparsity,
            "scope": None if self.config is None else self.config.pruning_scope,
            "reason": self.reason,
        }
