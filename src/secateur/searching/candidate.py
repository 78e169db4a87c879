"""From the values of a trial to the configurations with which a model is slimmed and pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from secateur._wording import format_count
from secateur.config import PruningConfig
from secateur.errors import ConfigError
from secateur.searching.layer_groups import LayerGroup
from secateur.searching.space import Choices, PruningSpace, Range, is_full_pattern, label_choice

__all__ = ["CandidateFactory", "SearchAxis", "SearchCandidate"]

MAX_POINTS = 100_000
"""Maximum number of points of a grid."""


@dataclass(frozen=True, slots=True)
class SearchAxis:
    """A setting that a trial chooses.

    Attributes:
        name: Its name, such as ``"sparsity[fc1]"``.
        choices: Its values; choices that are not numbers are labels.
    """

    name: str
    choices: Choices

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return isinstance(self.choices, Range) or isinstance(self.choices[0], float)

    def list_values(self) -> tuple[Any, ...]:
        """Return all values.

        Raises:
            ConfigError: It is a range without a step.
        """
        if not isinstance(self.choices, Range):
            return self.choices
        if self.choices.step is None:
            raise ConfigError(
                f"The sampler 'grid' needs a finite space, and {self.name!r} is a range without a step. Set its step, "
                f"such as Range({self.choices.low}, {self.choices.high}, step=0.1), or list its values."
            )
        return self.choices.list_values()

    def interpolate(self, share: float) -> float:
        """Return the value at a share of the axis, from the smallest (0) to the largest (1)."""
        if isinstance(self.choices, Range) and self.choices.step is None:
            return self.choices.low + share * (self.choices.high - self.choices.low)
        values = self.list_values()
        return float(values[round(share * (len(values) - 1))])

    def find_nearest(self, value: float) -> float:
        """Return the value of a numeric axis that is nearest to another one."""
        if isinstance(self.choices, Range) and self.choices.step is None:
            return min(max(value, self.choices.low), self.choices.high)
        return float(min(self.list_values(), key=lambda own: abs(own - value)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchCandidate:
    """How a trial slims and prunes a copy of the model.

    Attributes:
        config: Configuration for `secateur.prune`; ``None``: weights are not pruned.
        options: Other arguments of `secateur.prune`: the solver and the refiners.
        slim_config: Configuration for `secateur.slim`, which comes first; ``None``: the model is not slimmed.
        slim_options: Other arguments of `secateur.slim`.
    """

    config: PruningConfig | None
    options: dict[str, Any]
    slim_config: PruningConfig | None
    slim_options: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFactory:
    """Lists the settings that a trial chooses, and makes candidates from their values.

    Attributes:
        space: The space.
        base: Settings of all configurations for pruning.
        slim_base: Settings of all configurations for slimming.
        groups: The groups of layers with their own settings.
        layers: Pattern → the layers that it can prune.
        sizes: Layer → number of its weights.
        digests: Layer → digest of its dense weight.
    """

    space: PruningSpace
    base: dict[str, Any]
    slim_base: dict[str, Any]
    groups: Sequence[LayerGroup]
    layers: Mapping[str, frozenset[str]]
    sizes: Mapping[str, int]
    digests: Mapping[str, str] = field(default_factory=dict)

    def iterate_axes(self, values: Mapping[str, Any]) -> Iterator[SearchAxis]:
        """Yield the settings to choose; some depend on values that must be set before the next one is read.

        Args:
            values: Name of a setting → its value, for all that were yielded.
        """
        space = self.space
        if space.width != (1.0,):
            yield SearchAxis("width", space.width)
            if len(space.slim_solver) > 1 and values["width"] < 1:
                yield SearchAxis("slim_solver", tuple(map(label_choice, space.slim_solver)))
        if space.pattern:
            if len(space.pattern) > 1:
                yield SearchAxis("pattern", space.pattern)
            yield from self._iterate_sparsities(values)
            for name in ("solver", "refine"):
                choices = tuple(map(label_choice, getattr(space, name)))
                if len(choices) > 1:
                    yield SearchAxis(name, choices)

    def _iterate_sparsities(self, values: Mapping[str, Any]) -> Iterator[SearchAxis]:
        pattern = values.get("pattern", self.space.pattern[0])
        in_groups = {layer for group in self.groups for layer in group.layers}
        if not is_full_pattern(pattern) and self.layers[pattern] - in_groups:
            yield SearchAxis("sparsity", self.space.sparsity)
        for group in self.groups:
            if group.pattern is not None and len(group.pattern) > 1:
                yield SearchAxis(f"pattern[{group.name}]", group.pattern)
            own = self._get_pattern(group, values)
            if not is_full_pattern(own) and self.layers[own] & set(group.layers):
                yield SearchAxis(f"sparsity[{group.name}]", group.sparsity)

    def _get_pattern(self, group: LayerGroup, values: Mapping[str, Any]) -> str:
        if group.pattern is None:
            return str(values.get("pattern", self.space.pattern[0]))
        return str(values.get(f"pattern[{group.name}]", group.pattern[0]))

    def list_points(self) -> list[dict[str, Any]]:
        """Return the values of all candidates.

        Raises:
            ConfigError: The space is not finite, or has more than `MAX_POINTS` candidates.
        """
        points, partial = list[dict[str, Any]](), [dict[str, Any]()]
        while partial:
            values = partial.pop()
            axis = next((axis for axis in self.iterate_axes(values) if axis.name not in values), None)
            if axis is None:
                points.append(values)
            else:
                partial += [{**values, axis.name: value} for value in reversed(axis.list_values())]
            if len(points) + len(partial) > MAX_POINTS:
                raise ConfigError(
                    f"The sampler 'grid' evaluates every candidate, and this space has more than "
                    f"{format_count(MAX_POINTS, 'candidate')}. Use another sampler, or fewer values."
                )
        return points

    def describe(self) -> dict[str, Any]:
        """Return all choices and the common settings as plain values."""
        own = [_describe_choices(getattr(self.space, entry.name)) for entry in fields(self.space)[:-1]]
        return {
            **dict(zip([entry.name for entry in fields(self.space)], own, strict=False)),
            "groups": {
                group.expression: [_describe_choices(group.pattern or ()), _describe_choices(group.sparsity)]
                for group in self.groups
            },
            "config": {key: str(value) for key, value in sorted((self.base | self.slim_base).items())},
        }

    def make_level(self, share: float, pattern: str, turn: int) -> dict[str, Any]:
        """Return values that are at the same share of each numeric axis.

        Args:
            share: 0 for the largest model, 1 for the smallest.
            pattern: The pattern.
            turn: Index of the choices of other axes, which take turns.
        """
        values: dict[str, Any] = {}
        for axis in self.iterate_axes(values):
            if axis.is_number:
                values[axis.name] = axis.interpolate(1 - share if axis.name == "width" else share)
            elif axis.name == "pattern":
                values[axis.name] = pattern
            else:
                values[axis.name] = axis.list_values()[turn % len(axis.list_values())]
        return values

    def make_candidate(self, values: Mapping[str, Any]) -> SearchCandidate:
        """Return the candidate with some values."""
        width = values.get("width", 1.0 if self.space.width == (1.0,) else None)
        return SearchCandidate(
            config=self._make_config(values) if self.space.pattern else None,
            options={"solver": self._choose("solver", values), "refine": self._choose("refine", values)},
            slim_config=None if width == 1.0 else self._make_slim_config(width),
            slim_options={"solver": self._choose("slim_solver", values)},
        )

    def _choose(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return the choice whose label is the value."""
        by_label = {label_choice(choice): choice for choice in getattr(self.space, name)}
        return by_label[values.get(name, next(iter(by_label)))]

    def _make_slim_config(self, width: Any) -> PruningConfig:
        return PruningConfig(**self.slim_base, pattern="channels", target_sparsity=round(1 - width, 12))

    def _make_config(self, values: Mapping[str, Any]) -> PruningConfig:
        pattern = values.get("pattern", self.space.pattern[0])
        own_rules, rules = dict(self.base.get("layers") or {}), dict[str, Any]()
        for group in self.groups:
            own = self._get_pattern(group, values)
            if self.layers[own] & set(group.layers):
                rule: dict[str, Any] = {} if own == pattern else {"pattern": own}
                if (sparsity := values.get(f"sparsity[{group.name}]")) is not None:
                    rule["target_sparsity"] = sparsity
                elif "sparsity" in values:
                    rule["target_sparsity"] = None
                rules[group.expression] = rule
        return PruningConfig(
            **{key: value for key, value in self.base.items() if key != "layers"},
            pattern=pattern,
            target_sparsity=values.get("sparsity"),
            layers=own_rules | {key: rule for key, rule in rules.items() if key not in own_rules},
        )


def _describe_choices(choices: Choices) -> Any:
    return asdict(choices) if isinstance(choices, Range) else list(map(label_choice, choices))
