"""One-shot pruning as published: plain transcriptions that our own solvers are measured against, in error and in time.

Every solver takes the weights of one layer and the Gram matrix of its inputs, and returns new weights. Steps, order and
constants are those of the papers and of their authors' code; nothing is shared between layers and nothing is tuned.
Patterns are ``unstructured``, ``N:M`` (N kept of M consecutive inputs) and, for magnitude alone, ``4x1``.

Shapes: O outputs, I inputs. ALPS works on transposed weights, as its authors do.

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

__all__ = ["METHODS", "alps", "magnitude", "pcg_repair", "prune_reference", "sparsegpt", "wanda", "wanda_pcg"]

logger = logging.getLogger(__name__)

DAMP = 0.01
"""Part of the mean of the Gram matrix's diagonal that is added to the diagonal, by SparseGPT and by ALPS."""

BLOCK = 128
"""Columns that SparseGPT prunes before it updates the columns behind them."""

RHO, LARGEST_RHO = 0.1, 1e6
ADMM_STEPS, STEPS_PER_RHO, SETTLING_STEPS = 300, 3, 30
SETTLED = 0.0003
"""Part of the support that still changes when ALPS stops after its first ``SETTLING_STEPS``; its code has this rule."""

PCG_STEPS, PCG_TOLERANCE = 10, 1e-4

Solver = Callable[[Tensor, Tensor, str, float], Tensor]


def magnitude(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:  # noqa: ARG001
    """Weights above one threshold per layer, the largest of each group, or the blocks of largest mean magnitude."""
    if pattern == "unstructured":
        return weight_OI * _above_threshold(weight_OI.abs(), sparsity)
    if pattern == "4x1":
        outputs, inputs = weight_OI.shape
        kept = _above_threshold(weight_OI.abs().reshape(outputs // 4, 4, inputs).mean(1), sparsity)
        return weight_OI * kept.repeat_interleave(4, 0)
    return weight_OI * _largest_of_groups(weight_OI.abs(), pattern)


def wanda(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:
    """Weights of the largest product of magnitude and norm of the input, ranked within a row or a group."""
    score_OI = weight_OI.abs() * gram_II.diagonal().sqrt()
    if pattern != "unstructured":
        return weight_OI * _largest_of_groups(score_OI, pattern)
    lowest = score_OI.sort(dim=1, stable=True).indices[:, : int(score_OI.shape[1] * sparsity)]
    return weight_OI.scatter(1, lowest, 0.0)


def wanda_pcg(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:
    """Wanda's support, with the weights on it repaired."""
    return pcg_repair(weight_OI, gram_II, wanda(weight_OI, gram_II, pattern, sparsity) != 0)


def pcg_repair(weight_OI: Tensor, gram_II: Tensor, kept_OI: Tensor) -> Tensor:
    """The weights on a fixed support moved towards the dense layer's outputs, from where they are, as ALPS ends."""
    damped_II = _damped(gram_II)
    return _pcg(damped_II, damped_II @ weight_OI.T, (weight_OI * kept_OI).T).T


def sparsegpt(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:
    """Column by column: prune, and let the columns behind make up for the error."""
    weight_OI, hessian_II = weight_OI.clone(), gram_II.clone()
    dead_I = hessian_II.diagonal() == 0
    hessian_II[dead_I, dead_I] = 1
    weight_OI[:, dead_I] = 0
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(_damped(hessian_II)))
    factor_II = torch.linalg.cholesky(inverse_II, upper=True)
    for start in range(0, len(factor_II), BLOCK):
        stop = min(start + BLOCK, len(factor_II))
        within = factor_II[start:stop, start:stop]
        weight_OI[:, start:stop], errors = _pruned_columns(weight_OI[:, start:stop], within, pattern, sparsity)
        weight_OI[:, stop:] -= errors @ factor_II[start:stop, stop:]
    return weight_OI


def _pruned_columns(block: Tensor, factor: Tensor, pattern: str, sparsity: float) -> tuple[Tensor, Tensor]:
    """One block of columns after SparseGPT, and the error of each weight over the factor's diagonal."""
    left, result, errors = block.clone(), torch.zeros_like(block), torch.zeros_like(block)
    diagonal = factor.diagonal()
    keep, group = (0, 0) if pattern == "unstructured" else _keep_of_group(pattern)
    pruned = torch.zeros_like(block, dtype=torch.bool)
    if not group:
        pruned = ~_above_threshold(left**2 / diagonal**2, sparsity)
    for column in range(block.shape[1]):
        if group and column % group == 0:
            reach = slice(column, column + group)
            score = left[:, reach] ** 2 / diagonal[reach] ** 2
            pruned.scatter_(1, column + score.topk(group - keep, dim=1, largest=False).indices, value=True)
        before = left[:, column]
        after = before.clone()
        after[pruned[:, column]] = 0
        result[:, column] = after
        errors[:, column] = (before - after) / diagonal[column]
        left[:, column:] -= errors[:, column, None] @ factor[None, column, column:]
    return result, errors


def alps(weight_OI: Tensor, gram_II: Tensor, pattern: str, sparsity: float) -> Tensor:
    """A support found by ADMM on inputs of equal norm, then conjugate gradients on that support."""
    gram_II = _damped(gram_II)
    norm_I = gram_II.diagonal().sqrt() + 1e-8
    gram_II = gram_II / norm_I / norm_I[:, None]
    dense_IO = (weight_OI * norm_I).T.contiguous()
    kept = round((1 - sparsity) * dense_IO.numel())
    if pattern != "unstructured":
        keep, group = _keep_of_group(pattern)
        kept = dense_IO.numel() // group * keep
    sparse_IO = _projected(_admm(dense_IO, gram_II, pattern, kept), pattern, kept)
    return (_pcg(gram_II, gram_II @ dense_IO, sparse_IO).T / norm_I).contiguous()


def _admm(dense_IO: Tensor, gram_II: Tensor, pattern: str, kept: int) -> Tensor:
    """ALPS's first stage: B fits the outputs, D obeys the pattern, V is the multiplier that makes them agree."""
    target_IO = gram_II @ dense_IO
    energy = (dense_IO * target_IO).sum()
    values_I, vectors_II = torch.linalg.eigh(gram_II.double())
    rho, rising = RHO, False
    inverse_II = _shifted_inverse(values_I, vectors_II, rho)
    start_IO = _projected(dense_IO, pattern, kept)
    D_IO, V_IO = start_IO, torch.zeros_like(dense_IO)
    previous = D_IO == 0
    for step in range(1, ADMM_STEPS + 1):
        B_IO = inverse_II @ (target_IO - V_IO + rho * D_IO)
        D_IO = _projected((V_IO + rho * B_IO) / rho, pattern, kept)
        V_IO = V_IO + rho * (B_IO - D_IO)
        if step % STEPS_PER_RHO:
            continue
        pruned = D_IO == 0
        changed = int((pruned != previous).sum())
        previous = pruned
        if rising and changed == 0:
            break
        rising = rising or changed > 0.005 * kept
        if not rising and changed:
            D_IO, V_IO = start_IO, torch.zeros_like(dense_IO)
        rho = _next_rho(rho, changed, kept, rising=rising)
        inverse_II = _shifted_inverse(values_I, vectors_II, rho)
        error = _squared_error(_projected(B_IO, pattern, kept), dense_IO, gram_II, target_IO) / energy
        logger.debug("step %d: error %.3e, %d of the support changed, rho %.3g", step, error.item(), changed, rho)
        if step > SETTLING_STEPS and changed < SETTLED * kept:
            break
    return B_IO


def _next_rho(rho: float, changed: int, kept: int, *, rising: bool) -> float:
    """Rise the slower the less the support changes; fall while a start too stiff has not moved it."""
    if not rising:
        return rho / 5
    if changed > 0.1 * kept:
        return min(1.3 * rho, LARGEST_RHO)
    return min((1.2 if changed > 0.005 * kept else 1.1) * rho, LARGEST_RHO)


def _shifted_inverse(values_I: Tensor, vectors_II: Tensor, rho: float) -> Tensor:
    """The inverse of the Gram matrix plus rho on its diagonal, from the eigendecomposition."""
    return (vectors_II @ (1 / (values_I + rho) * vectors_II).T).float()


def _squared_error(sparse_IO: Tensor, dense_IO: Tensor, gram_II: Tensor, target_IO: Tensor) -> Tensor:
    """Squared distance of the outputs; the authors form the product of all pairs of outputs and take its diagonal."""
    return torch.diag((sparse_IO - dense_IO).T @ (gram_II @ sparse_IO - target_IO)).sum()


def _projected(values_IO: Tensor, pattern: str, kept: int) -> Tensor:
    """The values of largest magnitude, over the whole layer or in each group of inputs; zero elsewhere."""
    if pattern == "unstructured":
        flat = values_IO.reshape(-1)
        lowest = (-(flat**2)).topk(flat.numel() - kept).indices
        return flat.scatter(0, lowest, 0.0).reshape(values_IO.shape)
    keep, group = _keep_of_group(pattern)
    groups = values_IO.T.reshape(-1, group)
    lowest = (-(groups**2)).topk(group - keep, dim=1).indices
    return groups.scatter(1, lowest, 0.0).reshape(values_IO.T.shape).T


def _pcg(gram_II: Tensor, target_IO: Tensor, start_IO: Tensor) -> Tensor:
    """Conjugate gradients on the support of the start, each output on its own, preconditioned by the diagonal.

    On ALPS's scaled Gram matrix the diagonal is one, so that there this is the authors' plain iteration.
    """
    support, diagonal_I1 = start_IO != 0, gram_II.diagonal()[:, None]
    enough_I = PCG_TOLERANCE * target_IO.norm(dim=1)
    solution_IO = start_IO
    residual_IO = (target_IO - gram_II @ solution_IO) * support
    direction_IO = preconditioned_IO = residual_IO / diagonal_I1
    slope_O = (residual_IO * preconditioned_IO).sum(0)
    for _ in range(PCG_STEPS):
        image_IO = gram_II @ direction_IO
        length_O = slope_O / _nonzero((direction_IO * image_IO).sum(0))
        solution_IO = solution_IO + length_O * direction_IO
        residual_IO = (residual_IO - length_O * image_IO) * support
        if ((gram_II @ solution_IO - target_IO).norm(dim=1) <= enough_I).all():
            break
        preconditioned_IO = residual_IO / diagonal_I1
        previous_O, slope_O = slope_O, (residual_IO * preconditioned_IO).sum(0)
        direction_IO = preconditioned_IO + slope_O / _nonzero(previous_O) * direction_IO
    return solution_IO


def _nonzero(denominator: Tensor) -> Tensor:
    return denominator.masked_fill(denominator == 0, 1e-8)


def _damped(gram_II: Tensor) -> Tensor:
    damped_II = gram_II.clone()
    damped_II.diagonal().add_(DAMP * gram_II.diagonal().mean())
    return damped_II


def _above_threshold(score: Tensor, sparsity: float) -> Tensor:
    """What is above the score at the sparsity's rank; as in the published code, that score itself goes too."""
    return score > score.flatten().sort().values[int(score.numel() * sparsity)]


def _largest_of_groups(score_OI: Tensor, pattern: str) -> Tensor:
    keep, group = _keep_of_group(pattern)
    groups = score_OI.reshape(-1, group)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter(1, groups.topk(keep, dim=1).indices, value=True).reshape(score_OI.shape)


def _keep_of_group(pattern: str) -> tuple[int, int]:
    """``2:4`` is two kept of four; other patterns are an error."""
    keep, colon, group = pattern.partition(":")
    if not colon:
        raise ValueError(f"pattern {pattern!r} is not known to this method; give 'unstructured' or N:M.")
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
    """Prune every Linear in the decoder layers of a Llama model, layer by layer, as the published repositories do.

    The Linears of a layer see the inputs of the layer while it is dense; the next layer sees the outputs of it pruned.

    Args:
        model: A transformers Llama model; its weights change in place.
        batches: Token ids, each of shape (sequences, length).
        method: A key of ``METHODS``.
        pattern: ``unstructured``, ``N:M`` or, for magnitude, ``4x1``.
        sparsity: Part of the weights to remove, below 1; ``N:M`` says it itself.

    Returns:
        Seconds spent in the solvers, without forward passes and Gram matrices.
    """
    solve, seconds = METHODS[method], 0.0
    decoder = model.model.layers
    hidden, options = _first_inputs(model, decoder[0], batches)
    for layer in decoder:
        linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        with _gram_matrices(linears) as grams:
            for states, given in zip(hidden, options, strict=True):
                layer(states, **given)
        for linear, gram_II in zip(linears, grams, strict=True):
            start = time.perf_counter()
            pruned_OI = solve(linear.weight, gram_II, pattern, sparsity)
            seconds += time.perf_counter() - start
            linear.weight.copy_(pruned_OI)
        hidden = [layer(states, **given) for states, given in zip(hidden, options, strict=True)]
    return seconds


class _Caught(Exception):  # noqa: N818
    """The inputs of the first layer are known, so the rest of the model need not run."""


def _first_inputs(
    model: PreTrainedModel, first: nn.Module, batches: Iterable[Tensor]
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What the first decoder layer is called with, per batch: hidden states, and the rest by name."""
    hidden: list[Tensor] = []
    options: list[dict[str, Any]] = []

    def catch(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden.append(positional[0])
        options.append(named)
        raise _Caught

    handle = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in batches:
            try:
                model(batch, use_cache=False)
            except _Caught:
                continue
    finally:
        handle.remove()
    return hidden, options


@contextmanager
def _gram_matrices(linears: list[nn.Linear]) -> Iterator[list[Tensor]]:
    """One matrix per layer, to which every call of the layer adds the products of its inputs."""
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
