"""Define `PruningConfig`, the configuration of a pruning run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from secateur._name_patterns import find_pattern
from secateur._registry import find_registered
from secateur._wording import format_value, suggest_name
from secateur._yaml import parse_json_or_yaml, read_source
from secateur.errors import ConfigError, UnknownNameError

__all__ = ["ConfigLike", "PruningConfig", "make_config"]


def _make_name_validator(kind: str) -> AfterValidator:
    """Create a validator that rejects names that are not registered."""

    def check_name(name: Any) -> Any:
        if isinstance(name, str):
            find_registered(kind, name)
        return name

    return AfterValidator(check_name)


def _check_regexes(value: Any) -> Any:
    for pattern in value:
        try:
            re.compile(pattern)
        except (OverflowError, RecursionError, re.error) as error:
            raise ValueError(f"{format_value(pattern)} is not a regular expression: {error}.") from error
    return value


def _wrap_string(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Step = Annotated[int, Field(ge=0)]
Schedule = Callable[[float, float, float], float]
# The annotations are what type checkers accept; values are stored as tuples and dicts.
Types = Annotated[Sequence[str], BeforeValidator(_wrap_string), AfterValidator(tuple)]
Regexes = Annotated[Types, AfterValidator(_check_regexes)]
Rule = Annotated[Mapping[str, Any], AfterValidator(dict)]
Rules = Annotated[Mapping[str, Rule | None], AfterValidator(dict)]

SELECTION_KEYS = frozenset({"op_names", "excluded_op_names", "pruning_op_types"})
NOT_PER_LAYER = SELECTION_KEYS | {"format_version", "layers", "layer_types"}
"""Keys that select layers, and that rules for layers cannot set."""

REGROWING_KINDS = frozenset({"rigl", "set", "sr_ste"})
"""Kinds of run in which pruned units regrow."""

REGROW_FRACTION = 0.3
"""Initial share of the kept units that Evci et al. replace, arXiv:1911.11134."""

SR_STE_DECAY = 2e-4
"""The decay of pruned weights of Zhou et al., arXiv:2102.04010."""

HINTS = {("kind", "'one_shot'"): "one_shot is a schedule: sparsity_decay_type='one_shot'."}
"""(key, invalid value) → hint to append to the error message."""


class PruningConfig(BaseModel):
    r"""The complete configuration of a pruning run.

    A configuration is immutable, validated when it is built, and converts to and from dict, YAML and JSON without loss.
    Steps are optimizer steps, counted from 1; step 0 is before the first one.

    Attributes:
        format_version: Version of the file format.
        pattern: Pattern specification, e.g. ``"4x1"``, ``"2:4"`` (two kept of four), ``"1xchannel"``,
            ``"2:4-transposable"``.
        target_sparsity: Share of units pruned at the end, in [0, 1]. Where units differ in size, as channels of
            different layers do, the share of weights differs. ``None``: 0.9, or the maximum of an N:M pattern.
        pruning_scope: ``"global"`` ranks the units of all layers together, ``"local"`` ranks each layer separately.
            ``None``: global while training, because training compensates, and local in one-shot pruning, where every
            layer is pruned to the target; see `secateur.prune`.
        pruning_group: Name of a group of layers, to be set in `layers` or `layer_types`. Each group is ranked
            separately and reaches its own target.
        criterion: Name of the importance score of a weight; also accepted as ``pruning_type``.
        criterion_reduce_type: How the scores of a unit's weights are reduced to one score.
        score_dtype: Data type of scores that are accumulated over steps.
        kind: ``"iterative"`` prunes whole units step by step; ``"progressive"`` also prunes single weights of the
            next units in between; ``"pattern_lock"`` prunes nothing and keeps the existing zeros. ``"rigl"`` and
            ``"set"`` prune to the target before the first step, and then replace kept units until `end_step`:
            those with the lowest scores are pruned, and as many others regrow, by the magnitude of their gradients or
            at random. ``"sr_ste"``, for N:M patterns, also prunes from the start. Pruned weights are zero in the
            forward pass but keep training until `end_step`, and each update keeps the best weights of a group.
        start_step: Step of the first mask update. It is at least 1 for criteria that need gradients, unless the
            schedule prunes nothing at `start_step`.
        end_step: Step at which the target is reached. ``None``: `start_step`; everything is pruned at once.
        pruning_frequency: Steps between two mask updates. The last one is always at `end_step`, and follows sooner if
            the steps from `start_step` to `end_step` are not a multiple of the frequency.
        sparsity_decay_type: Name of the schedule by which sparsity grows from `start_step` to `end_step`, or a function
            ``(initial, target, progress) -> sparsity``. Only names can be saved to a file.
        progressive_steps: Number of partial updates between two mask updates of a progressive run. If there are fewer
            steps than that, several updates happen in one step.
        regrow_fraction: Only for kinds that regrow: share of the kept units of a layer that is replaced, in (0, 1].
            It decays to zero from step 0 to `end_step` along a cosine.
        sr_ste_decay: Only for ``"sr_ste"``: how strongly the hidden values of pruned weights decay, ≥ 0.
        sparsity_distribution: Only for kinds that regrow, in global scope: how the target is divided over layers.
            ``"er"`` makes the density of a layer proportional to (inputs + outputs) / (inputs · outputs), and ``"erk"``
            includes the sizes of convolution kernels. ``None``: ``"erk"``. In local scope, each layer has the target.
        keep_zeros: Whether units that are all zero at the start count as pruned and stay zero.
        granularity: Only for patterns with units in several layers, such as ``"channels"``: the number of units that
            each group keeps is a multiple of this, such as 8, 16 or 32 for fast kernels, or the group keeps all its
            units. The sparsity is rounded to the nearest such number, within the minimum and maximum sparsity.
        allow_inexact: Only for patterns with units in several layers: whether to prune groups whose pruned units still
            affect the model's outputs through a norm or a softmax over them, so removing them changes the outputs.
        min_sparsity_ratio_per_op: Minimum sparsity of each layer at the end, in [0, 1].
        max_sparsity_ratio_per_op: Maximum sparsity of each layer, in [0, 1]. ``None``: 0.98 in a global ranking, so
            that no layer loses its last unit, and no maximum in a local one. 1.0 lets a layer lose all its units.
        op_names: Regular expressions; only layers whose whole name matches one are pruned. Empty: all.
        excluded_op_names: Regular expressions; layers whose whole name matches one stay dense.
        pruning_op_types: Layer types to prune: class names, or the families ``"Linear"`` and ``"Conv"``.
        reg_type: ``"group_lasso"`` shrinks whole units towards zero until `end_step`.
        reg_coeff: Strength of the regularizer, ≥ 0.
        seed: Seed of the random criterion.
        layers: Regular expression for whole names → settings that differ in these layers; ``None`` leaves them dense.
            The first matching expression applies and takes precedence over rules for types.
        layer_types: Layer type → settings that differ in layers of this type; ``None`` leaves them dense.

    Raises:
        ConfigError: A key is unknown, a value is out of bounds, or two values contradict each other.
        UnknownNameError: A pattern, criterion or schedule is not registered.

    Examples:
        >>> config = PruningConfig(pattern="2:4", layers={r"encoder\.0\..*": None})
        >>> PruningConfig.from_yaml(config.to_yaml()) == config
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    pattern: Annotated[str, _make_name_validator("pattern")] = "4x1"
    target_sparsity: Share | None = None
    pruning_scope: Literal["global", "local"] | None = None
    pruning_group: str | None = None
    criterion: Annotated[str, _make_name_validator("criterion")] = "magnitude"
    criterion_reduce_type: Literal["mean", "sum", "max", "l2"] = "mean"
    score_dtype: Literal["float32", "bfloat16"] = "float32"
    kind: Literal["iterative", "progressive", "pattern_lock", "rigl", "set", "sr_ste"] = "iterative"
    start_step: Step = 1
    end_step: Step | None = None
    pruning_frequency: Annotated[int, Field(ge=1)] = 10
    sparsity_decay_type: Annotated[str | Schedule, _make_name_validator("schedule")] = "cubic"
    progressive_steps: Annotated[int, Field(ge=1)] = 4
    regrow_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = REGROW_FRACTION
    sr_ste_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = SR_STE_DECAY
    sparsity_distribution: Literal["er", "erk"] | None = None
    keep_zeros: bool = False
    granularity: Annotated[int, Field(ge=1)] = 1
    allow_inexact: bool = False
    min_sparsity_ratio_per_op: Share = 0.0
    max_sparsity_ratio_per_op: Share | None = None
    op_names: Regexes = ()
    excluded_op_names: Regexes = ()
    pruning_op_types: Types = ("Linear", "Conv")
    reg_type: Literal["group_lasso"] | None = None
    reg_coeff: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0)] = 0
    layers: Annotated[Rules, AfterValidator(_check_regexes)] = {}
    layer_types: Rules = {}

    if TYPE_CHECKING:  # type checkers derive the constructor from the fields
        pruning_type: str = "magnitude"
    else:

        def __init__(self, /, **data: Any) -> None:
            with _translate_errors():
                super().__init__(**data)

        @property
        def pruning_type(self) -> str:
            """Alias of `criterion`."""
            return self.criterion

    def __hash__(self) -> int:
        """Return equal hashes for equal configurations; of the rules, only the keys are hashed."""
        rules = {"layers": frozenset(self.layers), "layer_types": frozenset(self.layer_types)}
        return hash(tuple((dict(self) | rules).values()))

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Build a configuration from any object that pydantic accepts.

        Raises:
            ConfigError: The input is not a valid configuration.
        """
        with _translate_errors():
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Build a configuration from JSON; see also `from_json`.

        Raises:
            ConfigError: The input is not a valid configuration.
        """
        with _translate_errors():
            return super().model_validate_json(json_data, **options)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a configuration from a mapping with the attribute names as keys.

        Raises:
            ConfigError: The input is not a valid configuration.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"A configuration must be a PruningConfig, a mapping such as {{'pattern': '2:4'}}, or a pattern such "
                f"as '2:4', found {type(data).__name__}."
            )
        return cls(**data)

    @classmethod
    def from_yaml(cls, source: str | Path) -> Self:
        """Read a configuration from YAML or JSON: from a file, given as `Path`, or from a string.

        Raises:
            ConfigError: The file cannot be read, or the text is not a YAML mapping or a valid configuration.
        """
        data = parse_json_or_yaml(read_source(source, "configuration"), "configuration")
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            description = (
                f"the text {format_value(data)}. To read a file, pass a pathlib.Path"
                if _is_path(data)
                else type(data).__name__
            )
            raise ConfigError(f"A configuration must be a mapping of names to values, found {description}.")
        return cls(**data)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a configuration from a JSON string; for files, use `from_yaml`."""
        return cls.from_yaml(text)

    def to_dict(self) -> dict[str, Any]:
        """Convert the configuration to plain lists, dicts, numbers and strings.

        Raises:
            ConfigError: The schedule is a function, which has no registered name.
        """
        rules = {f"{where}: ": rule for where, rule in self._rules() if rule}
        for where, rule in ({"": {"sparsity_decay_type": self.sparsity_decay_type}} | rules).items():
            if callable(rule.get("sparsity_decay_type")):
                raise ConfigError(
                    f"{where}sparsity_decay_type is a function, and a file can only contain a name. "
                    f"Register it with @secateur.register_schedule('my_name') and use that name."
                )
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Convert the configuration to YAML, which `from_yaml` reads back.

        Raises:
            ConfigError: See `to_dict`.
        """
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def to_json(self) -> str:
        """Convert the configuration to JSON, which `from_json` reads back.

        Raises:
            ConfigError: See `to_dict`.
        """
        return json.dumps(self.to_dict(), indent=2)

    @property
    def last_step(self) -> int:
        """Step at which the target is reached: `end_step`, or `start_step` if everything is pruned at once."""
        if self.end_step is None or self.sparsity_decay_type == "one_shot":
            return self.start_step
        return self.end_step

    @property
    def has_regrowth(self) -> bool:
        """Whether pruned units regrow in a run of this kind."""
        return self.kind in REGROWING_KINDS

    def for_layer(self, name: str, types: tuple[str, ...]) -> PruningConfig | None:
        """Return the configuration of one layer, from the rule for its name or else its type.

        Args:
            name: The layer's name in the model.
            types: The layer's type and families, most specific first.

        Returns:
            The layer's configuration, without rules; ``None`` if the layer stays dense.
        """
        rule: Mapping[str, Any] | None = {}
        if (pattern := find_pattern(self.layers, name)) is not None:
            rule = self.layers[pattern]
        elif kinds := [kind for kind in types if kind in self.layer_types]:
            rule = self.layer_types[kinds[0]]
        return None if rule is None else self._apply_rule(rule)

    def _apply_rule(self, rule: Mapping[str, Any]) -> PruningConfig:
        # These are already valid, and checking thousands of names for each layer would take minutes.
        selection = {key: getattr(self, key) for key in SELECTION_KEYS}
        settings = self.model_dump(exclude={*SELECTION_KEYS, "layers", "layer_types"}) | _rename_keys(rule)
        return PruningConfig(**settings).model_copy(update=selection)

    def _rules(self) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
        for where, rules in (("layers", self.layers), ("layer_types", self.layer_types)):
            yield from ((f"{where}[{format_value(key)}]", rule) for key, rule in rules.items())

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = {*cls.model_fields, "pruning_type"}
        for key in data:
            if key not in known:
                raise ValueError(
                    f"Unknown key {format_value(key)}.{suggest_name(key, known)} Known: {', '.join(sorted(known))}."
                )
        if "criterion" in data and "pruning_type" in data:
            raise ValueError("'criterion' and 'pruning_type' are two names for the same setting. Use only one of them.")
        return _rename_keys(data)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.end_step is not None and self.start_step > self.end_step:
            raise ValueError(
                f"start_step must not be greater than end_step, found {self.start_step} > {self.end_step}."
            )
        low, high = self.min_sparsity_ratio_per_op, self.max_sparsity_ratio_per_op
        if high is not None and low > high:
            raise ValueError(
                f"min_sparsity_ratio_per_op must not be greater than max_sparsity_ratio_per_op, found {low} > {high}."
            )
        if self.kind == "pattern_lock" and self.reg_type is not None:
            raise ValueError("reg_type has no effect with kind='pattern_lock', which prunes nothing. Leave it out.")
        if (problem := _find_regrowth_problem(self)) is not None:
            raise ValueError(problem)
        for where, rule in self._rules():
            self._check_rule(where, rule)
        return self

    def _check_rule(self, where: str, rule: Mapping[str, Any] | None) -> None:
        if not rule:
            return
        if misplaced := sorted(NOT_PER_LAYER & rule.keys()):
            raise ValueError(f"{where}: {', '.join(misplaced)} cannot be set per layer.")
        try:
            self._apply_rule(rule)
        except ConfigError as error:
            raise type(error)(f"{where}: {error}") from error


ConfigLike = PruningConfig | Mapping[str, Any] | str
"""The types that functions accept as a configuration; a string is a pattern."""


def make_config(config: ConfigLike) -> PruningConfig:
    """Return a configuration; a mapping has its keys, and a string is its pattern.

    Raises:
        ConfigError: The configuration is not valid.

    Examples:
        >>> make_config("2:4") == PruningConfig(pattern="2:4")
        True
    """
    if isinstance(config, str):
        if _is_path(config):
            raise ConfigError(
                f"A configuration that is a string must be a pattern such as '2:4', found {config!r}. To read a file, "
                f"use secateur.PruningConfig.from_yaml(pathlib.Path({config!r}))."
            )
        return PruningConfig(pattern=config)
    return config if isinstance(config, PruningConfig) else PruningConfig.from_dict(config)


def _is_path(data: Any) -> bool:
    return isinstance(data, str) and data.endswith((".yaml", ".yml", ".json"))


def _rename_keys(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {"criterion" if key == "pruning_type" else key: value for key, value in rule.items()}


def _find_regrowth_problem(config: PruningConfig) -> str | None:
    """Find a setting that contradicts a kind that regrows."""
    if not config.has_regrowth:
        return None
    if config.end_step is None:
        return (
            f"end_step must be set with kind={config.kind!r}: the step at which masks stop changing, found None. Set "
            f"it to about three quarters of the training steps."
        )
    for key, default in (("sparsity_decay_type", "cubic"), ("keep_zeros", False), ("reg_type", None)):
        if (value := getattr(config, key)) != default:
            return f"{key}={value!r} has no effect with kind={config.kind!r}. Set {key}={default!r}."
    if config.pruning_scope == "local" and config.sparsity_distribution is not None:
        return (
            f"sparsity_distribution={config.sparsity_distribution!r} has no effect with pruning_scope='local', which "
            f"prunes every layer to the target. Set sparsity_distribution=None or pruning_scope='global'."
        )
    return None


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        causes = [problem.get("ctx", {}).get("error") for problem in error.errors(include_url=False)]
        error_type = UnknownNameError if all(isinstance(cause, UnknownNameError) for cause in causes) else ConfigError
        raise error_type(_format_problems(error)) from error


def _format_problems(error: ValidationError) -> str:
    """Format one line per problem: the key, what is wrong, and the value."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "value_error":
            is_clear = not where or isinstance(problem["ctx"]["error"], UnknownNameError)
            lines.append(message if is_clear else f"{where}: {message}")
        else:
            value = format_value(problem["input"])
            hint = f" {HINTS[where, value]}" if (where, value) in HINTS else ""
            lines.append(f"{where}: {message}, found {value}.{hint}")
    return "\n".join(lines)
