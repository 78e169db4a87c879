"""The report on reordered channels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PermutationReport", "PermutedGroup"]


@dataclass(frozen=True, kw_only=True)
class PermutedGroup:
    """A group of channels whose order was searched.

    Attributes:
        name: Its name, as in `secateur.slim`.
        units: Number of channels.
        layers: The layers that read them in N:M groups.
        before: Share of the scores that N:M keeps in the original order, in [0, 1].
        after: The same in the new order; never less.
    """

    name: str
    units: int
    layers: tuple[str, ...]
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class PermutationReport:
    """The groups of channels whose order was searched.

    Attributes:
        groups: In the order of the model.
    """

    groups: tuple[PermutedGroup, ...]
