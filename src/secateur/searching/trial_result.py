"""The result of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

from secateur.config import PruningConfig
from secateur.errors import ConfigError
from secateur.results import Column, LayerRecord, LayerShares, LayerSharesSource, Row, describe_config
from secateur.searching.candidate import SearchCandidate
from secateur.searching.space import label_choice

__all__ = ["TrialResult", "find_front"]

FRONT_MARK = "●"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult(Row, LayerSharesSource):
    """One trial of a search: its settings, and what they cost and achieve.

    Attributes:
        number: Its number, from 0.
        values: Name of a setting → its value.
        state: ``"complete"``; ``"pruned"``, if it was not worth finishing; or ``"failed"``.
        cost: Cost of the pruned model; ``None``: not measured.
        quality: Value of the objective; ``None``: not measured.
        sparsity: Share of the weights of the dense model that are zero or removed, in [0, 1].
        error: Geometric mean of the share of output energy that layers lost on the calibration data.
        group_errors: Sparsity of a group → sum of the shares of its layers.
        screen: Value of the cheap first evaluation.
        seconds: Duration.
        reason: Why it was pruned or failed.
        repeats: Number of the trial with the same settings whose result this is.
        layers: The layers that were pruned, and how much of each.
        is_on_front: Whether no other trial costs no more and achieves no less, and is better in one of them.
        candidate: The configurations and other arguments.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column(">trial", "number"),
        Column("front", lambda row: FRONT_MARK if row.is_on_front else ""),
        Column(">quality", "quality", "{:.5g}"),
        Column(">cost", "cost", "{:,.6g}"),
        Column(">sparsity", "sparsity", "{:.1%}"),
        Column("settings", lambda row: row.describe()),
    )
    computed: ClassVar[tuple[str, ...]] = ("configs",)
    omitted: ClassVar[tuple[str, ...]] = ("candidate", "layers")

    number: int
    values: dict[str, Any]
    state: Literal["complete", "pruned", "failed"]
    cost: float | None = None
    quality: float | None = None
    sparsity: float | None = None
    error: float | None = None
    group_errors: dict[str, float] | None = None
    screen: float | None = None
    seconds: float = 0.0
    reason: str = ""
    repeats: int | None = None
    layers: tuple[LayerRecord, ...] = field(default=(), repr=False)
    is_on_front: bool = False
    candidate: SearchCandidate | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Return the result that `to_stored` described."""
        layers = [{**layer, "shape": tuple(layer["shape"])} for layer in stored.get("layers", ())]
        return cls(**{**stored, "layers": tuple(LayerRecord(**layer) for layer in layers)})

    def to_stored(self) -> dict[str, Any]:
        """Return what is stored, as plain values."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in NOT_STORED}
        layers = [{name: getattr(layer, name) for name in STORED_OF_LAYER} for layer in self.layers]
        return plain | {"layers": layers}

    def describe_model(self, candidate: SearchCandidate, digests: Mapping[str, str]) -> Self:
        """Return the result with what is not stored, because it is the same in each call that resumes a search.

        Args:
            candidate: The configurations with its values.
            digests: Layer → digest of its dense weight.
        """
        layers = tuple(replace(layer, sha256=digests.get(layer.name)) for layer in self.layers)
        return replace(self, candidate=candidate, layers=layers)

    def get_layer_shares(self) -> LayerShares:
        """Return how much of each layer the trial has pruned.

        ``secateur.prune(model, config, allocation=trial)`` distributes the target of a configuration in the same
        proportions.

        Raises:
            ConfigError: The trial failed, did not prune weights, or slimmed the model first.
        """
        if self.slim_config is not None:
            raise ConfigError(
                f"trial {self.number} slims the model to a width of {1 - (self.slim_config.target_sparsity or 0):.3g}, "
                f"and allocation distributes a target over the layers of the model as it was. Choose a trial without a "
                f"width, or repeat this one: secateur.slim(model, trial.slim_config, **trial.slim_options), and then "
                f"secateur.prune(model, trial.config, **trial.options)."
            )
        if not self.layers:
            raise ConfigError(
                f"trial {self.number} must have pruned layers to be an allocation, and it has not: "
                f"{self.reason or 'it prunes no weights'}. Choose a trial of the front."
            )
        return LayerShares(origin=f"trial {self.number} of the search", layers=self.layers)

    @property
    def config(self) -> PruningConfig | None:
        """The configuration for `secateur.prune`; ``None``: weights were not pruned."""
        return None if self.candidate is None else self.candidate.config

    @property
    def options(self) -> dict[str, Any]:
        """The solver and refiners, as arguments of `secateur.prune`."""
        return {} if self.candidate is None else self.candidate.options

    @property
    def slim_config(self) -> PruningConfig | None:
        """The configuration for `secateur.slim`, which comes before pruning; ``None``: the model was not slimmed."""
        return None if self.candidate is None else self.candidate.slim_config

    @property
    def slim_options(self) -> dict[str, Any]:
        """The solver, as an argument of `secateur.slim`."""
        return {} if self.candidate is None else self.candidate.slim_options

    @property
    def configs(self) -> dict[str, Any]:
        """The configurations and other arguments as plain values, in the order in which they apply."""
        steps = (("slim", self.slim_config, self.slim_options), ("prune", self.config, self.options))
        return {
            name: {"config": describe_config(config), **{key: label_choice(value) for key, value in options.items()}}
            for name, config, options in steps
            if config is not None
        }

    @property
    def is_dimmed(self) -> bool:
        """See `Row.is_dimmed`: trials that are not on the front."""
        return not self.is_on_front

    def describe(self) -> str:
        """Return the settings on one line, and why there is no result."""
        settings = ", ".join(f"{name}={_format_setting(value)}" for name, value in self.values.items())
        return f"{settings} – {self.state}: {self.reason}" if self.reason else settings


def find_front(trials: Sequence[TrialResult], direction: str) -> tuple[TrialResult, ...]:
    """Mark the trials on the Pareto front. Of trials with equal cost and quality, only the first one is on it."""
    sign = 1 if direction == "maximize" else -1
    complete = [trial for trial in trials if trial.state == "complete"]
    best, front = -float("inf"), set()
    for trial in sorted(complete, key=lambda trial: (trial.cost, -sign * trial.quality, trial.number)):  # type: ignore[operator]
        assert trial.quality is not None
        if sign * trial.quality > best:
            best = sign * trial.quality
            front.add(trial.number)
    return tuple(replace(trial, is_on_front=trial.number in front) for trial in trials)


NOT_STORED = frozenset({"is_on_front", "candidate"})

STORED_OF_LAYER = ("name", "shape", "pattern", "weights", "sparsity", "units", "pruned_units")
"""What is stored of each layer of a trial."""


def _format_setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
