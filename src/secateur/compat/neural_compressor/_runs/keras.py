"""Run the elements of a configuration in custom loops of Keras models, and wrap the models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from secateur._array import Array, count_true
from secateur.compat.neural_compressor._elements import Layer
from secateur.compat.neural_compressor._runs.parts import MakeOptions, Part, assign_parts, summarize_sparsity
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.errors import ConfigError
from secateur.frameworks.keras import get_kernel, read_array
from secateur.masking.keras import KernelWeight
from secateur.masking.run import Run, build_report, refuse_violations
from secateur.masking.run_options import RunOptions
from secateur.planning.keras import find_candidates, plan
from secateur.results import PruningReport

__all__ = [
    "KerasPruner",
    "PresentedKerasModel",
    "assign_elements",
    "count_weights",
    "find_nonzero",
    "load_model",
    "make_masks",
    "make_pattern",
    "present_model",
    "prune_in_one_shot",
    "start_runs",
]

logger = logging.getLogger(__name__)


def assign_elements(
    config: WeightPruningConfig,
    model: keras.Model,
    *,
    prune_frozen: bool = False,
    batches: Any = None,  # noqa: ARG001 - as for torch
) -> list[Part]:
    """Return the elements with their layers; see `assign_parts`. ``"Linear"`` also selects dense layers."""
    candidates = find_candidates(model, prune_frozen=True)
    layers = {Layer(found.name, " ".join(found.types), found.is_output): found.module for found in candidates}
    names = [found.name for found in candidates]
    return assign_parts(config, layers, names, partial(plan, model, prune_frozen=prune_frozen))


def start_runs(
    model: keras.Model, parts: Sequence[Part], optimizer: Any, make_options: Sequence[MakeOptions]
) -> list[KerasPruner | None]:
    """Start a pruner for each part with layers.

    Raises:
        ConfigError: There is an optimizer, or a criterion ranks by gradients.
    """
    if optimizer is not None:
        raise ConfigError(
            "optimizer must be left out for Keras models. Train with secateur.keras.PruningOptimizer(model, "
            "config.for_model(model), optimizer), or call the callbacks of the manager."
        )
    pairs = zip(parts, make_options, strict=True)
    return [KerasPruner(model, part, make(None)) if part.modules else None for part, make in pairs]


def load_model(path: str | Path) -> keras.Model:
    """Load a model from a file.

    Raises:
        ConfigError: It is not a file that Keras loads.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            f"model must be a model or the path of a '.keras' file, found {str(path)!r}. Keras 3 does not load folders "
            f"of TensorFlow: save the model with model.save('model.keras')."
        )
    return keras.saving.load_model(file)


def make_masks(part: Part) -> dict[str, Array]:
    """Return masks that keep every weight of a part."""
    return {name: np.ones(tuple(get_kernel(layer).shape), dtype=bool) for name, layer in part.modules.items()}


def make_pattern(model: keras.Model, part: Part) -> Any:
    """Return the pattern of a part with its layers."""
    return plan(model, part.config, prune_frozen=True).patterns[0]


def count_weights(model: keras.Model) -> int:
    """Return the number of trainable weights of a model."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def find_nonzero(part: Part) -> dict[str, Array]:
    """Return the masks of a pruned model: which weights of a part are not zero."""
    return {name: read_array(get_kernel(layer)) != 0 for name, layer in part.modules.items()}


def prune_in_one_shot(model: Any, part: Part, **options: Any) -> PruningReport:  # noqa: ARG001 - as for torch
    """Raise an error, because methods with calibration data are for torch models.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f"pruning_type={part.element['pruning_type']!r} is for torch models. Prune Keras models during training, for "
        f"example with 'magnitude'."
    )


def present_model(model: keras.Model, callbacks: Any) -> PresentedKerasModel:
    """Return the wrapper of a model in a `CompressionManager`."""
    return PresentedKerasModel(model, callbacks)


class KerasPruner:
    """Prune kernels between the announced steps of a custom loop; see `secateur.training.Pruner`.

    Args:
        model: The model.
        part: The element and its layers.
        options: Settings besides the configuration.

    Raises:
        ConfigError: The criterion ranks by gradients, which the callbacks do not get.
    """

    needs_gradients = False

    def __init__(self, model: keras.Model, part: Part, options: RunOptions) -> None:
        self.model = model
        self.plan = plan(model, part.config)
        self.step = options.steps_taken
        patterns = [pattern for pattern in self.plan.patterns if pattern.views]
        weights = {name: KernelWeight(name, pattern) for pattern in patterns for name in pattern.views}
        self._runs = [Run(pattern, weights, options=options) for pattern in patterns]
        self._observers = [run.observer for run in self._runs if run.observer is not None]
        for run in self._runs:
            if run.scores.needs_gradient and not run.updater.is_locked:
                raise ConfigError(
                    f"pruning_type={part.element['pruning_type']!r} ranks by gradients, which the callbacks of Keras "
                    f"models do not get. Use 'magnitude', or train with secateur.keras.PruningOptimizer(model, "
                    f"config.for_model(model), optimizer)."
                )
        for run in self._runs:
            run.start()
        self.apply_masks()

    def before_step(self) -> None:
        """Announce a step."""
        for observer in self._observers:
            observer.before_step(self.step + 1)

    def after_step(self) -> None:
        """Announce the end of a step: set pruned weights to zero, and update masks if an update is due."""
        for observer in self._observers:
            observer.after_step(self.step + 1)
        self.apply_masks()
        self.step += 1
        for run in self._runs:
            if masks := run.masks_after(self.step):
                run.set_masks(masks)
        self.apply_masks()

    @property
    def masks(self) -> dict[str, Array]:
        """Layer → booleans in the kernel's shape, ``True`` = kept."""
        return {
            name: np.ones(weight.stored.shape, dtype=bool) if weight.mask is None else np.array(weight.mask)
            for run in self._runs
            for name, weight in run.weights.items()
        }

    @property
    def sparsity(self) -> float:
        """Current share of pruned weights, over all pruned layers."""
        masks = self.masks.values()
        return float(sum(count_true(~mask) for mask in masks) / sum(mask.size for mask in masks))

    def apply_masks(self) -> None:
        """Set pruned weights to zero."""
        for run in self._runs:
            for weight in run.weights.values():
                weight.apply_mask()

    def finalize(self) -> PruningReport:
        """Verify masks and weights, and report what was pruned.

        Raises:
            StateError: Masks or weights are wrong.
        """
        self.apply_masks()
        refuse_violations({name: reason for run in self._runs for name, reason in run.violations().items()})
        size = count_weights(self.model)
        report = build_report(self._runs, dense=self.plan.dense, step=self.step, model_weights=size)
        report.warn_if_incomplete()
        report.warn_of_nearly_empty_layers()
        return report


class PresentedKerasModel:
    """The wrapper of a model in a `CompressionManager`, which otherwise behaves like the model itself.

    Attributes:
        model: The model.
    """

    def __init__(self, model: keras.Model, callbacks: Any) -> None:
        self.model = model
        self._callbacks = callbacks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Call ``fit`` of the model, and the callbacks of the manager around each batch."""
        known = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks] if callbacks else []
        return self.model.fit(*args, callbacks=[*known, FitCallback(self._callbacks)], **kwargs)

    def save(self, root: str | Path | None = None) -> None:
        """Save the model as a ``.keras`` file.

        Args:
            root: The file, or a folder for ``best_model.keras``, which is created if needed; by default
                ``"nc_workspace"``.
        """
        file = Path("nc_workspace" if root is None else root)
        if file.suffix != ".keras":
            file /= "best_model.keras"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.model.save(file)
        logger.info("Saved %s.", file)

    def report_sparsity(self) -> tuple[Any, float]:
        """Return a table of the zeros of each weight of two or more axes, and their share of all in percent."""
        weights = {weight.path: read_array(weight) for weight in self.model.weights if len(weight.shape) > 1}
        return summarize_sparsity({name: (w.shape, int((w == 0).sum())) for name, w in weights.items()})


class FitCallback(keras.callbacks.Callback):
    """Call the callbacks of a manager around each batch of ``fit``."""

    def __init__(self, callbacks: Any) -> None:
        super().__init__()
        self._callbacks = callbacks

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - part of the interface
        """Start the run, if it has not started."""
        self._callbacks.on_train_begin()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - part of the interface
        """Announce an epoch."""
        self._callbacks.on_epoch_begin(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - part of the interface
        """Announce a batch."""
        self._callbacks.on_step_begin(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - part of the interface
        """Announce a step, with the current weights in the variables of the model."""
        assert self.model is not None  # with JAX, reading it moves the weights into the variables
        self._callbacks.on_before_optimizer_step()
        self._callbacks.on_after_optimizer_step()
        self._callbacks.on_step_end()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - part of the interface
        """Announce the end of an epoch."""
        self._callbacks.on_epoch_end()
