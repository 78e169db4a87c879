"""What pruning says that it did, to be proved and kept with the weights."""

from __future__ import annotations

from typing import Any

from secateur._wording import format_list
from secateur.artifact.manifest import Claim, explain_invalid
from secateur.artifact.source import Source
from secateur.config import PruningConfig
from secateur.errors import StateError
from secateur.results import PruningReport

__all__ = ["claims_of", "configs_of"]


def claims_of(report: PruningReport, source: Source) -> dict[str, Claim]:
    """Layer → what it was pruned to.

    Raises:
        StateError: The report is of another model.
    """
    layers = {tensor.layer for tensor in source.tensors.values()}
    if strange := [layer.name for layer in report.layers if layer.name not in layers]:
        raise StateError(f"The report is of another model: this one has no {format_list(map(repr, strange))}.")
    with explain_invalid("the report"):
        return {
            layer.name: Claim(pattern=layer.pattern, units=layer.units, pruned_units=layer.pruned_units)
            for layer in report.layers
        }


def configs_of(report: PruningReport) -> list[dict[str, Any]]:
    """The configurations of a run, as plain values."""
    return list(map(_plain, report.configs))


def _plain(config: PruningConfig) -> dict[str, Any]:
    """A configuration as a file can hold it: of a schedule that is a function, the name."""
    schedule = config.sparsity_decay_type
    if callable(schedule):
        config = config.model_copy(update={"sparsity_decay_type": getattr(schedule, "__name__", "a function")})
    return config.to_dict()
