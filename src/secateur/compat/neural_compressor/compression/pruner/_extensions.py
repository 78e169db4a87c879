"""Run the criterion, the scheduler and the regularizer of an element if users registered their own."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from secateur.compat.neural_compressor._translation import split_pruning_type
from secateur.compat.neural_compressor._user_criteria import CRITERIA, PREFIX, REGS, TF_CRITERIA, is_user_class
from secateur.compat.neural_compressor.compression.pruner.criteria import get_criterion
from secateur.compat.neural_compressor.compression.pruner.patterns import get_pattern
from secateur.compat.neural_compressor.compression.pruner.regs import get_reg
from secateur.compat.neural_compressor.compression.pruner.schedulers import find_scheduler, get_scheduler
from secateur.compat.neural_compressor.compression.pruner.tf_criteria import get_tf_criterion
from secateur.config import PruningConfig
from secateur.errors import UnknownNameError

__all__ = ["Extensions"]

logger = logging.getLogger(__name__)


class Extensions:
    """The criterion, the scheduler and the regularizer of an element. User-defined ones take part in its run.

    They are created when they are first used, and can be replaced until then.

    Args:
        part: The element and its layers.
        framework: ``"pytorch"`` or ``"keras"``.
        get_pattern: Returns Secateur's pattern of the element.
        get_masks: Returns the current masks.
    """

    def __init__(
        self,
        part: Any,
        framework: str,
        get_pattern: Callable[[], Any],
        get_masks: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._part = part
        self._framework = framework
        self._get_pattern = get_pattern
        self._get_masks = get_masks
        self._sparsities: dict[tuple[int, float, float], float] = {}

    @cached_property
    def pattern(self) -> Any:
        """The pattern with the methods of Intel Neural Compressor if there is one, otherwise Secateur's pattern."""
        core = self._get_pattern()
        if (user_pattern := getattr(core, "user_pattern", None)) is not None:
            return user_pattern
        try:
            return get_pattern(self._part.element, self._part.modules, self._framework)
        except UnknownNameError:
            return core

    @cached_property
    def criterion(self) -> Any:
        """The criterion, with ``scores``; ``None`` for pruning types without one."""
        element, registered = self._part.element, TF_CRITERIA if self._framework == "keras" else CRITERIA
        name, _ = split_pruning_type(element)
        if name not in registered:
            return None
        element["criterion_type"] = name
        if self._framework == "keras":
            return get_tf_criterion(element, self._part.modules)
        return get_criterion(element, self._part.modules, self.pattern)

    @cached_property
    def scheduler(self) -> Any:
        """The scheduler, with ``update_sparsity_ratio``."""
        return get_scheduler(self._part.element)

    @cached_property
    def reg(self) -> Any:
        """The regularizer."""
        return get_reg(self._part.element, self._part.modules, self.pattern)

    def before_step(self, step: int) -> None:  # noqa: ARG002 - part of the interface
        """See `secateur.masking.run_options.RunObserver`."""
        if self._regularizes:
            self.reg.on_before_optimizer_step()
        if self._ranks:
            self.criterion.on_before_optimizer_step()

    def after_step(self, step: int) -> None:
        """See `secateur.masking.run_options.RunObserver`."""
        element = self._part.element
        if self._regularizes and element["start_step"] <= step - 1 <= element["end_step"]:
            self.reg.on_after_optimizer_step()
        if self._ranks:
            self.criterion.on_after_optimizer_step()

    def find_scores(self, step: int) -> Mapping[str, Any] | None:
        """See `secateur.masking.run_options.RunObserver`."""
        if not self._ranks:
            return None
        self.criterion.on_step_begin()
        scores: Mapping[str, Any] = self.criterion.scores
        if not scores:
            name = type(self.criterion).__name__
            logger.warning("%s has no scores after %d steps, so this update is skipped.", name, step)
        if getattr(self._get_pattern(), "user_pattern", None) is None or self._framework != "pytorch":
            return scores
        return {name: self._expand_score(name, score) for name, score in scores.items()}

    def find_sparsity(self, step: int, initial: float, target: float) -> float | None:
        """See `secateur.masking.run_options.RunObserver`."""
        if not self._schedules:
            return None
        index, total = self._find_update(step)
        key = index, initial, target
        if key not in self._sparsities:
            ratio = self.scheduler.update_sparsity_ratio(target, index, total, self._get_masks(), initial)
            self._sparsities[key] = float(ratio)
        return self._sparsities[key]

    def _expand_score(self, name: str, score: Any) -> Any:
        """Return one score per weight if a criterion has already reduced them with the class that will do so again."""
        shape = tuple(self._part.modules[name].weight.shape)
        if tuple(score.shape) == shape or not hasattr(self.pattern, "reshape_reduced_to_orig"):
            return score
        expanded = self.pattern.reshape_reduced_to_orig(score, name, shape)
        is_sum = self._part.element["criterion_reduce_type"] == "sum"
        return expanded / (math.prod(shape) / math.prod(score.shape)) if is_sum else expanded

    @property
    def _ranks(self) -> bool:
        """Whether a user's criterion replaces Secateur's."""
        return self._is_replaced("criterion") or self._config.criterion.startswith(PREFIX)

    @property
    def _schedules(self) -> bool:
        """Whether a user's scheduler replaces Secateur's schedule."""
        return self._is_replaced("scheduler") or is_user_class(find_scheduler(self._part.element))

    @property
    def _regularizes(self) -> bool:
        """Whether the regularizer is user-defined."""
        return self._is_replaced("reg") or is_user_class(REGS.get(self._part.element["reg_type"]))

    def _is_replaced(self, name: str) -> bool:
        """Whether an object has been created or assigned, and its class is user-defined."""
        created = vars(self).get(name)
        return created is not None and is_user_class(type(created))

    @cached_property
    def _config(self) -> PruningConfig:
        """The configuration of the run, which has started when this is read."""
        config: PruningConfig = self._part.config
        return config

    def _find_update(self, step: int) -> tuple[int, int]:
        """Return the index of the update at `step`, and that of the last one."""
        config = self._config
        if config.last_step == config.start_step:
            return 1, 1
        frequency = config.pruning_frequency
        return (step - config.start_step) // frequency, (config.last_step - config.start_step) // frequency
