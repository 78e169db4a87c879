"""Define `PresentedPruner`, which gives access to the pruner of one element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from secateur.compat.neural_compressor._translation import PROGRESSIVE_STEPS
from secateur.compat.neural_compressor._user_criteria import is_user_class
from secateur.compat.neural_compressor.compression.pruner._extensions import Extensions
from secateur.errors import StateError
from secateur.masking.run_options import RunOptions

__all__ = ["PresentedPruner"]


class PresentedPruner:
    """The pruner of one element of ``pruning_configs``, with the attributes of Intel Neural Compressor.

    Args:
        part: The element and its layers.
        get_run: Returns the underlying Secateur pruner; ``None`` before the run and without layers.
        read_masks: Returns the masks without a run: before it, or of a model that was pruned in one shot.
        make_pattern: Returns Secateur's pattern of the element, without a run.
        framework: ``"pytorch"`` or ``"keras"``.

    Attributes:
        config: The element with all keys, as items and attributes. Changes before the run starts have an effect.
        modules: Layer name → layer.
        progressive_configs: Settings of progressive pruning. ``"progressive_steps"`` is the number of parts, until the
            run starts. The others have no effect: in each layer, the smallest weights are pruned first.
        progressive_logger: Has no effect.
        extensions: The criterion, the scheduler and the regularizer.
    """

    def __init__(
        self,
        part: Any,
        get_run: Callable[[], Any],
        read_masks: Callable[[Any], dict[str, Any]],
        make_pattern: Callable[[Any], Any],
        framework: str = "pytorch",
    ) -> None:
        self.config = part.element
        self.modules = part.modules
        self.progressive_configs = {
            "progressive_steps": PROGRESSIVE_STEPS,
            "progressive_type": "scores",
            "use_global": True,
        }
        self.progressive_logger = True
        self._steps_taken = 0
        self._part = part
        self._get_run = get_run
        self._read_masks = read_masks
        self._make_pattern = make_pattern
        self.framework = framework
        self.extensions = Extensions(part, framework, lambda: self.pattern, lambda: self.masks)

    @property
    def run(self) -> Any:
        """The underlying Secateur pruner; ``None`` before the run and without layers."""
        return self._get_run()

    @property
    def masks(self) -> dict[str, Any]:
        """Layer → booleans in the weight's shape, ``True`` = kept."""
        run = self.run
        return self._read_masks(self._part) if run is None else dict(run.masks)

    @property
    def head_masks(self) -> dict[str, Any]:
        """Attention → booleans of shape (1, heads), ``True`` = kept; empty before the run and for other patterns."""
        if self.run is None or self.pattern.coupling != "heads":
            return {}
        masks = self.masks
        like = next(iter(masks.values()))
        kept = self.pattern.find_kept_units(masks)
        return {name: self.pattern.framework.from_array(flags.reshape((1, -1)), like) for name, flags in kept.items()}

    @property
    def pattern(self) -> Any:
        """Secateur's pattern with its layers; ``None`` without layers."""
        if (run := self.run) is not None:
            return run.plan.patterns[0]
        return self._make_pattern(self._part) if self.modules else None

    @property
    def scheduler(self) -> Any:
        """The scheduler, with ``update_sparsity_ratio``. Replace it before the run starts."""
        return self.extensions.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.extensions.scheduler = scheduler

    @property
    def criterion(self) -> Any:
        """The criterion with its current scores; ``None`` for pruning types without one. Replace it before the run.

        The scores of Secateur's criteria have one element per unit where the pattern is one of blocks, and otherwise
        one per weight, in which all weights of a unit have its score.
        """
        criterion = self.extensions.criterion
        if criterion is not None and not is_user_class(type(criterion)):
            criterion.scores = self._read_scores(criterion)
        return criterion

    @criterion.setter
    def criterion(self, criterion: Any) -> None:
        self.extensions.criterion = criterion

    @property
    def reg(self) -> Any:
        """The regularizer. Replace it before the run starts."""
        return self.extensions.reg

    @reg.setter
    def reg(self, reg: Any) -> None:
        self.extensions.reg = reg
        if is_user_class(type(reg)):
            self.config["reg_type"] = None

    @property
    def global_step(self) -> int:
        """Number of optimizer steps. Before the run, it can be set to that of an interrupted run."""
        run = self.run
        return self._steps_taken if run is None else int(run.step)

    @global_step.setter
    def global_step(self, step: int) -> None:
        self._refuse_change("global_step")
        self._steps_taken = int(step)

    def set_global_step(self, global_step: int) -> None:
        """Set `global_step`.

        Raises:
            StateError: The run has started.
        """
        self.global_step = global_step

    def make_options(self, learning_rate: float | None) -> RunOptions:
        """Return options that give a run the timeline of Intel Neural Compressor."""
        return RunOptions(
            parts_until=math.floor(self.config["end_step"]),
            learning_rate=learning_rate,
            observer=self.extensions,
            steps_taken=self._steps_taken,
        )

    @property
    def current_sparsity_ratio(self) -> float:
        """Share of the weights of all layers that the masks prune."""
        masks = self.masks.values()
        kept, total = sum(int(mask.sum()) for mask in masks), sum(math.prod(mask.shape) for mask in masks)
        return (total - kept) / total if total else 0.0

    @property
    def start_step(self) -> Any:
        """``start_step`` of the element. It can be set before the run."""
        return self.config["start_step"]

    @start_step.setter
    def start_step(self, step: int) -> None:
        self._refuse_change("start_step")
        self.config["start_step"] = step

    @property
    def end_step(self) -> Any:
        """``end_step`` of the element. It can be set before the run."""
        return self.config["end_step"]

    @end_step.setter
    def end_step(self, step: int) -> None:
        self._refuse_change("end_step")
        self.config["end_step"] = step

    @property
    def pruning_frequency(self) -> Any:
        """``pruning_frequency`` of the element."""
        return self.config["pruning_frequency"]

    @property
    def target_sparsity_ratio(self) -> Any:
        """``target_sparsity`` of the element."""
        return self.config["target_sparsity"]

    @property
    def max_sparsity_ratio_per_op(self) -> Any:
        """``max_sparsity_ratio_per_op`` of the element."""
        return self.config["max_sparsity_ratio_per_op"]

    def prepare_element(self) -> None:
        """Copy ``progressive_configs["progressive_steps"]`` to the element, before the run starts."""
        self.config["progressive_steps"] = self.progressive_configs["progressive_steps"]

    def _read_scores(self, criterion: Any) -> dict[str, Any]:
        """Return the scores that the run has accumulated, or those of the weights."""
        criterion.on_step_begin()
        if self.run is None or not self.run.needs_gradients:
            return dict(criterion.scores)
        (saved,) = self.run.state_dict()["runs"]
        scores = {}
        for name, total in saved["scores"].items():
            units = self.pattern.units.get(name)
            expanded = {name: total} if units is None or total.ndim > 1 else units.expand(total)
            for layer, canonical in expanded.items():
                stored = self.pattern.views[layer].to_stored(canonical)
                reduced = getattr(criterion.pattern, "reduce_score", lambda score, _: score)(stored, layer)
                is_per_unit = units is not None and total.ndim == 1 and math.prod(reduced.shape) == total.shape[0]
                scores[layer] = total.reshape(reduced.shape) if is_per_unit else stored
        return scores

    def _refuse_change(self, name: str) -> None:
        if self.run is not None:
            raise StateError(
                f"{name} must be set before the run starts, in on_train_begin, at the first step, or when an optimizer "
                f"is passed."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config['pruning_type']}, {self.config['pattern']}, {list(self.modules)})"
