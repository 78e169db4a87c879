"""Define the callbacks and the manager for training loops."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secateur.errors import StateError
from secateur.results import PruningReport

__all__ = ["CompressionManager", "PruningCallbacks"]

logger = logging.getLogger(__name__)


class PruningCallbacks:
    """Callbacks for a training loop.

    Without an optimizer, ``on_before_optimizer_step`` reads the gradients, and ``on_after_optimizer_step`` counts the
    step, sets pruned weights to zero and prunes more if an update is due. If a loop does not call the second, the next
    callback, such as ``on_step_end`` or ``on_step_begin``, does its work before the next forward pass. With an
    optimizer, the pruner follows its steps, and the callbacks only check their order.

    Args:
        start: Function that starts the run and returns its pruner.
        follows_optimizer: Whether the pruner follows the optimizer's steps. If so, the run starts at once, otherwise
            with the first callback.

    Attributes:
        report: The result; ``None`` until the run has ended.
    """

    def __init__(self, start: Callable[[], Any], *, follows_optimizer: bool) -> None:
        self.report: PruningReport | None = None
        self._start = start
        self._follows_optimizer = follows_optimizer
        self._pruner: Any = start() if follows_optimizer else None
        self._has_begun = False
        self._is_announced = False
        self._batches = 0

    @classmethod
    def from_report(cls, report: PruningReport) -> PruningCallbacks:
        """Create the callbacks of a finished run."""
        callbacks = cls(lambda: None, follows_optimizer=False)
        callbacks.report = report
        return callbacks

    @property
    def pruner(self) -> Any:
        """The `secateur.training.pytorch.PytorchPruner` of the run, with its masks, report and state.

        Raises:
            StateError: The run has not started.
        """
        if self._pruner is None:
            raise StateError("The run has no pruner yet. Call on_train_begin first.")
        return self._pruner

    def on_train_begin(self, dataloader: Any = None) -> None:  # noqa: ARG002 - part of the interface
        """Start the run; optional.

        Raises:
            StateError: The run has already started or ended.
        """
        has_begun = self._has_begun or (self._pruner is not None and not self._follows_optimizer)
        if has_begun and self.report is None:
            raise StateError(
                "on_train_begin must be called once, before all other callbacks. The run has already started."
            )
        self._get_running_pruner()
        self._has_begun = True

    def on_epoch_begin(self, epoch: int | None = None) -> None:  # noqa: ARG002 - part of the interface
        """Call before each epoch."""
        self._get_running_pruner()
        self._finish_step()

    def on_step_begin(self, batch_id: int | None = None) -> None:  # noqa: ARG002 - part of the interface
        """Call before each batch."""
        self._get_running_pruner()
        self._finish_step()
        self._batches += 1

    def on_after_compute_loss(
        self,
        input: Any,  # noqa: A002, ARG002 - part of the interface
        student_output: Any,  # noqa: ARG002 - part of the interface
        student_loss: Any,
        teacher_output: Any = None,  # noqa: ARG002 - part of the interface
    ) -> Any:
        """Call after the loss is computed. Returns the loss unchanged."""
        return student_loss

    def on_before_optimizer_step(self) -> None:
        """Call between the backward pass and ``optimizer.step()``.

        Raises:
            ScoreError: A score is ``nan``.
        """
        pruner = self._get_running_pruner()
        self._finish_step()
        if not self._follows_optimizer:
            pruner.before_step()
            self._is_announced = True

    def on_after_optimizer_step(self) -> None:
        """Call after ``optimizer.step()``.

        Raises:
            StateError: The criterion needs gradients, and ``on_before_optimizer_step`` was not called.
        """
        pruner = self._get_running_pruner()
        if self._follows_optimizer:
            return
        if pruner.needs_gradients and not self._is_announced:
            raise StateError(
                "on_after_optimizer_step was called without on_before_optimizer_step, which must be called between the "
                "backward pass and optimizer.step(), because the criterion uses gradients."
            )
        self._is_announced = False
        pruner.after_step()

    def on_step_end(self) -> None:
        """Call after each batch."""
        self._get_running_pruner()
        self._finish_step()

    def on_epoch_end(self) -> None:
        """Call after each epoch."""
        self._get_running_pruner()
        self._finish_step()

    def on_before_eval(self) -> None:
        """Call before an evaluation, during or after the run."""
        self._finish_step()

    def on_after_eval(self) -> None:
        """Call after an evaluation. Has no effect."""

    def on_train_end(self) -> PruningReport:
        """Call at the end of training: verify all masks and zeros, and end the run.

        Returns:
            The report, per layer and in total.

        Raises:
            StateError: The run has not started or has ended, it saw no optimizer step, or masks and weights do not
                match.
        """
        pruner = self.pruner if self.report is None else self._get_running_pruner()
        self._finish_step()
        if self._batches and not pruner.step:
            raise StateError(
                f"There were {self._batches} batches without an optimizer step, so nothing was pruned as planned. Call "
                f"on_before_optimizer_step before optimizer.step() and on_after_optimizer_step after it."
            )
        self.report = report = pruner.finalize()
        logger.info("%s", report)
        return report  # type: ignore[no-any-return]

    def _get_running_pruner(self) -> Any:
        if self.report is not None:
            raise StateError("This run has ended. Prepare the model for a new run.")
        if self._pruner is None:
            self._pruner = self._start()
        return self._pruner

    def _finish_step(self) -> None:
        """Complete a step that was announced but not completed."""
        if self._is_announced:
            self._is_announced = False
            self._pruner.after_step()


class CompressionManager:
    """A model and the callbacks that prune it during training, as returned by `prepare_compression`.

    Args:
        model: The model.
        callbacks: The callbacks.
        save: Function that saves the model's state in a folder.

    Attributes:
        model: The model itself, not a wrapper.
        callbacks: The callbacks for the training loop.
    """

    def __init__(self, model: Any, callbacks: PruningCallbacks, save: Callable[[Any, str | Path], Path]) -> None:
        self.model = model
        self.callbacks = callbacks
        self._save = save

    @property
    def pruner(self) -> Any:
        """The pruner of the run; see `PruningCallbacks.pruner`."""
        return self.callbacks.pruner

    @property
    def report(self) -> PruningReport | None:
        """The report of the run; ``None`` until it has ended."""
        return self.callbacks.report

    def save(self, root: str | Path) -> None:
        """Save the model's ``state_dict`` as ``best_model.pt`` in a folder, which is created if needed.

        Args:
            root: The folder.
        """
        logger.info("Saved %s.", self._save(self.model, root))
