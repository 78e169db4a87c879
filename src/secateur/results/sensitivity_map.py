"""What layers lose if each is pruned alone, with several patterns and sparsities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from secateur._wording import format_shape
from secateur.results.records import Column, Record, Row

__all__ = ["LayerSensitivity", "PruningCase", "SensitivityMap", "SensitivityPoint"]


class PruningCase(NamedTuple):
    """A pattern and a sparsity.

    Attributes:
        pattern: Pattern specification.
        sparsity: Share of the weights of a layer to prune, in (0, 1].
    """

    pattern: str
    sparsity: float

    def __str__(self) -> str:
        return f"{self.pattern} {100 * self.sparsity:.4g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityPoint(Record):
    """What one layer loses with one pattern at one sparsity.

    Attributes:
        pattern: Pattern specification.
        sparsity: Share of the weights of the layer to prune, in (0, 1].
        units: Units of the layer, counted as budgets count them: blocks, or groups of N:M.
        pruned_units: Units that were pruned.
        loss: What is lost, finite; the larger, the worse. See `SensitivityMap.quantity`.
        value: The metric with the pruned layer; ``None``: the loss is an error, not the change of a metric.
    """

    pattern: str
    sparsity: float
    units: int
    pruned_units: int
    loss: float
    value: float | None = None

    @property
    def case(self) -> PruningCase:
        """The pattern and the sparsity."""
        return PruningCase(self.pattern, self.sparsity)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity(Row):
    """What one layer loses, if only this layer is pruned.

    Attributes:
        name: Name of the layer in the model.
        shape: Shape of its weight as stored.
        sha256: Digest of the bytes of its dense weight.
        points: What it loses with each pattern that fits it, at each sparsity.
        loss_factor: Factor of its losses when a target is distributed over layers, above 0. Relative errors of single
            layers are not comparable; the factor turns them into errors in units of the squared mean score of the
            layer, as ``allocation="sensitivity"`` measures them.
    """

    columns: ClassVar[tuple[Column, ...]] = (Column("layer", "name"), Column(">shape", "shape", format_shape))

    name: str
    shape: tuple[int, ...]
    sha256: str
    points: tuple[SensitivityPoint, ...]
    loss_factor: float = 1.0

    def find_loss(self, case: PruningCase) -> float | None:
        """Return the loss with a pattern at a sparsity; ``None``: it was not measured."""
        return next((point.loss for point in self.points if point.case == case), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityMap(Record):
    """The losses of all layers.

    Attributes:
        quantity: What a loss is.
        layers: The layers, in the order of the model.
    """

    quantity: str
    layers: tuple[LayerSensitivity, ...]

    @property
    def cases(self) -> tuple[PruningCase, ...]:
        """The patterns and sparsities that were measured, in order."""
        return tuple(dict.fromkeys(point.case for layer in self.layers for point in layer.points))
