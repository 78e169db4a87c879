"""Score weights, as `neural_compressor.compression.pruner.criteria`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

from secateur._wording import suggest_name
from secateur.compat.neural_compressor._user_criteria import CRITERIA, register_in
from secateur.config import PruningConfig
from secateur.criteria import CRITERIA as CORE_CRITERIA
from secateur.errors import ScoreError, UnknownNameError, UnsupportedModelError
from secateur.frameworks import get_framework

__all__ = [
    "CRITERIA",
    "BlockMaskCriterion",
    "GradientCriterion",
    "MagnitudeCriterion",
    "PruningCriterion",
    "RetrainFreeCriterion",
    "SnipCriterion",
    "SnipMomentumCriterion",
    "get_criterion",
    "register_criterion",
]

Class = TypeVar("Class", bound=type)


def register_criterion(name: str) -> Callable[[Class], Class]:
    """Create a decorator that registers a criterion, in place of another one of the same name.

    ``pruning_type=name`` then ranks by it, and ``name + "_progressive"`` prunes in parts. Its class is created with the
    layers, the element and the pattern. Each step calls ``on_before_optimizer_step`` and ``on_after_optimizer_step``,
    and each update ``on_step_begin``; then ``scores`` must have a tensor for each layer, with one score per weight or
    per unit, higher for what to keep. While ``scores`` is empty, updates are skipped.

    Examples:
        >>> @register_criterion("squared")
        ... class Squared(PruningCriterion):
        ...     def on_step_begin(self):
        ...         for name, module in self.modules.items():
        ...             self.scores[name] = module.weight.detach() ** 2
        >>> CRITERIA.pop("squared").__name__
        'Squared'
    """
    return register_in(CRITERIA, name)


def get_criterion(config: Any, modules: Mapping[str, Any], pattern: Any, masks: Any = None) -> Any:
    """Create the criterion that is registered under ``config["criterion_type"]``.

    Args:
        config: An element of ``pruning_configs`` with all keys.
        modules: Layer name → layer.
        pattern: Its pattern.
        masks: Passed on if it is given.

    Raises:
        UnknownNameError: No criterion has this name.
    """
    name = config["criterion_type"]
    if name not in CRITERIA:
        raise UnknownNameError(
            f"Unknown criterion_type {name!r}.{suggest_name(str(name), CRITERIA)} Known: {', '.join(CRITERIA)}."
        )
    return CRITERIA[name](modules, config, pattern, *(() if masks is None else (masks,)))


class PruningCriterion:
    """Base class of criteria: fill `scores` in at least one of the methods.

    Args:
        modules: Layer name → layer.
        config: An element of ``pruning_configs`` with all keys.
        pattern: The pattern of the element.

    Attributes:
        scores: Layer name → scores; higher for what to keep.
        low_memory_usage: ``low_memory_usage`` of the element.
    """

    def __init__(self, modules: Mapping[str, Any], config: Any, pattern: Any) -> None:
        self.scores: dict[str, Any] = {}
        self.modules = modules
        self.config = config
        self.pattern = pattern
        self.low_memory_usage = config["low_memory_usage"]

    def on_step_begin(self) -> None:
        """Called when an update is due."""

    def on_before_optimizer_step(self) -> None:
        """Called before each step, when the gradients are ready."""

    def on_after_optimizer_step(self) -> None:
        """Called after each step."""


class ModuleCriterion(PruningCriterion):
    """Scores the weights of torch modules with one of Secateur's criteria.

    Attributes:
        alpha: Factor of the scores of earlier steps.
        beta: Factor of the scores of a step.
    """

    core_name: ClassVar[str]

    def __init__(self, modules: Mapping[str, Any], config: Any, pattern: Any) -> None:
        super().__init__(modules, config, pattern)
        self.alpha, self.beta = CORE_CRITERIA.find(self.core_name).decay, 1.0

    def on_step_begin(self) -> None:
        """Score the weights, if the criterion does not need gradients."""
        if not CORE_CRITERIA.find(self.core_name).needs_gradient:
            self._score_all()

    def on_before_optimizer_step(self) -> None:
        """Score the weights, if the criterion needs gradients.

        Raises:
            ScoreError: A layer has no gradient.
        """
        if CORE_CRITERIA.find(self.core_name).needs_gradient:
            self._score_all()

    def _score_all(self) -> None:
        settings = PruningConfig(criterion=self.core_name)
        for name, module in self.modules.items():
            score = self.beta * self._score(CORE_CRITERIA.find(self.core_name)(settings, name), name, module)
            if hasattr(self.pattern, "reduce_score"):
                score = self.pattern.reduce_score(score, name)
            if self.alpha and name in self.scores:
                score = self.alpha * self.scores[name] + score
            self.scores[name] = score

    def _score(self, criterion: Any, name: str, module: Any) -> Any:
        framework = get_framework("pytorch")
        view, weight = framework.get_view(module), framework.read_weight(module)
        gradient = None
        if criterion.needs_gradient:
            if module.weight.grad is None:
                raise ScoreError(f"layer {name!r} must have a gradient, found none. Call this after loss.backward().")
            gradient = view.to_canonical(module.weight.grad.detach())
        return view.to_stored(criterion.score(view.to_canonical(weight), gradient))


@register_criterion("magnitude")
class ModuleMagnitude(ModuleCriterion):
    """Scores by the absolute value of the weight."""

    core_name = "magnitude"


@register_criterion("gradient")
class ModuleGradient(ModuleCriterion):
    """Scores by the absolute value of the gradient."""

    core_name = "gradient"


@register_criterion("snip")
class ModuleSnip(ModuleCriterion):
    """Scores by weight times gradient."""

    core_name = "snip"


@register_criterion("snip_momentum")
class ModuleSnipMomentum(ModuleCriterion):
    """Scores by weight times gradient, accumulated over steps."""

    core_name = "snip_momentum"


class UnitCriterion(PruningCriterion):
    """Placeholder for a criterion that scores whole units, which is only available in a run.

    Args:
        modules: Layer name → layer.
        config: An element of ``pruning_configs`` with all keys.
        pattern: The pattern of the element.
        masks: Not used.
    """

    def __init__(self, modules: Mapping[str, Any], config: Any, pattern: Any, masks: Any = None) -> None:  # noqa: ARG002
        super().__init__(modules, config, pattern)

    def on_before_optimizer_step(self, masks: Any = None) -> NoReturn:  # noqa: ARG002 - part of the interface
        """Raise an error, because masks have no gradients here.

        Raises:
            UnsupportedModelError: Always.
        """
        name = self.config["criterion_type"]
        raise UnsupportedModelError(
            f"{type(self).__name__} only scores units in a run. Use prepare_pruning with pruning_type={name!r}, or "
            f"derive from PruningCriterion."
        )


@register_criterion("block_mask")
class UnitBlockMask(UnitCriterion):
    """Scores units by the gradient of their mask, accumulated over steps."""


@register_criterion("retrain_free")
class UnitRetrainFree(UnitCriterion):
    """Scores units by the squared gradient of their mask, summed over batches."""


MagnitudeCriterion = ModuleMagnitude
GradientCriterion = ModuleGradient
SnipCriterion = ModuleSnip
SnipMomentumCriterion = ModuleSnipMomentum
BlockMaskCriterion = UnitBlockMask
RetrainFreeCriterion = UnitRetrainFree
