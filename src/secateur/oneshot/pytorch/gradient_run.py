"""Prune a torch model in one shot by a criterion that needs gradients, which a loss on calibration data gives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur._array import Array, concat_chunks, to_numpy
from secateur._wording import format_list
from secateur.config import PruningConfig
from secateur.errors import ConfigError, ScoreError
from secateur.frameworks.pytorch import read_canonical, unwrap_model
from secateur.masking.pytorch import ParameterWeight
from secateur.masking.rearrangement import MAX_REARRANGED_UNITS, rearrange_units
from secateur.masking.run import Run, build_report, refuse_nan, refuse_violations
from secateur.oneshot.execution import Progress
from secateur.oneshot.interrupts import defer_interrupts
from secateur.oneshot.magnitude import find_gradient_criterion
from secateur.oneshot.pytorch.calibration.batches import Batch, calibration_mode, move_to, read_batches
from secateur.oneshot.pytorch.calibration.calibration_loss import Loss, read_loss
from secateur.patterns import BasePattern
from secateur.patterns.reduction import REDUCTIONS
from secateur.planning.planner import Plan
from secateur.results import PruningReport

__all__ = ["GradientRun", "refuse_without_gradients"]

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.floating[Any]]

LAST_STEP = 1
"""The step after which `drop_schedule` lets masks change: the scores of all batches count as one step."""


class GradientRun:
    """Prune by the scores of one pass over the calibration data. Weights are not trained.

    Args:
        model: The model.
        plan: A plan made with the result of `drop_schedule`, with gradients.
        batches: The calibration data.
        loss: Computes the loss; ``None``: the model does, as the attribute ``loss`` of its outputs.
        progress: Called after each batch.

    Raises:
        SecateurError: The data or a weight is unsuitable.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        batches: Iterable[Any],
        loss: Loss | None,
        progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.model = unwrap_model(model)
        self.plan = plan
        self.loss = loss
        self.progress = progress
        self.originals = batches if isinstance(batches, (torch.Tensor, Mapping, str)) else list(batches)
        self.batches = read_batches(self.model, self.originals)
        self.weights = {name: ParameterWeight(name, pattern) for pattern in plan.patterns for name in pattern.views}
        refuse_nan(self.weights)
        self.runs: list[Run[ParameterWeight]] = [
            Run(pattern, self.weights) for pattern in plan.patterns if pattern.views
        ]
        self.vectors: dict[str, list[Floats]] = {name: [] for run in self.runs for name in _find_rearranged(run)}

    def prune(self) -> PruningReport:
        """Prune the model.

        Raises:
            SecateurError: A batch has no loss, or a score is ``nan``. The model is unchanged in that case.
        """
        reached, start = set[str](), time.perf_counter()
        with calibration_mode(self.model), self._trainable_weights():
            for batch in self.batches:
                reached |= self._add_scores(self._compute_gradients(batch))
                self._report_progress(batch.number + 1, time.perf_counter() - start)
        if missing := [name for name in self.weights if name not in reached and self._needs_gradient(name)]:
            raise ScoreError(f"no gradient of the loss reaches {format_list(missing)}. Leave these layers out.")
        for run in self.runs:
            run.set_masks(run.updater.initial_masks())
            run.set_masks(self._select(run))
        with defer_interrupts():  # all weights, or none
            for weight in self.weights.values():
                weight.apply_mask()
        refuse_violations({name: reason for run in self.runs for name, reason in run.violations().items()})
        report = build_report(
            self.runs,
            self.plan.dense,
            step=LAST_STEP,
            model_weights=sum(weight.numel() for weight in self.model.parameters()),
        )
        report.warn_of_nearly_empty_layers()
        return report

    def _report_progress(self, done: int, seconds: float) -> None:
        if self.progress is not None:
            total = len(self.batches)
            left = seconds / done * (total - done)
            self.progress(Progress(stage=f"batch {done}", done=done, total=total, seconds=seconds, seconds_left=left))

    @contextmanager
    def _trainable_weights(self) -> Iterator[None]:
        """Compute gradients of frozen weights as well."""
        with ExitStack() as cleanup:
            for weight in self.weights.values():
                cleanup.callback(weight.parameter.requires_grad_, weight.parameter.requires_grad)
                weight.parameter.requires_grad_()
            yield

    def _compute_gradients(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return layer → gradient, for the layers that the loss of a batch depends on."""
        device = next(iter(self.weights.values())).parameter.device
        parameters = [weight.parameter for weight in self.weights.values()]
        with torch.enable_grad():
            outputs = batch.run(self.model, device)
            loss = read_loss(self.loss, outputs, batch.number, move_to(self.originals[batch.number], device))
            gradients: tuple[torch.Tensor | None, ...] = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {name: found for name, found in zip(self.weights, gradients, strict=True) if found is not None}

    def _add_scores(self, gradients: Mapping[str, torch.Tensor]) -> set[str]:
        """Add the scores of one batch, and return the layers that got some."""
        reached: set[str] = set()
        for run in self.runs:
            for name, units in run.pattern.units.items():
                parts = {layer: gradients[layer] for layer in units.parts if layer in gradients}
                if not run.scores.needs_gradient or not parts:
                    continue
                missing = {layer: torch.zeros_like(self.weights[layer].parameter) for layer in units.parts}
                found = {
                    layer: read_canonical(tensor, run.pattern.views[layer])
                    for layer, tensor in (missing | parts).items()
                }
                run.scores.add(name, found)
                if name in self.vectors:
                    self.vectors[name].append(_sum_units(run, name, found))
                reached |= parts.keys()
        return reached

    def _needs_gradient(self, layer: str) -> bool:
        return any(layer in run.weights and run.scores.needs_gradient for run in self.runs)

    def _select(self, run: Run[ParameterWeight]) -> dict[str, Array]:
        """Select the masks of a run, and rearrange the units of its layers if the criterion does."""
        alive = run.updater.keep
        masks = run.masks_after(LAST_STEP)
        keep = run.updater.keep
        if keep is None or not self.vectors.keys() & keep.keys():
            return masks
        run.updater.keep = {
            name: self._rearrange(name, kept, None if alive is None else alive[name]) if name in self.vectors else kept
            for name, kept in keep.items()
        }
        return run.pattern.weight_masks(run.updater.keep)

    def _rearrange(self, name: str, kept: Array, alive: Array | None) -> Array:
        keep = rearrange_units(np.stack(self.vectors[name]), to_numpy(kept), None if alive is None else to_numpy(alive))
        return torch.as_tensor(keep, device=kept.device) if isinstance(kept, torch.Tensor) else keep


def _sum_units(run: Run[ParameterWeight], name: str, gradients: Mapping[str, torch.Tensor]) -> Floats:
    """Return the gradient of the loss with respect to the mask of each unit."""
    products = {layer: run.weights[layer].canonical() * gradient for layer, gradient in gradients.items()}
    return to_numpy(concat_chunks(list(run.pattern.units[name].scores(products, REDUCTIONS.find("sum")))))


def _find_rearranged(run: Run[ParameterWeight]) -> Sequence[str]:
    """Return the names of units to rearrange: those of a criterion that does, if any of them can be exchanged."""
    can_exchange = run.pattern.unit_share == 1 and type(run.pattern).select is BasePattern.select
    if not can_exchange or not any(criterion.is_rearranged for criterion in run.scores.criteria.values()):
        return []
    large = [name for name, units in run.pattern.units.items() if units.count > MAX_REARRANGED_UNITS]
    if large:
        logger.warning(
            "Masks are not rearranged in layers of more than %s units: %s. Choose larger units, such as channels.",
            f"{MAX_REARRANGED_UNITS:,}",
            format_list(large),
        )
    return [name for name in run.pattern.units if name not in large]


def refuse_without_gradients(config: PruningConfig, options: Collection[str]) -> None:
    """Raise `ConfigError` if no criterion needs gradients, or if there are arguments without effect on such a run."""
    criterion = find_gradient_criterion(config)
    if criterion is None:
        raise ConfigError(
            f"loss has no effect with the criterion {config.criterion!r}, which needs no gradients. Leave it out, or "
            f"set criterion='mask_fisher'."
        )
    if options:
        raise ConfigError(
            f"{min(options)} has no effect if the criterion needs gradients, here {criterion!r}. Leave it out."
        )
