"""Define `BasePruning`, which runs the pruners of all elements."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from secateur.compat.neural_compressor._base_callbacks import BaseCallbacks
from secateur.compat.neural_compressor._reports import merge_reports
from secateur.compat.neural_compressor._runs.user import UserRun
from secateur.compat.neural_compressor._translation import runs_user_pruner
from secateur.compat.neural_compressor.compression.pruner.pruners import get_pruner
from secateur.compat.neural_compressor.compression.pruner.pruners._presented import PresentedPruner
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.errors import StateError
from secateur.frameworks import detect_framework, import_leaf
from secateur.results import PruningReport

__all__ = ["BasePruning", "OneShotPruning", "split_elements"]

logger = logging.getLogger(__name__)

RUNS = "secateur.compat.neural_compressor._runs"


class BasePruning:
    """Prune a model while it trains, with one pruner per element.

    Without an optimizer, ``on_before_optimizer_step`` reads the gradients, and ``on_after_optimizer_step`` counts the
    step, sets pruned weights to zero and prunes more if an update is due. If a loop does not call the second, the next
    callback, such as ``on_step_end`` or ``on_step_begin``, does its work before the next forward pass. With an
    optimizer, the pruners follow its steps, and no callback is needed.

    Args:
        config: The configuration.
        model: The model.
        optimizer: Its optimizer, with which the run starts immediately; ``None``: it starts with the first callback.
        batches: Batches that the model accepts, with which attention heads are found; ``None``: find them by name.

    Attributes:
        pruners: One pruner per element.
        report: The result; ``None`` until ``on_train_end``.

    Raises:
        SecateurError: The configuration does not fit the model, which is unchanged.
    """

    def __init__(
        self, config: WeightPruningConfig, model: Any, optimizer: Any = None, batches: Iterable[Any] | None = None
    ) -> None:
        leaf = import_leaf(RUNS, model)
        self.report: PruningReport | None = None
        self._parts = leaf.assign_elements(config, model, batches=batches)
        self._follows_optimizer = optimizer is not None
        self._runs: list[Any] = []
        self._is_announced = False
        self._batches = 0
        self._framework = detect_framework(model)
        self.pruners = [self._create_pruner(index, part, model, leaf) for index, part in enumerate(self._parts)]
        self._start = partial(self._start_runs, model, leaf, optimizer)
        if optimizer is not None:
            self._runs = self._start()

    @property
    def runs(self) -> list[Any]:
        """The pruners of Secateur, for the elements with layers; empty before the run."""
        return [run for run in self._runs if run is not None]

    def on_train_begin(self, dataloader: Any = None) -> None:
        """Start the run, if it has not started."""
        self._start_once()
        self._call_user_pruners("on_train_begin", dataloader)

    def on_epoch_begin(self, epoch: int | None = None) -> None:
        """Call before each epoch."""
        self._finish_step()
        self._call_user_pruners("on_epoch_begin", epoch)

    def on_step_begin(self, batch_id: int | None = None) -> None:
        """Call before each batch."""
        self._finish_step()
        self._batches += 1
        if not self._follows_optimizer:
            self._call_user_pruners("on_step_begin", batch_id)

    def on_before_optimizer_step(self) -> None:
        """Call between the backward pass and ``optimizer.step()``.

        Raises:
            ScoreError: A score is ``nan``.
        """
        self._finish_step()
        if self._is_announcing():
            for run in self.runs:
                run.before_step()
            self._is_announced = True

    def on_after_optimizer_step(self) -> None:
        """Call after ``optimizer.step()``.

        Raises:
            StateError: The criterion needs gradients, and ``on_before_optimizer_step`` was not called.
        """
        self._start_once()
        if self.report is not None:
            for run in self.runs:
                run.apply_masks()
        if not self._is_announcing():
            return
        if not self._is_announced and any(run.needs_gradients for run in self.runs):
            raise StateError(
                "on_after_optimizer_step was called without on_before_optimizer_step, which must be called between the "
                "backward pass and optimizer.step(), because the criterion uses gradients."
            )
        self._complete_step()

    def on_step_end(self) -> None:
        """Call after each batch."""
        self._finish_step()
        self._call_user_pruners("on_step_end")

    def on_epoch_end(self) -> None:
        """Call after each epoch."""
        self._finish_step()
        self._call_user_pruners("on_epoch_end")

    def on_before_eval(self) -> None:
        """Call before an evaluation."""
        self._finish_step()
        self._call_user_pruners("on_before_eval")

    def on_after_eval(self) -> None:
        """Call after an evaluation."""
        self._call_user_pruners("on_after_eval")

    def on_train_end(self) -> PruningReport:
        """Call at the end of training: verify all masks and zeros, and end the run.

        Afterwards, ``on_after_optimizer_step`` only sets pruned weights to zero.

        Returns:
            The report, per layer and in total. Further calls return it again.

        Raises:
            StateError: Masks and weights do not match.
        """
        self._finish_step()
        if self.report is not None:
            return self.report
        if self._batches and not any(run.step for run in self.runs):
            logger.warning(
                "There were %d batches without an optimizer step, so nothing was pruned as planned. Call "
                "on_before_optimizer_step before optimizer.step() and on_after_optimizer_step after it.",
                self._batches,
            )
        masks = [run.masks for run in self.runs]
        self.report = report = merge_reports([run.finalize() for run in self.runs], masks)
        logger.info("%s", report)
        return report

    def _create_pruner(self, index: int, part: Any, model: Any, leaf: Any) -> Any:
        if runs_user_pruner(part.element, self._framework):
            return get_pruner(part.element, part.modules, self._framework)
        make_pattern = partial(leaf.make_pattern, model)
        return PresentedPruner(part, partial(self._get_run, index), leaf.make_masks, make_pattern, self._framework)

    def _start_runs(self, model: Any, leaf: Any, optimizer: Any) -> list[Any]:
        presented = [
            (part, pruner)
            for part, pruner in zip(self._parts, self.pruners, strict=True)
            if isinstance(pruner, PresentedPruner)
        ]
        for _, pruner in presented:
            pruner.prepare_element()
        make_options = [pruner.make_options for _, pruner in presented]
        runs = iter(leaf.start_runs(model, [part for part, _ in presented], optimizer, make_options))
        make_run = partial(UserRun, framework=self._framework, model_weights=leaf.count_weights(model))
        started = [next(runs) if isinstance(pruner, PresentedPruner) else make_run(pruner) for pruner in self.pruners]
        for run in started if optimizer is not None else []:
            if isinstance(run, UserRun):
                run.follow(optimizer)
        return started

    def _call_user_pruners(self, name: str, *args: Any) -> None:
        """Call a method of the user-defined pruners."""
        for run in self._runs:
            if isinstance(run, UserRun) and self.report is None:
                getattr(run.pruner, name)(*args)

    def _get_run(self, index: int) -> Any:
        return self._runs[index] if self._runs else None

    def _is_announcing(self) -> bool:
        return not self._follows_optimizer and self.report is None

    def _start_once(self) -> None:
        if not self._runs:
            self._runs = self._start()

    def _finish_step(self) -> None:
        """Complete a step that was announced but not completed."""
        self._start_once()
        if self._is_announced:
            self._complete_step()

    def _complete_step(self) -> None:
        self._is_announced = False
        for run in self.runs:
            run.after_step()


class OneShotPruning(BaseCallbacks):
    """Prune a model in one shot with calibration data. Callbacks have no effect.

    Args:
        config: The configuration.
        model: The model, which is pruned.
        batches: Calibration batches.
        settings: Further arguments of the framework's function, such as the device.

    Attributes:
        pruners: One pruner per element.
        report: The result.
    """

    def __init__(self, config: WeightPruningConfig, model: Any, batches: Iterable[Any], **settings: Any) -> None:
        super().__init__(config, model)
        leaf = import_leaf(RUNS, model)
        examples = None if isinstance(batches, Iterator) else batches  # whose first batch would be lost
        parts = leaf.assign_elements(config, model, prune_frozen=True, batches=examples)
        reports = [leaf.prune_in_one_shot(model, part, batches=batches, **settings) for part in parts if part.modules]
        make_pattern = partial(leaf.make_pattern, model)
        self.pruners = [PresentedPruner(part, lambda: None, leaf.find_nonzero, make_pattern) for part in parts]
        self.report = merge_reports(reports, [{} for _ in reports])

    def on_train_end(self) -> PruningReport:
        """Return the report."""
        return self.report


def split_elements(config: WeightPruningConfig, elements: Sequence[Mapping[str, Any]]) -> WeightPruningConfig:
    """Return a configuration with some of the elements, which have all keys."""
    return WeightPruningConfig(elements, framework=config.framework)
