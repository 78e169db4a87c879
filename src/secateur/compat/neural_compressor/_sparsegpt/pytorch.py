"""Prune a torch layer with SparseGPT, from the Gram matrix of its inputs.

Legend: O output channels, K kernel positions, I input channels, F input features (kernel positions × input channels).
"""

from __future__ import annotations

from typing import Any

import torch

from secateur.errors import LayerError
from secateur.frameworks import WeightView
from secateur.frameworks.pytorch import get_parameter, get_view, read_canonical, write_weight
from secateur.patterns import get_pattern
from secateur.solvers import SparseGPT
from secateur.solvers.problem import LayerRows, Problem
from secateur.solvers.selector import Selector

__all__ = ["prune_layer"]


@torch.no_grad()
def prune_layer(gpt: Any, pattern: str, sparsity: float, settings: tuple[int, float]) -> None:
    """Prune a layer in place; see `PytorchPatternBase.fasterprune`.

    Args:
        gpt: Has the layer and the Gram matrix.
        pattern: Secateur's pattern.
        sparsity: Share of the weights to prune; at most that which the pattern can prune.
        settings: Number of columns whose weights are selected together, and the damping.

    Raises:
        ConfigError: A setting is out of range.
        LayerError: The layer does not fit the pattern, or the Gram matrix has another shape.
    """
    view, weight = get_view(gpt.module), get_parameter(gpt.module).detach()
    outputs, positions, inputs = view.canonical_shape
    features = positions * inputs
    gram_FF = torch.as_tensor(gpt.H).detach().float().to(weight.device)
    if tuple(gram_FF.shape) != (features, features) or view.groups > 1:
        raise LayerError(
            f"H must be the Gram matrix of all {features} input features of {type(gpt.module).__name__}, which must "
            f"have one group, found shape {tuple(gram_FF.shape)} and {view.groups} groups."
        )
    order_F = _find_order(view).to(weight.device)
    gram_FF = gram_FF[order_F][:, order_F]
    shape = WeightView(shape=view.canonical_shape, output_axes=(0,), kernel_axes=(1,), input_axes=(2,))
    core = get_pattern({"pattern": pattern}, {"layer": gpt.module})
    if core.invalid_layers:
        raise LayerError(core.invalid_layers["layer"])
    count = core.budget.count_for(core.budget.units["layer"], min(sparsity, float(core.unit_share)))
    before = read_canonical(weight, view)
    rows = LayerRows(name="", rows=(0, outputs), selector=Selector(pattern, shape, count), criterion=torch.abs)
    problem = Problem(
        weight=before.reshape(1, outputs, features).float().clone(),
        norms=gram_FF.diagonal()[None].clamp(min=0).sqrt(),
        gram=gram_FF[None].clone(),
        layers=[rows],
    )
    columns, damping = settings
    solved = SparseGPT(damping=damping, columns=columns).solve(problem).weight.reshape(view.canonical_shape)
    write_weight(weight, view.to_stored(solved).to(weight.dtype), view.to_stored(before).to(weight.dtype))


def _find_order(view: WeightView) -> torch.Tensor:
    """Return, for each canonical input feature, its place among the features in the order of the stored axes."""
    sizes = [1 if axis in view.output_axes else size for axis, size in enumerate(view.shape)]
    places = torch.arange(view.canonical_shape[1] * view.canonical_shape[2]).reshape(sizes)
    canonical: torch.Tensor = view.to_canonical(places.expand(view.shape))
    return canonical[0].reshape(-1)
