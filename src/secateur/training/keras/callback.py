"""The callback that updates masks between the steps of ``fit``."""

from __future__ import annotations

from typing import Any

import keras

from secateur.training.keras.compiled import find_pruning_optimizer
from secateur.training.keras.optimizer import PruningOptimizer

__all__ = ["PruningCallback"]


class PruningCallback(keras.callbacks.Callback):
    """Update masks on schedule in ``fit``, and add ``sparsity`` to the logs of each epoch.

    Between updates the callback only counts batches, so compiled steps do not wait for it. With ``steps_per_execution``
    above 1, an update that is due within an execution happens at its end.

    Args:
        optimizer: The optimizer whose masks to update; ``None``: the optimizer that the model is compiled with. A model
            with several optimizers, as in adversarial training, needs a callback for each optimizer that prunes.

    Examples:
        >>> import keras, numpy as np, secateur.keras
        >>> layers = [keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(3)]
        >>> model = keras.Sequential(layers)
        >>> config = secateur.PruningConfig(
        ...     pattern="4x1", target_sparsity=0.5, end_step=8, pruning_frequency=2
        ... )
        >>> optimizer = keras.optimizers.SGD()
        >>> model.compile(secateur.keras.PruningOptimizer(model, config, optimizer), "mse")
        >>> data = np.ones((32, 8)), np.ones((32, 3))
        >>> callbacks = [secateur.keras.PruningCallback()]
        >>> history = model.fit(*data, batch_size=4, verbose=0, callbacks=callbacks)
        >>> history.history["sparsity"]
        [0.5]
    """

    def __init__(self, optimizer: PruningOptimizer | None = None) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._last_batch = -1
        self._batches_to_wait = 0
        self._sparsity = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Check that the model is compiled with a pruning optimizer.

        Raises:
            StateError: The model is not compiled with a `PruningOptimizer`, or that was created for another model.
        """
        model = self.model
        optimizer = self._get_optimizer(model)
        optimizer.attach(model, restores_zeros=True)
        self._sparsity = optimizer.sparsity
        # Other callbacks may load another state, so the first batch checks again.
        self._batches_to_wait = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Restart the count of batches, because another state may have been loaded between epochs."""
        self._last_batch = -1
        self._batches_to_wait = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Update masks if an update is due."""
        self._batches_to_wait -= batch - self._last_batch
        self._last_batch = batch
        if self._batches_to_wait > 0:
            return
        # With JAX, this waits for the step and writes its state to the variables.
        optimizer = self._get_optimizer(self.model)
        if optimizer.update_masks() or batch == 0:
            self._sparsity = optimizer.sparsity
        due = optimizer.next_update
        # This is the earliest possible batch: all batches but one of the current step may be done, and steps may be
        # skipped. If the update is not due then, the count restarts.
        self._batches_to_wait = NEVER if due is None else (due - 1 - optimizer.step) * optimizer.batches_per_step + 1

    def _get_optimizer(self, model: keras.Model) -> PruningOptimizer:
        return find_pruning_optimizer(model) if self._optimizer is None else self._optimizer

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Add the share of pruned weights to the logs."""
        if logs is not None:
            logs["sparsity"] = self._sparsity


NEVER = 1 << 62
"""More batches than any training run has."""
