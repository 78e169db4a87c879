"""Prune a model while it trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from secateur.config import ConfigLike
from secateur.frameworks import import_leaf
from secateur.results import LayerResult, PruningReport
from secateur.training.pruner import Pruner

__all__ = ["LayerResult", "Pruner", "PruningReport", "prepare"]


def prepare(
    model: Any, config: ConfigLike, optimizer: Any | Iterable[Any] | None = None, *, example_inputs: Any = None
) -> Any:
    """Prune a model while your own training loop trains it.

    With torch, the pruner hooks into the optimizer: after each step pruned weights are exactly zero, and more weights
    are pruned when the schedule requires it. The loop does not change. With Keras, train with the returned optimizer,
    and pass `secateur.keras.PruningCallback` to ``fit``.

    Args:
        model: A torch module, compiled or not, or a built Keras model.
        config: A `PruningConfig`, or a mapping with the same keys.
        optimizer: The optimizer that trains the model, or several optimizers for torch. ``None`` for torch: the
            optimizer is not accessible, and the loop calls `before_step` and `after_step` of the pruner around each
            step. ``None`` for Keras: the returned optimizer wraps the one that the model is compiled with, and replaces
            it.
        example_inputs: For the patterns ``"channels"`` and ``"heads"``: one batch in the form that the model accepts;
            see `secateur.plan`.

    Returns:
        A `Pruner`: a `secateur.training.pytorch.PytorchPruner` or a `secateur.keras.PruningOptimizer`.

    Raises:
        SecateurError: The configuration is invalid or does not fit the model, a weight is ``nan``, no optimizer holds
            the weight of a layer to prune, or a Keras model without an optimizer is not compiled. In
            that case, nothing is changed.

    Examples:
        >>> import torch, secateur
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = secateur.PruningConfig(pattern="4x1", target_sparsity=0.5, end_step=20)
        >>> pruner = secateur.prepare(model, config, optimizer)
        >>> for step in range(30):
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruner.finalize().sparsity
        0.5
    """
    leaf = import_leaf("secateur.training", model)
    return leaf.prepare(model, config, optimizer, example_inputs=example_inputs)
