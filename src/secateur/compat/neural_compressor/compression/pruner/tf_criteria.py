"""Score weights of Keras layers, as `neural_compressor.compression.pruner.tf_criteria`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from secateur._wording import suggest_name
from secateur.compat.neural_compressor._user_criteria import TF_CRITERIA, register_in
from secateur.compat.neural_compressor.compression.pruner.criteria import PruningCriterion as ModulePruningCriterion
from secateur.config import PruningConfig
from secateur.criteria import get_criterion as get_core_criterion
from secateur.errors import UnknownNameError

__all__ = ["CRITERIA", "MagnitudeCriterion", "PruningCriterion", "get_tf_criterion", "register_criterion"]

CRITERIA = TF_CRITERIA

Class = TypeVar("Class", bound=type)


def register_criterion(name: str) -> Callable[[Class], Class]:
    """Create a decorator that registers a criterion for Keras, in place of another one of the same name."""
    return register_in(TF_CRITERIA, name)


def get_tf_criterion(config: Any, modules: Mapping[str, Any]) -> Any:
    """Create the criterion that is registered under ``config["criterion_type"]``.

    Raises:
        UnknownNameError: No criterion has this name.
    """
    name = config["criterion_type"]
    if name not in TF_CRITERIA:
        raise UnknownNameError(
            f"Unknown criterion_type {name!r}.{suggest_name(str(name), TF_CRITERIA)} Known: {', '.join(TF_CRITERIA)}."
        )
    return TF_CRITERIA[name](modules, config)


class LayerCriterion(ModulePruningCriterion):
    """Base class of criteria for Keras layers.

    Args:
        modules: Layer name → layer.
        config: An element of ``pruning_configs`` with all keys.
        pattern: Not used.
    """

    def __init__(self, modules: Mapping[str, Any], config: Any, pattern: Any = None) -> None:
        super().__init__(modules, config, pattern)


@register_criterion("magnitude")
class LayerMagnitude(LayerCriterion):
    """Scores by the absolute value of the weight."""

    def on_step_begin(self) -> None:
        """Score the weights."""
        for name, layer in self.modules.items():
            criterion = get_core_criterion(PruningConfig(criterion="magnitude"), name)
            self.scores[name] = criterion.score(layer.get_weights()[0], None)


PruningCriterion = LayerCriterion
MagnitudeCriterion = LayerMagnitude
