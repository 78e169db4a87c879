"""Read and check the arguments of a sensitivity scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from secateur._wording import format_list, format_value
from secateur.config import PruningConfig, make_config
from secateur.errors import CalibrationError, ConfigError, UnsupportedModelError
from secateur.oneshot import Execution
from secateur.patterns.base import get_pattern_class

__all__ = ["SCANNED_KEYS", "ScanRequest", "read_scan_request"]

MEASURED_ERRORS = ("layer", "block")
"""Metrics that are measured from calibration data."""

SCANNED_KEYS = frozenset(
    {"pattern", "target_sparsity", "min_sparsity_ratio_per_op", "max_sparsity_ratio_per_op", "pruning_scope"}
)
"""Settings of patterns and sparsities, which a scan varies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRequest:
    """The arguments of a scan.

    Attributes:
        patterns: The patterns.
        sparsities: The sparsities, in ascending order.
        metric: ``"layer"``, ``"block"`` or a function of the model.
        higher_is_better: Whether higher values of the function are better.
        solver: The name of the solver, or a solver object.
        config: Which layers to measure, and by which criterion.
        execution: The device, where inputs are stored, and the callback for progress.
    """

    patterns: tuple[str, ...]
    sparsities: tuple[float, ...]
    metric: str | Callable[[Any], float]
    higher_is_better: bool
    solver: Any
    config: PruningConfig
    execution: Execution

    @property
    def metric_name(self) -> str:
        """The name of the metric."""
        if isinstance(self.metric, str):
            return self.metric
        name = str(getattr(self.metric, "__name__", type(self.metric).__name__))
        return "the metric" if name in (*MEASURED_ERRORS, "<lambda>") else name

    @property
    def function(self) -> Callable[[Any], float] | None:
        """The function that measures the model; ``None``: errors of outputs are measured."""
        return None if isinstance(self.metric, str) else self.metric

    def make_config(self, pattern: str) -> PruningConfig:
        """Return the configuration with a pattern, which prunes nothing yet."""
        scanned = {"pattern": pattern, "target_sparsity": 0.0, "pruning_scope": "local"}
        return PruningConfig.from_dict(dict(self.config) | scanned)


def read_scan_request(
    arguments: Mapping[str, Any], execution: Execution | None, *, higher_is_better: bool, has_data: bool
) -> ScanRequest:
    """Check the arguments of `secateur.sensitivity`.

    Args:
        arguments: Its arguments `patterns`, `sparsities`, `metric`, `config` and `solver`.
        execution: Its argument `execution`.
        higher_is_better: Its argument `higher_is_better`.
        has_data: Whether there is calibration data.

    Raises:
        SecateurError: An argument is invalid.
    """
    metric = _read_metric(arguments["metric"], has_data=has_data)
    if higher_is_better and isinstance(metric, str):
        raise ConfigError(
            f"higher_is_better is for a metric that is a function, and metric={metric!r} is an error. Leave it out."
        )
    solver = arguments["solver"]
    return ScanRequest(
        patterns=_read_patterns(arguments["patterns"]),
        sparsities=_read_sparsities(arguments["sparsities"]),
        metric=metric,
        higher_is_better=higher_is_better,
        solver=("wanda" if has_data else "magnitude") if solver is None else solver,
        config=_read_layer_config(arguments["config"]),
        execution=_read_execution(execution, metric),
    )


def _read_metric(metric: Any, *, has_data: bool) -> str | Callable[[Any], float]:
    if isinstance(metric, str) and metric in MEASURED_ERRORS:
        if not has_data:
            raise CalibrationError(
                f"metric={metric!r} needs calibration data, found none. Pass calibration=batches, or a function of the "
                f"model as metric."
            )
        return metric
    if isinstance(metric, str) or not callable(metric):
        raise ConfigError(
            f"metric must be 'layer', 'block' or a function of the model that returns a number, found "
            f"{format_value(metric)}."
        )
    function: Callable[[Any], float] = metric
    return function


def _read_patterns(patterns: Any) -> tuple[str, ...]:
    names = (patterns,) if isinstance(patterns, str) else tuple(patterns) if isinstance(patterns, Iterable) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ConfigError(
            f"patterns must be one or more different patterns, such as ['1x1', '2:4'], found {format_value(patterns)}."
        )
    if coupled := [name for name in names if get_pattern_class(name).coupling is not None]:
        raise UnsupportedModelError(
            f"patterns must prune single layers, and {coupled[0]!r} couples layers. Leave it out; under a budget, "
            f"secateur.slim measures what each group of units loses."
        )
    return names


def _read_sparsities(sparsities: Any) -> tuple[float, ...]:
    values = (
        tuple(sparsities) if isinstance(sparsities, Iterable) and not isinstance(sparsities, str) else (sparsities,)
    )
    try:
        shares = tuple(sorted(float(value) for value in values if not isinstance(value, str | bool)))
    except (TypeError, ValueError):
        shares = ()
    if not shares or len(set(shares)) < len(values) or not all(0 < share <= 1 for share in shares):
        raise ConfigError(
            f"sparsities must be one or more different numbers in (0, 1], such as [0.25, 0.5], found "
            f"{format_value(values)}."
        )
    return shares


def _read_layer_config(config: Any) -> PruningConfig:
    if config is None:
        return PruningConfig()
    settings = make_config(config)
    rules = [rule for rules in (settings.layers, settings.layer_types) for rule in rules.values() if rule]
    if found := sorted(SCANNED_KEYS & {*settings.model_fields_set, *(key for rule in rules for key in rule)}):
        raise ConfigError(
            f"config must only select layers, and it sets {format_list(found)}, which a scan varies. Pass patterns and "
            f"sparsities."
        )
    return settings


def _read_execution(execution: Execution | None, metric: Any) -> Execution:
    execution = execution or Execution()
    plain = Execution(device=execution.device, offload=execution.offload, progress=execution.progress)
    if replace(execution, processes="all") != plain:
        raise ConfigError("execution of a scan must not set folder, weights or keep_parts, because nothing is written.")
    if execution.device is not None and callable(metric):
        raise ConfigError(
            f"execution must not set a device if metric is a function, which runs the whole model, found "
            f"{execution.device!r}. Move the model: model.to(...)."
        )
    return execution
