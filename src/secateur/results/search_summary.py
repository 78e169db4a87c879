"""What a search tried, for its page."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.results.records import Record

__all__ = ["SearchSummary", "TrialPoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPoint(Record):
    """A trial of a search.

    Attributes:
        number: Its number, from 0.
        state: ``"complete"``, ``"pruned"`` or ``"failed"``.
        quality: Value of the objective; ``None``: not measured.
        cost: Its cost; ``None``: not measured.
        sparsity: Share of the weights of the dense model that are zero or removed, in [0, 1].
        settings: Its settings, and why there is no result.
        is_on_front: Whether it is on the Pareto front.
    """

    number: int
    state: str
    quality: float | None
    cost: float | None
    sparsity: float | None
    settings: str
    is_on_front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSummary(Record):
    """The trials of a search.

    Attributes:
        objective: Name of the objective.
        direction: ``"maximize"`` or ``"minimize"``.
        cost: Unit of the cost.
        dense_quality: Value of the objective for the dense model.
        dense_cost: Cost of the dense model.
        trials: The trials, those on the Pareto front first.
    """

    objective: str
    direction: str
    cost: str
    dense_quality: float
    dense_cost: float
    trials: tuple[TrialPoint, ...]
