"""Assign the layers of a model to the elements of a configuration, and check them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from secateur._wording import format_count, format_list
from secateur.compat._layer_settings import match_names
from secateur.compat.neural_compressor._elements import Layer, match_layers
from secateur.compat.neural_compressor._translation import translate_element
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.compat.neural_compressor.utils.utility import DotDict
from secateur.config import PruningConfig
from secateur.errors import LayerError
from secateur.graph import Graph
from secateur.masking.run_options import RunOptions
from secateur.planning.planner import Plan

__all__ = ["MakeOptions", "Part", "assign_parts", "summarize_sparsity"]

logger = logging.getLogger(__name__)

MakeOptions = Callable[[float | None], RunOptions]
"""Returns the options of a run, given the learning rate of group lasso."""

MakePlan = Callable[[PruningConfig], Plan]
"""Plans a configuration for the model."""


class Part(NamedTuple):
    """An element with its layers.

    Attributes:
        element: The element, with all keys, which may change until the run starts.
        modules: Layer name → layer.
        graph: The dependencies between the parameters of the model; ``None``: they were not traced.
    """

    element: DotDict
    modules: dict[str, Any]
    graph: Graph | None = None

    @property
    def config(self) -> PruningConfig:
        """The configuration that prunes these layers."""
        types = tuple(dict.fromkeys(type(module).__name__ for module in self.modules.values()))
        selection = {"op_names": (match_names(self.modules),), "pruning_op_types": types}
        return PruningConfig(**translate_element(self.element), **(selection if self.modules else {}))


def assign_parts(
    config: WeightPruningConfig,
    layers: Mapping[Layer, Any],
    names: Collection[str],
    make_plan: MakePlan,
    graph: Graph | None = None,
) -> list[Part]:
    """Return the elements with their layers; a warning names layers that cannot be pruned.

    Args:
        config: The configuration.
        layers: Each layer with a weight of at least two axes.
        names: Names of all modules.
        make_plan: Plans a configuration for the model.
        graph: See `Part`.

    Raises:
        SecateurError: The configuration does not fit the model.
    """
    elements = config.complete_elements()
    modules = {layer.name: module for layer, module in layers.items()}
    parts = []
    for index, element in enumerate(elements):
        where = f"pruning_configs[{index}]" if len(elements) > 1 else "The configuration"
        matched = match_layers(element, list(layers), names, where)
        part = Part(element, {name: modules[name] for name in matched}, graph)
        if part.modules:
            _check_part(part, where, make_plan)
        parts.append(part)
    return parts


def summarize_sparsity(counts: Mapping[str, tuple[Sequence[int], int]]) -> tuple[Any, float]:
    """Return a table of the zeros of each weight, with the totals in its last row, and their share in percent.

    Args:
        counts: Name of a weight → its shape and its number of zeros.

    Returns:
        A pandas ``DataFrame`` where pandas is installed, and otherwise a list of dictionaries; and the share.
    """
    sizes = {name: math.prod(shape) for name, (shape, _) in counts.items()}
    rows = [_make_row(name, list(shape), sizes[name], zeros) for name, (shape, zeros) in counts.items()]
    total, zeros = sum(sizes.values()), sum(zeros for _, zeros in counts.values())
    rows.append(_make_row("Total sparsity:", total, total, zeros))
    share = 100 * zeros / total if total else 0.0
    if find_spec("pandas") is None:
        return rows, share
    return import_module("pandas").DataFrame(rows), share


def _make_row(name: str, shape: Any, size: int, zeros: int) -> dict[str, Any]:
    return {
        "Name": name,
        "Shape": shape,
        "NNZ (dense)": size - zeros,
        "NNZ (sparse)": zeros,
        "Sparsity(%)": 100 * zeros / size if size else 0.0,
    }


def _check_part(part: Part, where: str, make_plan: MakePlan) -> None:
    """Check that an element fits its layers; a warning names layers that it cannot prune."""
    try:
        _limit_target(part, where, make_plan)
        reasons = make_plan(part.config).dense
    except LayerError as error:
        logger.warning("%s prunes nothing. %s", where, error)
        part.modules.clear()
        return
    dense = [f"{name!r} ({reason})" for name, reason in reasons.items() if name in part.modules]
    if dense:
        logger.warning(
            "%s that the configuration matches cannot be pruned: %s.",
            format_count(len(dense), "layer"),
            format_list(dense, limit=3),
        )


def _limit_target(part: Part, where: str, make_plan: MakePlan) -> None:
    """Lower the target of an element to the maximum that its layers allow, with a warning."""
    config = part.config
    if config.kind == "pattern_lock" or config.target_sparsity is None or ":" in config.pattern:
        return
    patterns = make_plan(config.model_copy(update={"target_sparsity": 0.0, "min_sparsity_ratio_per_op": 0.0})).patterns
    total = sum(units.count for pattern in patterns for units in pattern.units.values())
    most = sum(bound for pattern in patterns for bound in pattern.budget.upper_bounds().values())
    if total and round(config.target_sparsity * total) > most:
        logger.warning(
            "%s: max_sparsity_ratio_per_op=%s allows pruning %d of %d units, so target_sparsity=%s counts as %.6g.",
            where,
            config.max_sparsity_ratio_per_op,
            most,
            total,
            config.target_sparsity,
            most / total,
        )
        part.element["target_sparsity"] = most / total
