"""Reference implementations of published one-shot pruning algorithms, to compare errors and times with.

Each solver takes the weights of one layer and the Gram matrix of its inputs, and returns new weights. Steps, order and
constants are those of the papers and their authors' code. Layers share nothing, and nothing is tuned. Patterns are
``unstructured``, ``N:M`` (keep N of M consecutive inputs) and, for magnitude only, ``4x1``.

Shapes: O outputs, I inputs. ALPS uses transposed weights, like its authors.

Source:
    Wanda, arXiv:2306.11695. SparseGPT, arXiv:2301.00774. ALPS, arXiv:2406.07831.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

__all__ = ["METHODS", "alps", "magnitude", "prune_reference", "repair_with_pcg", "sparsegpt", "wanda", "wanda_pcg"]

logger = logging.getLogger(__name__)

DAMP = 0.01
"""Share of the mean diagonal element that SparseGPT and ALPS add to the diagonal of the Gram matrix."""

BLOCK = 128
"""Columns that SparseGPT prunes before it updates the columns after them."""

RHO, MAX_RHO = 0.1, 1e6
ADMM_STEPS, STEPS_PER_RHO, MIN_STEPS = 300, 3, 30
MIN_CHANGE = 0.0003
"""Share of the support: after ``MIN_STEPS``, ALPS stops when less of it changes. This rule is in the authors' code."""

PCG_STEPS, PCG_TOLERANCE = 10, 1e-4

Solver = Callable[[Tensor, Tensor, str, float], Tensor]


def magnitude(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:  # noqa: ARG001
    """Keep the weights above a threshold per layer, the largest of each group, or the blocks with the largest means."""
    if pattern == "unstructured":
        return weight_OI * _select_above_threshold(weight_OI.abs(), sparsity)
    if pattern == "4x1":
        outputs, inputs = weight_OI.shape
        kept = _select_above_threshold(weight_OI.abs().reshape(outputs // 4, 4, inputs).mean(1), sparsity)
        return weight_OI * kept.repeat_interleave(4, 0)
    return weight_OI * _select_largest_per_group(weight_OI.abs(), pattern)


def wanda(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:
    """Rank weights by magnitude times the norm of their input, within each row or group."""
    score_OI = weight_OI.abs() * gram_II.diagonal().sqrt()
    if pattern != "unstructured":
        return weight_OI * _select_largest_per_group(score_OI, pattern)
    lowest = score_OI.sort(dim=1, stable=True).indices[:, : int(score_OI.shape[1] * sparsity)]
    return weight_OI.scatter(1, lowest, 0.0)


def wanda_pcg(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:
    """Prune with Wanda, then repair the kept weights."""
    return repair_with_pcg(weight_OI, gram_II, wanda(weight_OI, gram_II, pattern, sparsity) != 0)


def repair_with_pcg(weight_OI: Tensor, gram_II: Tensor, kept_OI: Tensor) -> Tensor:
    """Fit the weights on a fixed support to the dense layer's outputs, like the last stage of ALPS."""
    damped_II = _damp(gram_II)
    return _run_conjugate_gradients(damped_II, damped_II @ weight_OI.T, (weight_OI * kept_OI).T).T


def sparsegpt(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:
    """Prune column by column, and compensate for the error in the columns that follow."""
    weight_OI, hessian_II = weight_OI.clone(), gram_II.clone()
    dead_I = hessian_II.diagonal() == 0
    hessian_II[dead_I, dead_I] = 1
    weight_OI[:, dead_I] = 0
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(_damp(hessian_II)))
    factor_II = torch.linalg.cholesky(inverse_II, upper=True)
    for start in range(0, len(factor_II), BLOCK):
        stop = min(start + BLOCK, len(factor_II))
        within = factor_II[start:stop, start:stop]
        weight_OI[:, start:stop], errors = _prune_columns(weight_OI[:, start:stop], within, pattern, sparsity)
        weight_OI[:, stop:] -= errors @ factor_II[start:stop, stop:]
    return weight_OI


def _prune_columns(block: Tensor, factor: Tensor, pattern: str, sparsity: float) -> tuple[Tensor, Tensor]:
    """Prune one block of columns; returns the weights, and their errors divided by the factor's diagonal."""
    remaining, result, errors = block.clone(), torch.zeros_like(block), torch.zeros_like(block)
    diagonal = factor.diagonal()
    keep, group = (0, 0) if pattern == "unstructured" else _parse_group(pattern)
    pruned = torch.zeros_like(block, dtype=torch.bool)
    if not group:
        pruned = ~_select_above_threshold(remaining**2 / diagonal**2, sparsity)
    for column in range(block.shape[1]):
        if group and column % group == 0:
            columns = slice(column, column + group)
            score = remaining[:, columns] ** 2 / diagonal[columns] ** 2
            pruned.scatter_(1, column + score.topk(group - keep, dim=1, largest=False).indices, value=True)
        before = remaining[:, column]
        after = before.clone()
        after[pruned[:, column]] = 0
        result[:, column] = after
        errors[:, column] = (before - after) / diagonal[column]
        remaining[:, column:] -= errors[:, column, None] @ factor[None, column, column:]
    return result, errors


def alps(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:
    """Find a support with ADMM on inputs scaled to equal norms, then run conjugate gradients on it."""
    gram_II = _damp(gram_II)
    norm_I = gram_II.diagonal().sqrt() + 1e-8
    gram_II = gram_II / norm_I / norm_I[:, None]
    dense_IO = (weight_OI * norm_I).T.contiguous()
    kept = round((1 - sparsity) * dense_IO.numel())
    if pattern != "unstructured":
        keep, group = _parse_group(pattern)
        kept = dense_IO.numel() // group * keep
    sparse_IO = _project(_admm(dense_IO, gram_II, pattern, kept), pattern, kept)
    return (_run_conjugate_gradients(gram_II, gram_II @ dense_IO, sparse_IO).T / norm_I).contiguous()


def _admm(dense_IO: Tensor, gram_II: Tensor, pattern: str, kept: int) -> Tensor:
    """Run the first stage of ALPS: B fits the outputs, D fits the pattern, and the multiplier V makes them agree."""
    target_IO = gram_II @ dense_IO
    energy = (dense_IO * target_IO).sum()
    values_I, vectors_II = torch.linalg.eigh(gram_II.double())
    rho, is_rising = RHO, False
    inverse_II = _invert_shifted(values_I, vectors_II, rho)
    start_IO = _project(dense_IO, pattern, kept)
    D_IO, V_IO = start_IO, torch.zeros_like(dense_IO)
    previous = D_IO == 0
    for step in range(1, ADMM_STEPS + 1):
        B_IO = inverse_II @ (target_IO - V_IO + rho * D_IO)
        D_IO = _project((V_IO + rho * B_IO) / rho, pattern, kept)
        V_IO = V_IO + rho * (B_IO - D_IO)
        if step % STEPS_PER_RHO:
            continue
        pruned = D_IO == 0
        changed = int((pruned != previous).sum())
        previous = pruned
        if is_rising and changed == 0:
            break
        is_rising = is_rising or changed > 0.005 * kept
        if not is_rising and changed:
            D_IO, V_IO = start_IO, torch.zeros_like(dense_IO)
        rho = _update_rho(rho, changed, kept, is_rising=is_rising)
        inverse_II = _invert_shifted(values_I, vectors_II, rho)
        error = _compute_squared_error(_project(B_IO, pattern, kept), dense_IO, gram_II, target_IO) / energy
        logger.debug("step %d: error %.3e, %d of the support changed, rho %.3g", step, error.item(), changed, rho)
        if step > MIN_STEPS and changed < MIN_CHANGE * kept:
            break
    return B_IO


def _update_rho(rho: float, changed: int, kept: int, *, is_rising: bool) -> float:
    """Return the next rho: larger the more the support changes; smaller as long as it has not changed at all."""
    if not is_rising:
        return rho / 5
    if changed > 0.1 * kept:
        return min(1.3 * rho, MAX_RHO)
    return min((1.2 if changed > 0.005 * kept else 1.1) * rho, MAX_RHO)


def _invert_shifted(values_I: Tensor, vectors_II: Tensor, rho: float) -> Tensor:
    """Compute the inverse of the Gram matrix plus rho on its diagonal, from the eigendecomposition."""
    return (vectors_II @ (1 / (values_I + rho) * vectors_II).T).float()


def _compute_squared_error(sparse_IO: Tensor, dense_IO: Tensor, gram_II: Tensor, target_IO: Tensor) -> Tensor:
    """Compute the squared distance of the outputs as the authors do: the diagonal of the product of all pairs."""
    return torch.diag((sparse_IO - dense_IO).T @ (gram_II @ sparse_IO - target_IO)).sum()


def _project(values_IO: Tensor, pattern: str, kept: int) -> Tensor:
    """Keep the values with the largest magnitudes in the whole layer or in each group, and set the others to zero."""
    if pattern == "unstructured":
        flat = values_IO.reshape(-1)
        lowest = (-(flat**2)).topk(flat.numel() - kept).indices
        return flat.scatter(0, lowest, 0.0).reshape(values_IO.shape)
    keep, group = _parse_group(pattern)
    groups = values_IO.T.reshape(-1, group)
    lowest = (-(groups**2)).topk(group - keep, dim=1).indices
    return groups.scatter(1, lowest, 0.0).reshape(values_IO.T.shape).T


def _run_conjugate_gradients(gram_II: Tensor, target_IO: Tensor, start_IO: Tensor) -> Tensor:
    """Run conjugate gradients on the support of the start, separately per output, preconditioned with the diagonal.

    The diagonal of ALPS's scaled Gram matrix is 1, so for ALPS this is the authors' iteration.
    """
    support, diagonal_I1 = start_IO != 0, gram_II.diagonal()[:, None]
    tolerance_I = PCG_TOLERANCE * target_IO.norm(dim=1)
    solution_IO = start_IO
    residual_IO = (target_IO - gram_II @ solution_IO) * support
    direction_IO = preconditioned_IO = residual_IO / diagonal_I1
    slope_O = (residual_IO * preconditioned_IO).sum(0)
    for _ in range(PCG_STEPS):
        image_IO = gram_II @ direction_IO
        length_O = slope_O / _avoid_zeros((direction_IO * image_IO).sum(0))
        solution_IO = solution_IO + length_O * direction_IO
        residual_IO = (residual_IO - length_O * image_IO) * support
        if ((gram_II @ solution_IO - target_IO).norm(dim=1) <= tolerance_I).all():
            break
        preconditioned_IO = residual_IO / diagonal_I1
        previous_O, slope_O = slope_O, (residual_IO * preconditioned_IO).sum(0)
        direction_IO = preconditioned_IO + slope_O / _avoid_zeros(previous_O) * direction_IO
    return solution_IO


def _avoid_zeros(denominator: Tensor) -> Tensor:
    return denominator.masked_fill(denominator == 0, 1e-8)


def _damp(gram_II: Tensor) -> Tensor:
    damped_II = gram_II.clone()
    damped_II.diagonal().add_(DAMP * gram_II.diagonal().mean())
    return damped_II


def _select_above_threshold(score: Tensor, sparsity: float) -> Tensor:
    """Select the scores above the one at the rank of the sparsity, which is pruned too, as in the authors' code."""
    return score > score.flatten().sort().values[int(score.numel() * sparsity)]


def _select_largest_per_group(score_OI: Tensor, pattern: str) -> Tensor:
    keep, group = _parse_group(pattern)
    groups = score_OI.reshape(-1, group)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter(1, groups.topk(keep, dim=1).indices, value=True).reshape(score_OI.shape)


def _parse_group(pattern: str) -> tuple[int, int]:
    """Parse an N:M pattern such as ``2:4``, which keeps two of four."""
    keep, colon, group = pattern.partition(":")
    if not colon:
        raise ValueError(f"pattern must be 'unstructured' or N:M for this method, found {pattern!r}.")
    return int(keep), int(group)


METHODS: dict[str, Solver] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "wanda+pcg": wanda_pcg,
    "sparsegpt": sparsegpt,
    "alps": alps,
}


@torch.no_grad()
def prune_reference(
    model: PreTrainedModel, batches: Iterable[Tensor], method: str, pattern: str, sparsity: float = 0.5
) -> float:
    """Prune all linear layers in the decoder layers of a Llama model, layer by layer, like the published repositories.

    Within a decoder layer, statistics are collected while it is dense. The next one gets the outputs of the pruned one.

    Args:
        model: A transformers Llama model, which is changed in place.
        batches: Token ids, each of shape (sequences, length).
        method: A key of ``METHODS``.
        pattern: ``unstructured``, ``N:M`` or, for magnitude, ``4x1``.
        sparsity: Share of the weights to prune, below 1; ignored for ``N:M``.

    Returns:
        Seconds spent in solvers, without forward passes and Gram matrices.
    """
    solve, seconds = METHODS[method], 0.0
    decoder = model.model.layers
    hidden, options = _record_first_inputs(model, decoder[0], batches)
    for layer in decoder:
        linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        with _accumulate_grams(linears) as grams:
            for states, arguments in zip(hidden, options, strict=True):
                layer(states, **arguments)
        for linear, gram_II in zip(linears, grams, strict=True):
            start = time.perf_counter()
            pruned_OI = solve(linear.weight, gram_II, pattern, sparsity)
            seconds += time.perf_counter() - start
            linear.weight.copy_(pruned_OI)
        hidden = [layer(states, **arguments) for states, arguments in zip(hidden, options, strict=True)]
    return seconds


class _StopForward(Exception):  # noqa: N818
    """Stops a forward pass once the inputs of the first decoder layer are recorded."""


def _record_first_inputs(
    model: PreTrainedModel, first: nn.Module, batches: Iterable[Tensor]
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Record the arguments of the first decoder layer for each batch: hidden states and keyword arguments."""
    hidden: list[Tensor] = []
    options: list[dict[str, Any]] = []

    def record(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden.append(positional[0])
        options.append(named)
        raise _StopForward

    handle = first.register_forward_pre_hook(record, with_kwargs=True)
    try:
        for batch in batches:
            try:
                model(batch, use_cache=False)
            except _StopForward:
                continue
    finally:
        handle.remove()
    return hidden, options


@contextmanager
def _accumulate_grams(linears: list[nn.Linear]) -> Iterator[list[Tensor]]:
    """Accumulate the Gram matrix of each layer's inputs in this context."""
    grams: list[Tensor] = []
    handles: list[RemovableHandle] = []
    for linear in linears:
        grams.append(torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device))
        handles.append(linear.register_forward_pre_hook(partial(_add_products, grams[-1])))
    try:
        yield grams
    finally:
        for handle in handles:
            handle.remove()


def _add_products(gram_II: Tensor, _: nn.Module, positional: tuple[Tensor, ...]) -> None:
    inputs = positional[0].reshape(-1, len(gram_II)).float()
    gram_II += inputs.T @ inputs
