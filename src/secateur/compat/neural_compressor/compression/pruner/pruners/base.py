"""The base classes of user-defined pruners, as `neural_compressor.compression.pruner.pruners.base`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NoReturn, TypeVar

from secateur._array import namespace
from secateur.compat.neural_compressor._user_criteria import PRUNERS, register_in
from secateur.errors import UnsupportedModelError
from secateur.frameworks import get_framework

__all__ = ["PRUNERS", "BasePruner", "KerasBasePruner", "PytorchBasePruner", "RunOnlyPruner", "register_pruner"]

Class = TypeVar("Class", bound=type)


def register_pruner(name: str) -> Callable[[Class], Class]:
    """Create a decorator that registers a pruner, in place of another one of the same name.

    ``pruning_type="mine"`` runs the class ``pt_mine``, or for Keras ``keras_mine``, if no criterion has this name.
    Those of criteria run ``pt_basic``, or with ``_progressive`` ``pt_progressive``. The class is created with the
    element and its layers, and the callbacks of the loop call its methods. Secateur only verifies its masks.

    Examples:
        >>> @register_pruner("pt_mine")
        ... class Mine(PytorchBasePruner):
        ...     def update_masks(self, local_step):
        ...         if self.check_is_pruned_step(self.global_step):
        ...             for name, module in self.modules.items():
        ...                 self.masks[name] = module.weight > 0
        >>> PRUNERS.pop("pt_mine").__name__
        'Mine'
    """
    return register_in(PRUNERS, name)


class BasePruner:
    """Base class of pruners.

    Args:
        config: An element of ``pruning_configs`` with all keys.
        modules: Layer name → layer.
        framework: ``"pytorch"`` or ``"keras"``.

    Attributes:
        masks: Layer name → mask in the shape of the weight.
        global_step: Number of optimizer steps.
        handled_global_step: The last `global_step` for which `update_masks` was called.
        total_prune_cnt: Number of updates, without the first one unless it is the only one.
        completed_pruned_cnt: Number of updates so far, from 1 if there is only one.
        current_sparsity_ratio: Current share of pruned units, which subclasses set.
        init_sparsity_ratio: Share of pruned units at the start, which subclasses set.
    """

    def __init__(self, config: Any, modules: Mapping[str, Any], framework: str = "pytorch") -> None:
        self.modules = modules
        self.config = config
        self.framework = framework
        self.masks: dict[str, Any] = {}
        self.global_step = 0
        self.handled_global_step = -1
        self.start_step, self.end_step = config["start_step"], config["end_step"]
        self.pruning_frequency = config["pruning_frequency"]
        updates = int((self.end_step - self.start_step) // self.pruning_frequency)
        self.total_prune_cnt, self.completed_pruned_cnt = max(1, updates), int(updates == 0)
        self.target_sparsity_ratio = config["target_sparsity"]
        self.current_sparsity_ratio = self.init_sparsity_ratio = 0.0
        self.low_memory_usage = config["low_memory_usage"]

    def _init(self) -> None:
        """Called at the end of the construction of a pruner with masks."""

    def mask_weights(self) -> None:
        """Set pruned weights to zero."""

    def update_masks(self, local_step: int) -> None:
        """Update the masks. Called once per optimizer step, before it."""

    def check_is_pruned_step(self, step: int) -> bool:
        """Whether an update is due after `step` optimizer steps."""
        is_within = self.start_step <= step <= self.end_step
        return is_within and bool(int(step - self.start_step) % self.pruning_frequency == 0)

    def on_train_begin(self, dataloader: Any = None) -> None:
        """Called before training."""

    def on_train_end(self) -> None:
        """Called after training."""

    def on_epoch_begin(self, epoch: int | None) -> None:
        """Called before each epoch."""

    def on_epoch_end(self) -> None:
        """Called after each epoch."""

    def on_step_begin(self, local_step: int | None) -> None:
        """Called before each batch."""
        if self.handled_global_step != self.global_step:
            self.update_masks(0 if local_step is None else local_step)
            self.handled_global_step = self.global_step

    def on_step_end(self) -> None:
        """Called after each batch."""

    def on_before_optimizer_step(self) -> None:
        """Called before each optimizer step, when the gradients are ready."""

    def on_after_optimizer_step(self) -> None:
        """Called after each optimizer step: set pruned weights to zero, and count the step."""
        self.mask_weights()
        self.global_step += 1

    def on_before_eval(self) -> None:
        """Called before an evaluation."""

    def on_after_eval(self) -> None:
        """Called after an evaluation."""


class MaskedPruner(BasePruner):
    """Base class of pruners with masks, which keep all weights at first.

    Args:
        config: An element of ``pruning_configs`` with all keys.
        modules: Layer name → layer.
    """

    framework_name = "pytorch"

    def __init__(self, config: Any, modules: Mapping[str, Any]) -> None:
        super().__init__(config, modules, self.framework_name)
        framework = get_framework(self.framework_name)
        for name, module in modules.items():
            weight = framework.read_weight(module)
            self.masks[name] = namespace(weight).ones_like(weight, dtype=namespace(weight).bool)
        self._init()

    def mask_weights(self) -> None:
        """Set pruned weights to zero."""
        leaf = import_module(f"secateur.frameworks.{self.framework_name}")
        for name, module in self.modules.items():
            weight = module.weight.detach() if self.framework_name == "pytorch" else leaf.get_kernel(module)
            leaf.apply_mask(weight, self.masks[name] != 0)


class PytorchBasePruner(MaskedPruner):
    """Base class of pruners for torch modules."""


class KerasBasePruner(MaskedPruner):
    """Base class of pruners for Keras layers."""

    framework_name = "keras"


class RunOnlyPruner(BasePruner):
    """Base class of pruners that only runs create.

    Raises:
        UnsupportedModelError: Always.
    """

    def __init__(self, config: Any, modules: Mapping[str, Any], framework: str = "pytorch") -> NoReturn:  # noqa: ARG002
        raise UnsupportedModelError(
            f"{type(self).__name__} only exists in a run. Call prepare_pruning or prepare_compression with "
            f"pruning_type={config['pruning_type']!r}, or derive a pruner from PytorchBasicPruner."
        )
