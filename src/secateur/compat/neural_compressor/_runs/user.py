"""Run user-defined pruners."""

from __future__ import annotations

import math
from typing import Any

from secateur._array import Array, count_true, to_numpy
from secateur.frameworks import get_framework
from secateur.masking.run import refuse_violations
from secateur.patterns.recognition import NonzeroMask, count_units, recognize_pattern
from secateur.patterns.verification import verify_zeros
from secateur.results import LayerResult, PruningReport

__all__ = ["UserRun"]


class UserRun:
    """The steps of a user-defined pruner.

    Args:
        pruner: The pruner, with ``modules``, ``masks`` and the methods of its base class.
        framework: ``"pytorch"`` or ``"keras"``.
        model_weights: Number of weights of the model.

    Attributes:
        step: Number of optimizer steps.
    """

    needs_gradients = False

    def __init__(self, pruner: Any, framework: str, model_weights: int) -> None:
        self.pruner = pruner
        self.step = 0
        self._framework = get_framework(framework)
        self._model_weights = model_weights
        self._hooks: list[Any] = []

    def follow(self, optimizer: Any) -> None:
        """Let the steps of a torch optimizer call the pruner, as if the next batch began after each step."""
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self.before_step()),
            optimizer.register_step_post_hook(lambda *_: self._follow_step()),
        ]
        self.pruner.on_step_begin(0)

    def _follow_step(self) -> None:
        self.after_step()
        self.pruner.on_step_begin(self.step)

    def before_step(self) -> None:
        """Announce a step."""
        self.pruner.on_before_optimizer_step()

    def after_step(self) -> None:
        """Announce the end of a step."""
        self.pruner.on_after_optimizer_step()
        self.step += 1

    def apply_masks(self) -> None:
        """Set pruned weights to zero."""
        self.pruner.mask_weights()

    @property
    def masks(self) -> dict[str, Any]:
        """Layer → booleans in the weight's shape, ``True`` = kept."""
        return {name: mask != 0 for name, mask in self.pruner.masks.items() if name in self.pruner.modules}

    def finalize(self) -> PruningReport:
        """Verify that pruned weights are zero, and report what was pruned.

        Raises:
            StateError: Masks and weights do not match.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.pruner.on_train_end()
        arrays = {name: self._framework.to_array(mask) for name, mask in self.masks.items()}
        stored = {name: self._framework.read_weight(self.pruner.modules[name]) for name in arrays}
        weights = {name: self._framework.to_array(weight) for name, weight in stored.items()}
        refuse_violations(verify_zeros(arrays, weights))
        return PruningReport(
            layers=tuple(self._describe(name, mask) for name, mask in arrays.items()),
            dense={},
            step=self.step,
            last_step=math.floor(self.pruner.config["end_step"]),
            model_weights=self._model_weights,
            configs=(),
        )

    def _describe(self, name: str, mask: Array) -> LayerResult:
        view = self._framework.get_view(self.pruner.modules[name])
        found = NonzeroMask(view, to_numpy(mask))
        pattern, size = recognize_pattern(found) or "1x1", math.prod(view.shape)
        units, pruned_units = count_units(found, pattern)
        return LayerResult(
            name=name,
            pattern=pattern,
            shape=tuple(view.shape),
            weights=size,
            pruned_weights=size - count_true(mask),
            units=units,
            pruned_units=pruned_units,
        )
