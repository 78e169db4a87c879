"""The loss of a model on a batch of calibration data, whose gradients rank units.

Legend: B rows of a batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.calibration.batches import Batch, iterate_tensors

__all__ = ["Loss", "compute_loss", "read_loss"]

Loss = Callable[[Any, Any], torch.Tensor]
"""Computes the loss from the outputs of the model and the batch."""

SEED = 20221130
"""Seed of the random labels and projections; each batch adds its number."""

IMAGE_AXES = 4
"""Axes of the logits of segmentation, whose classes are the second one."""


def read_loss(loss: Loss | None, outputs: Any, number: int, original: Any) -> torch.Tensor:
    """Return the loss of a batch, as one number.

    Args:
        loss: Computes it from the outputs and the batch; ``None``: it is the attribute ``loss`` of the outputs.
        outputs: The outputs of the model.
        number: The number of the batch, for errors.
        original: The batch as it was given.

    Raises:
        CalibrationError: There is none.
    """
    value: Any = _find_own_loss(outputs) if loss is None else loss(outputs, original)
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        source = "the model" if loss is None else "loss(outputs, batch)"
        advice = (
            "Pass loss=..., a function of the outputs and the batch, or batches with labels from which the model "
            "computes its loss."
            if loss is None
            else "Compute it from the outputs, with torch."
        )
        found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise CalibrationError(
            f"calibration batch {number}: {source} must return a loss, one number that depends on the "
            f"weights, found {found}. {advice}"
        )
    return value.reshape(())


def compute_loss(loss: Loss | None, outputs: Any, batch: Batch, original: Any) -> torch.Tensor:
    """Return a loss of any model, summed over the rows of the batch.

    It is the given loss, or else that of the model, which are means over the rows. For a model with logits and without
    a loss, labels are sampled from its own predictions: the mean square of these gradients is the Fisher information.
    The outputs of other models are projected on a random direction, for which it is the Gauss-Newton matrix.

    Args:
        loss: The given loss, if any.
        outputs: The outputs of the model.
        batch: The batch.
        original: The batch as it was given.

    Source:
        Kunstner et al., "Limitations of the Empirical Fisher Approximation for Natural Gradient Descent",
        arXiv:1905.12558.

    Raises:
        CalibrationError: No output depends on the weights.
    """
    if loss is not None or isinstance(_find_own_loss(outputs), torch.Tensor):
        return read_loss(loss, outputs, batch.number, original) * (batch.count_rows() or 1)
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(logits, torch.Tensor) and logits.requires_grad:
        scores = logits.movedim(1, -1) if logits.ndim == IMAGE_AXES else logits
        if scores.ndim > 1 and scores.shape[-1] > 1:
            return _sample_loss(scores, batch)
    return _project(outputs, batch)


def _find_own_loss(outputs: Any) -> Any:
    return outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)


def _sample_loss(logits_BTC: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the negative log-likelihood of labels that are sampled from the predictions, summed over tokens."""
    rows_NC = _leave_padding(logits_BTC, batch.keep).flatten(0, -2).float()
    log_NC = rows_NC.log_softmax(dim=-1)
    # By the inverse of the cumulative distribution: `multinomial` draws a random number for each class.
    sums_NC = log_NC.detach().exp().cumsum(dim=-1)
    shares_N1 = torch.rand((len(sums_NC), 1), generator=_seed(batch, sums_NC.device), device=sums_NC.device)
    labels_N1 = torch.searchsorted(sums_NC, shares_N1 * sums_NC[:, -1:]).clamp(max=sums_NC.shape[1] - 1)
    return -log_NC.gather(1, labels_N1).sum()


def _project(outputs: Any, batch: Batch) -> torch.Tensor:
    """Return the product of all outputs with random numbers from a normal distribution."""
    total: torch.Tensor | None = None
    for tensor in iterate_tensors(outputs):
        if tensor.requires_grad and tensor.is_floating_point():
            values = _leave_padding(tensor, batch.keep).float()
            generator = _seed(batch, values.device)
            part = (values * torch.randn(values.shape, generator=generator, device=values.device)).sum()
            total = part if total is None else total + part
    if total is None:
        raise CalibrationError(
            f"calibration batch {batch.number}: the model must return tensors that depend on its weights, found none. "
            f"Pass loss=..., a function of the outputs and the batch, and do not disable gradients in the model."
        )
    return total


def _leave_padding(values: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    if keep is None or values.shape[:2] != keep.shape:
        return values
    return values[keep.to(values.device)]


def _seed(batch: Batch, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(SEED + batch.number)
