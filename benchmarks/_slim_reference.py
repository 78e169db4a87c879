"""Direct implementations of published methods that remove whole units, for comparison only.

They are written down from the papers for three models: heads and neurons of Llama and BERT, and the inner channels of
residual blocks. Removed units become zeros, and nothing is cut.

- *Magnitude*: the L1 or L2 norm of all weights that compute or read a unit. Each layer loses the same share.
- *FLAP*: a unit's score is the variance of what it passes on, times the squared norm of the weights that read it.
  Scores are standardized per layer and ranked globally. Biases replace the mean of what is removed. All statistics are
  of the dense model.

Shapes: U units, F input features of the layer that reads them.

Source:
    Magnitude: Li et al., arXiv:1608.08710, and Fang et al., arXiv:2301.12900. FLAP: An et al., arXiv:2312.11983.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from _resnet20 import SIZE

__all__ = [
    "Branch",
    "Moments",
    "find_bert_branches",
    "find_llama_branches",
    "find_resnet_branches",
    "record_moments",
    "remove_units",
    "select_by_flap",
    "select_by_magnitude",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """Units, the layers that compute them, and the layer that reads them.

    Attributes:
        kind: ``heads``, ``neurons`` or ``channels``.
        producers: Modules whose parameters have the units along axis 0, each unit in consecutive rows.
        consumer: The layer that has the units along axis 1 of its weight.
        units: Number of units.
        norm: A batch norm after the consumer, whose mean can take the place of a bias.
        positions: Output positions of the layers, by which the parameters of convolutions are multiplied.
    """

    kind: str
    producers: tuple[nn.Module, ...]
    consumer: nn.Linear | nn.Conv2d
    units: int
    norm: nn.BatchNorm2d | None = None
    positions: int = 1

    @property
    def cost(self) -> float:
        """Parameters per unit, and FLOPs of a unit of convolutions."""
        parameters = [parameter for module in self.producers for parameter in module.parameters()]
        return sum(tensor.numel() for tensor in [*parameters, self.consumer.weight]) * self.positions / self.units


@dataclass(frozen=True)
class Moments:
    """Mean and variance of the input features of a layer, each of shape (F,), over all tokens or positions."""

    mean: Tensor
    variance: Tensor


def find_llama_branches(model: Any) -> list[Branch]:
    """Return key/value heads with their query heads, and neurons, of each decoder layer."""
    branches = []
    for layer in model.model.layers:
        attention, mlp, heads = layer.self_attn, layer.mlp, model.config.num_key_value_heads
        producers = (attention.q_proj, attention.k_proj, attention.v_proj)
        branches.append(Branch(kind="heads", producers=producers, consumer=attention.o_proj, units=heads))
        neurons = mlp.down_proj.in_features
        producers = (mlp.gate_proj, mlp.up_proj)
        branches.append(Branch(kind="neurons", producers=producers, consumer=mlp.down_proj, units=neurons))
    return branches


def find_bert_branches(model: Any) -> list[Branch]:
    """Return the heads and neurons of each encoder layer."""
    branches = []
    for layer in model.encoder.layer:
        attention, heads = layer.attention.self, model.config.num_attention_heads
        producers = (attention.query, attention.key, attention.value)
        consumer = layer.attention.output.dense
        branches.append(Branch(kind="heads", producers=producers, consumer=consumer, units=heads))
        producers, consumer = (layer.intermediate.dense,), layer.output.dense
        branches.append(Branch(kind="neurons", producers=producers, consumer=consumer, units=consumer.in_features))
    return branches


def find_resnet_branches(model: Any) -> list[Branch]:
    """Return the channels between the two convolutions of each block."""
    branches, size = [], SIZE
    for block in model.blocks:
        producers, units = (block.conv1, block.norm1), block.conv1.out_channels
        size //= block.conv1.stride[0]
        consumer, norm = block.conv2, block.norm2
        branches.append(
            Branch(
                kind="channels", producers=producers, consumer=consumer, units=units, norm=norm, positions=size * size
            )
        )
    return branches


def select_by_magnitude(branch: Branch, removed: int, norm: int = 2) -> Tensor:
    """Return a mask of shape (U,) of the units with the smallest L1 or L2 norms."""
    weights = [module.weight for module in branch.producers if isinstance(module, nn.Linear | nn.Conv2d)]
    parts = [weight.detach().reshape(branch.units, -1) for weight in weights]
    parts.append(branch.consumer.weight.detach().transpose(0, 1).reshape(branch.units, -1))
    return _select_lowest(torch.cat(parts, 1).norm(norm, dim=1), removed)


def select_by_flap(branches: Sequence[Branch], moments: Sequence[Moments], cost: float) -> list[Tensor]:
    """Return masks of the units with the lowest scores of all branches, as many as cost closest to ``cost``."""
    scores = torch.cat([_score_by_flap(*pair) for pair in zip(branches, moments, strict=True)])
    costs = torch.cat([torch.full((branch.units,), branch.cost, dtype=torch.float64) for branch in branches])
    totals = costs[scores.argsort(stable=True)].cumsum(0)
    removed = _select_lowest(scores, int((totals - cost).abs().argmin()) + 1)
    return list(removed.split([branch.units for branch in branches]))


def _score_by_flap(branch: Branch, moments: Moments) -> Tensor:
    """Compute the standardized scores of the features, and return their mean per unit, of shape (U,).

    Scores of heads are squared first, which the paper does not mention, but the authors' code does.
    """
    squared_norm_F = branch.consumer.weight.detach().transpose(0, 1).flatten(1).double().square().sum(1)
    score_F = moments.variance * squared_norm_F
    if branch.kind == "heads":
        score_F = score_F.square()
    score_F = (score_F - score_F.mean()) / score_F.std()
    return score_F.reshape(branch.units, -1).mean(1)


def _select_lowest(score_U: Tensor, removed: int) -> Tensor:
    mask_U = torch.zeros(len(score_U), dtype=torch.bool)
    mask_U[score_U.argsort(stable=True)[:removed]] = True
    return mask_U


@torch.no_grad()
def remove_units(branch: Branch, removed_U: Tensor, moments: Moments | None = None, *, add_bias: bool = False) -> None:
    """Set the weights of removed units to zero.

    With ``moments``, the bias of the consumer makes up for the mean of what is removed. A consumer without a bias gets
    one with ``add_bias``; otherwise nothing makes up for it.
    """
    for module in branch.producers:
        for parameter in module.parameters():
            parameter.reshape(branch.units, -1)[removed_U] = 0
    weight, features = branch.consumer.weight, branch.consumer.weight.shape[1]
    removed_F = removed_U.repeat_interleave(features // branch.units)
    if moments is not None:
        change = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        _add_to_bias(branch, change[:, removed_F] @ moments.mean[removed_F].float(), add_bias=add_bias)
    weight[:, removed_F] = 0


def _add_to_bias(branch: Branch, change: Tensor, *, add_bias: bool) -> None:
    if branch.norm is not None:
        branch.norm.running_mean -= change
    elif branch.consumer.bias is not None:
        branch.consumer.bias += change
    elif add_bias:
        branch.consumer.bias = nn.Parameter(change)


def record_moments(branches: Sequence[Branch], run: Callable[[], object]) -> list[Moments]:
    """Run a model, and return the moments of the inputs of each branch's consumer."""
    with _accumulate_sums([branch.consumer for branch in branches]) as sums, torch.no_grad():
        run()
    return [_compute_moments(*rows) for rows in sums]


def _compute_moments(count: Tensor, sum_F: Tensor, square_F: Tensor) -> Moments:
    mean_F = sum_F / count
    return Moments(mean_F, (square_F - count * mean_F.square()) / (count - 1))


@contextmanager
def _accumulate_sums(layers: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    sums: list[list[Tensor]] = []
    handles = []
    for layer in layers:
        features = layer.weight.shape[1]
        sums.append([torch.zeros(size, dtype=torch.float64) for size in ((), (features,), (features,))])
        handles.append(layer.register_forward_pre_hook(partial(_add_rows, sums[-1])))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _add_rows(sums: list[Tensor], layer: nn.Module, positional: tuple[Tensor, ...]) -> None:
    inputs = positional[0].movedim(1, -1) if isinstance(layer, nn.Conv2d) else positional[0]
    rows_NF = inputs.reshape(-1, inputs.shape[-1]).double()
    sums[0] += len(rows_NF)
    sums[1] += rows_NF.sum(0)
    sums[2] += rows_NF.square().sum(0)
