"""The report of a search: its trials, and those that are not worse than any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur._wording import format_count, format_list, format_reasons
from secateur.errors import ConfigError
from secateur.results import Column, LayerShares, LayerSharesSource, Report, SearchSummary, Summary, TrialPoint
from secateur.results.data_frame import make_data_frame
from secateur.searching.evaluation import DenseResult
from secateur.searching.trial_result import TrialResult

__all__ = ["COSTS", "SearchReport"]

COSTS = {
    "parameters": "weights that are not zero",
    "bytes": "bytes as saved",
    "flops": "FLOPs with weights that are not zero",
    "latency": "seconds per call",
}
"""Cost that a search can minimize → its unit."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SearchReport(Report, LayerSharesSource):
    """The result of `secateur.search`.

    Attributes:
        trials: All trials, in their order.
        objective: Name of the objective.
        direction: ``"maximize"`` or ``"minimize"``.
        cost: A key of `COSTS`, or the name of a function.
        dense: What was measured of the dense model.
        sampler: Name of the sampler.
        seed: Its seed.
        storage: The file in which the search is stored; ``None``: none.

    Examples:
        >>> import secateur, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> inputs = torch.randn(32, 8)
        >>> expected = model(inputs)
        >>> def error(pruned):
        ...     return (pruned(inputs) - expected).square().mean().item()
        >>> space = {"pattern": "1x1", "sparsity": [0.25, 0.5, 0.75]}
        >>> report = secateur.search(
        ...     model, error, space, direction="minimize", sampler="grid"
        ... )
        >>> report.best(max_cost=60).config.target_sparsity
        0.5
    """

    trials: tuple[TrialResult, ...]
    objective: str
    direction: str
    cost: str
    dense: DenseResult
    sampler: str
    seed: int
    storage: str | None = None

    @property
    def front(self) -> tuple[TrialResult, ...]:
        """The Pareto front, by ascending cost: trials to which no other is preferable in both cost and quality."""
        on_front = [trial for trial in self.trials if trial.is_on_front]
        return tuple(sorted(on_front, key=lambda trial: (trial.cost, trial.number)))

    def best(self, *, max_cost: float | None = None, min_quality: float | None = None) -> TrialResult:
        """Return the trial with the best quality within a cost, or the cheapest one with a quality.

        Args:
            max_cost: Maximum cost, in the unit of the cost; half that of the dense model is ``0.5 *
                report.dense.cost``.
            min_quality: Quality that the trial must reach: a minimum, or a maximum if the objective is minimized.
                Without a bound, the best quality wins, and of equals the cheapest.

        Raises:
            ConfigError: No trial is within the bounds.
        """
        sign = self._sign
        fitting = [
            trial
            for trial in self.front
            if (max_cost is None or trial.cost <= max_cost)  # type: ignore[operator]
            and (min_quality is None or sign * trial.quality >= sign * min_quality)  # type: ignore[operator]
        ]
        if not fitting:
            reached = ", ".join(f"{trial.quality:.5g} at {trial.cost:,.6g}" for trial in self.front)
            raise ConfigError(
                f"No trial has max_cost={max_cost} and min_quality={min_quality}. The front has (quality at cost): "
                f"{reached}. Choose other bounds, or search on with more trials."
            )
        if min_quality is not None:
            return fitting[0]
        return max(fitting, key=lambda trial: sign * trial.quality)  # type: ignore[operator]

    def get_layer_shares(self) -> LayerShares:
        """Return how much of each layer the only trial of the front has pruned.

        Raises:
            ConfigError: The front has several trials, or its trial does not tell how to distribute a target.
        """
        if len(self.front) > 1:
            numbers = format_list(str(trial.number) for trial in self.front)
            raise ConfigError(
                f"allocation must be one trial, and the front of this search has {len(self.front)}: {numbers}. Choose "
                f"one, such as allocation=report.best(max_cost={self.dense.cost / 2:.6g})."
            )
        return self.front[0].get_layer_shares()

    @property
    def _sign(self) -> int:
        return 1 if self.direction == "maximize" else -1

    @property
    def table_title(self) -> str:
        """The line above the table."""
        return "Search"

    @property
    def rows(self) -> tuple[TrialResult, ...]:
        """The rows of the table: the front, then all other trials."""
        others = [trial for trial in self.trials if not trial.is_on_front]
        return (*self.front, *others)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table."""
        return TrialResult.columns

    @property
    def footer(self) -> list[str]:
        """The lines below the table."""
        return [*self._list_notes(), *self.list_warnings()]

    def _list_notes(self) -> list[str]:
        counts = {state: sum(trial.state == state for trial in self.trials) for state in ("pruned", "failed")}
        left_out = [f"{count} {state}" for state, count in counts.items() if count]
        return [
            f"{len(self.front)} of {format_count(len(self.trials), 'trial')} are on the front"
            f"{f' ({chr(44).join(left_out)})' if left_out else ''}. The quality is {self.objective} "
            f"({self.direction}d), {self.dense.quality:.5g} when dense; the cost is {self._unit}, "
            f"{self.dense.cost:,.6g} when dense."
        ]

    @property
    def _unit(self) -> str:
        return COSTS.get(self.cost, self.cost)

    def list_warnings(self) -> list[str]:
        """List what may be misleading: an objective that is not deterministic, and failed trials."""
        lines = []
        if self.dense.noise:
            lines.append(
                f"{self.objective} is not deterministic: it returned {self.dense.quality:.6g} and "
                f"{self.dense.repeated_quality:.6g} for the dense model. Smaller differences between trials mean "
                f"nothing; fix its seeds and use the same data in every call."
            )
        if failed := [trial for trial in self.trials if trial.state == "failed"]:
            reasons = format_reasons((str(trial.number), trial.reason) for trial in failed)
            lines.append(f"{format_count(len(failed), 'trial')} failed:\n{reasons}")
        return lines

    def summarize(self) -> Summary:
        """Return the trials and the front."""
        stored = {} if self.storage is None else {"Storage": self.storage}
        return Summary(
            title=self.table_title,
            headlines=tuple(self._list_notes()),
            facts={"Sampler": f"{self.sampler}, seed {self.seed}", **stored},
            warnings=tuple(self.list_warnings()),
            search=SearchSummary(
                objective=self.objective,
                direction=self.direction,
                cost=self._unit,
                dense_quality=self.dense.quality,
                dense_cost=self.dense.cost,
                trials=tuple(map(_make_point, self.rows)),
            ),
        )

    def to_pandas(self) -> Any:
        """Return the trials as a `pandas.DataFrame`: one row per trial, one column per setting.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        rows = [{**trial.to_dict(), **trial.values} for trial in self.trials]
        dropped = ("values", "configs")
        return make_data_frame([{key: value for key, value in row.items() if key not in dropped} for row in rows])


def _make_point(trial: TrialResult) -> TrialPoint:
    return TrialPoint(
        number=trial.number,
        state=trial.state,
        quality=trial.quality,
        cost=trial.cost,
        sparsity=trial.sparsity,
        settings=trial.describe(),
        is_on_front=trial.is_on_front,
    )
