"""Tune the whole pruned model towards the predictions of the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from secateur.errors import CalibrationError, ConfigError
from secateur.refiners.base import ModelBatch, ModelRefiner, ModelTask, register_refiner
from secateur.refiners.held_out import BestValues, split_held_out
from secateur.refiners.pace import Pace
from secateur.refiners.tuning import MaskedAdam, shuffle_batches

__all__ = ["Distill"]

DEFAULT_EPOCHS = 4
"""Number of passes over the sequences if neither they, nor steps, nor time are limited."""

MEASUREMENT_INTERVAL = 7
"""Sequences trained on between two measurements, for each held-out sequence, so that measuring takes little time."""

MAX_HELD_OUT = 0.5
"""Maximum share of the sequences that are held out."""


@dataclass(frozen=True)
class _Prediction:
    """The dense model's largest logits on one batch, as log-probabilities.

    Attributes:
        classes: Their indices, int32, of shape (..., classes).
        logs: Their log-probabilities, of the same shape.
    """

    classes: torch.Tensor
    logs: torch.Tensor


@register_refiner("distill")
@dataclass(frozen=True, kw_only=True)
class Distill(ModelRefiner):
    r"""Tune kept weights, norms and biases by Adam steps towards the outputs of the dense model.

    For models that return logits, the loss is the Kullback-Leibler divergence. For each token, the dense model's
    `classes` most probable continuations are compared individually, and all others as one class. This needs neither
    all of the dense logits nor a second model in memory. For encoders, which return hidden states, the loss of a token
    is the squared distance from the dense state, divided by its squared norm.

    Attributes:
        steps: Maximum number of steps, ≥ 1. ``None``: as many as `epochs` take.
        epochs: Maximum number of passes over the sequences, ≥ 1, unless `steps` is given. Many fit the model to the
            calibration data only. ``None``: 4, or without maximum if time is limited.
        minutes: Time limit, > 0. The number of steps then depends on the machine, and so does the result. ``None``: no
            limit, except for that of the run.
        rate: Initial learning rate, > 0, relative to the root mean square of each parameter. It decays linearly to 0
            over the steps or the time, whichever ends first.
        batches_per_step: Sequences per step, ≥ 1, regardless of the batch size. For short sequences, images
            and vectors, 512 positions count as a sequence.
        classes: Continuations compared individually, ≥ 1.
        held_out: Share of the sequences that are not trained on, in [0, 0.5]. Their loss is measured now and then:
            training stops when it no longer falls, and the values with the lowest loss are kept.

    Raises:
        ConfigError: A value is out of range.

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> refiner = secateur.refiners.Distill(steps=8, minutes=1)
        >>> config = {"pattern": "2:4"}
        >>> report = secateur.prune(
        ...     model, config, calibration=inputs, solver="wanda", refine=refiner
        ... )
        >>> report.sparsity
        0.5
    """

    supports_ranks: ClassVar[bool] = True

    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None
    rate: float = 0.001
    batches_per_step: int = 2
    classes: int = 256
    held_out: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "batches_per_step", "classes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}.")
        for name, number in {"rate": self.rate, "minutes": 1.0 if self.minutes is None else self.minutes}.items():
            if not number > 0:
                raise ConfigError(f"{name} must be above 0, found {number}.")
        if not 0 <= self.held_out <= MAX_HELD_OUT:
            raise ConfigError(f"held_out must be in [0, {MAX_HELD_OUT}], found {self.held_out}.")

    def targets(
        self, model: nn.Module, batches: Sequence[ModelBatch], device: torch.device
    ) -> list[_Prediction | torch.Tensor]:
        """See `ModelRefiner.targets`."""
        return [self._record(batch.run(model, device)) for batch in batches]

    def _record(self, output: Any) -> _Prediction | torch.Tensor:
        """Return what is compared with the dense model: predictions, or hidden states."""
        if (logits := _find_logits(output)) is None:
            return _find_states(output).float().cpu()
        logs = logits.float().log_softmax(dim=-1)
        largest = logs.topk(min(self.classes, logs.shape[-1]), dim=-1)
        return _Prediction(largest.indices.int().cpu(), largest.values.cpu())

    def refine(self, task: ModelTask) -> str:
        """See `ModelRefiner.refine`."""
        optimizer, team = MaskedAdam(task.model, task.masks, self.rate, task.team), task.team
        tuned, held_out = split_held_out(len(task.batches), self.held_out)
        interval = max(1, MEASUREMENT_INTERVAL * len(held_out) // self.batches_per_step)
        best = BestValues(optimizer, partial(_measure_loss, task, held_out) if held_out else None, interval)
        pace = self._start_pace(task, len(tuned))
        order = shuffle_batches(len(tuned), self.batches_per_step, seed=1)
        with optimizer.enable_gradients():
            while best.may_improve(pace.taken) and (share := pace.begin_step()) is not None:
                numbers = [tuned[position] for position in next(order)]
                for number in numbers[team.rank :: team.size]:
                    (_compute_batch_loss(task, number) / len(numbers)).backward()
                optimizer.step(share)
                task.report_step(pace.taken, pace.estimate_total(), pace.estimate_seconds_left())
        return ", ".join(filter(None, [pace.describe_end(), best.restore(pace.taken)]))

    def _start_pace(self, task: ModelTask, sequences: int) -> Pace:
        limits = [None if self.minutes is None else 60 * self.minutes, task.seconds]
        seconds = min((limit for limit in limits if limit is not None), default=None)
        epochs = DEFAULT_EPOCHS if self.epochs is None and seconds is None else self.epochs
        steps_per_epoch = max(1, sequences // self.batches_per_step)
        steps = epochs * steps_per_epoch if self.steps is None and epochs is not None else self.steps
        return Pace(steps=steps, seconds=seconds, team=task.team, clock=task.clock)


@torch.no_grad()
def _measure_loss(task: ModelTask, numbers: Sequence[int]) -> float:
    """Return the mean loss of some batches."""
    losses = [float(_compute_batch_loss(task, number)) for number in numbers[task.team.rank :: task.team.size]]
    return sum(task.team.gather(sum(losses))) / len(numbers)


def _compute_batch_loss(task: ModelTask, number: int) -> torch.Tensor:
    batch, dense = task.batches[number], task.targets[number]
    output = batch.run(task.model, task.device)
    if isinstance(dense, torch.Tensor):
        lost = _compute_distance(_find_states(output).float(), dense)
    else:
        lost = _compute_divergence(_find_logits(output).float(), dense)
    if batch.keep is not None and batch.keep.shape == lost.shape:
        lost = lost[batch.keep.to(lost.device)]
    return lost.mean()


def _compute_distance(states: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    dense = dense.to(states.device)
    energy = dense.square().sum(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    share: torch.Tensor = (states - dense).square().sum(dim=-1) / energy
    return share


def _compute_divergence(logits: torch.Tensor, dense: _Prediction) -> torch.Tensor:
    logs = logits.log_softmax(dim=-1)
    target = dense.logs.to(logs.device)
    output = logs.gather(-1, dense.classes.long().to(logs.device))
    lost: torch.Tensor = (target.exp() * (target - output)).sum(dim=-1)
    if target.shape[-1] < logs.shape[-1]:
        rest_target, rest_output = (_sum_other_classes(part) for part in (target, output))
        lost = lost + rest_target.exp() * (rest_target - rest_output)
    return lost


def _sum_other_classes(logs: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of all other classes combined."""
    rest: torch.Tensor = torch.log1p(-logs.exp().sum(dim=-1).clamp(max=1 - torch.finfo(torch.float32).eps))
    return rest


def _find_logits(output: Any) -> Any:
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    return logits if isinstance(logits, torch.Tensor) else None


def _find_states(output: Any) -> torch.Tensor:
    states = getattr(output, "last_hidden_state", None)
    if not isinstance(states, torch.Tensor):
        raise CalibrationError(
            f"refine='distill' needs a model that returns logits or a last_hidden_state, found "
            f"{type(output).__name__}. Leave it out, or add the head to the model."
        )
    return states
