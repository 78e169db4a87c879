"""Swap: exchange kept and pruned units of a row while that reduces the error of the layer's outputs.

Legend: G groups, R rows (output channels), F input features; B rows of units, O output channels and M input features of
a unit, U units per row, so R = B · O and F = U · M; N some of the rows, S units that one can be exchanged for.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch

from secateur.errors import ConfigError
from secateur.patterns.block import BlockPattern
from secateur.patterns.nm import NMPattern
from secateur.patterns.tiling import BlockTiling
from secateur.refiners.base import LayerRefiner, register_refiner
from secateur.solvers.gram import conjugate_gradients, factorize
from secateur.solvers.problem import LayerRows, Problem, Solution

__all__ = ["Swap"]

MARGIN = 1e-5
"""Relative gain that a change must exceed, because errors are only known to float32 precision."""


@register_refiner("swap")
@dataclass(frozen=True, kw_only=True)
class Swap(LayerRefiner):
    """Exchange kept and pruned units within each row (1x1, blocks) or group (N:M) while that reduces the layer's error.

    A unit is one weight or one block. A sweep visits each kept unit and prunes it in favor of the pruned unit that
    reduces ``‖X (W − Ŵ)ᵀ‖²`` most, if any does, and sets its values to the optimum, given all others. The change of
    the error is exact, by the Gram matrix. Then the rows that changed are fitted to their dense outputs, as by `PCG`. A
    row is finished once a sweep changes nothing in it, so that no single exchange improves it. The error of a row never
    increases.

    The paper searches a mask for weights that keep their dense values: it restores these, and fits nothing. That makes
    masks worse for weights that are fitted afterwards, or were fitted by the solver.

    It changes masks, so it comes before refiners that do not.

    Attributes:
        sweeps: Maximum number of sweeps, ≥ 1.
        refit: Iterations of conjugate gradients before the first sweep and after each, ≥ 0. With 0, only
            exchanged weights change.

    Raises:
        ConfigError: A value is out of range, or a layer's pattern is neither 1x1, NxM nor N:M.

    Source:
        Zimmer et al., "SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale", arXiv:2512.10922.

    Examples:
        >>> import torch, secateur
        >>> layer, inputs = torch.nn.Linear(8, 4), [torch.rand(64, 8)]
        >>> report = secateur.prune(
        ...     layer, "2:4", calibration=inputs, solver="wanda", refine="swap"
        ... )
        >>> report.sparsity
        0.5
    """

    sweeps: int = 8
    refit: int = 8

    def __post_init__(self) -> None:
        if self.sweeps < 1 or self.refit < 0:
            raise ConfigError(f"sweeps must be at least 1 and refit at least 0, found {self.sweeps} and {self.refit}.")

    def refine(self, problem: Problem, solution: Solution) -> Solution:
        """See `LayerRefiner.refine`."""
        weight_GRF, keep_GRF = solution.weight.clone(), solution.keep.clone()
        for units, layers in groupby(problem.layers, key=_Units.from_layer):
            starts, stops = zip(*(layer.rows for layer in layers), strict=True)
            rows = slice(starts[0], stops[-1])
            for group, gram_FF in enumerate(problem.known_gram):
                part = group, rows
                exchange = _UnitExchange(units, gram_FF, problem.weight[part], weight_GRF[part], keep_GRF[part])
                self._run(exchange)
                weight_GRF[part], keep_GRF[part] = exchange.read()
        return _keep_improvements(problem, solution, Solution(weight=weight_GRF, keep=keep_GRF))

    def _run(self, exchange: _UnitExchange) -> None:
        """Exchange units until no row changes."""
        active_N = torch.arange(len(exchange.keep_BU), device=exchange.keep_BU.device)
        exchange.refit(active_N, self.refit)
        for _ in range(self.sweeps):
            active_N = exchange.sweep(active_N)
            if not len(active_N):
                break
            exchange.refit(active_N, self.refit)


@dataclass(frozen=True, kw_only=True)
class _Units:
    """How the rows of a layer are divided into units.

    Attributes:
        outputs: Output channels of a unit, O.
        positions: Kernel positions of a unit.
        inputs: Input channels of a unit; with the positions, M input features.
        shape: Number of kernel positions and of input channels of the layer.
        span: Number of consecutive units of a row within which units are exchanged, S.
    """

    outputs: int
    positions: int
    inputs: int
    shape: tuple[int, int]
    span: int

    @classmethod
    def from_layer(cls, layer: LayerRows) -> _Units:
        """Return the units of a layer.

        Raises:
            ConfigError: Its pattern is neither 1x1, NxM nor N:M.
        """
        pattern, tiling = layer.selector.bound, layer.selector.tiling
        if type(pattern) not in {BlockPattern, NMPattern}:
            raise ConfigError(
                f"layer {layer.name!r}: Swap exchanges weights or blocks, so the pattern must be 1x1, NxM or N:M, "
                f"found {layer.selector.pattern!r}. Leave the refiner out."
            )
        outputs, positions, inputs = tiling.block if isinstance(tiling, BlockTiling) else (1, 1, 1)
        _, *shape = layer.selector.view.canonical_shape
        span = pattern.group if isinstance(pattern, NMPattern) else prod(shape) // (positions * inputs)
        return cls(outputs=outputs, positions=positions, inputs=inputs, shape=(shape[0], shape[1]), span=span)

    def list_features(self) -> torch.Tensor:
        """Return the input features of each unit, as (U, M)."""
        positions, inputs = self.shape
        grid = (positions // self.positions, self.positions, inputs // self.inputs, self.inputs)
        features = torch.arange(positions * inputs).reshape(grid)
        return features.transpose(1, 2).reshape(-1, self.positions * self.inputs)

    def split(self, values_RF: torch.Tensor) -> torch.Tensor:
        """Return values as (B, O, U, M)."""
        values_RUM = values_RF[:, self.list_features()]
        return values_RUM.reshape(-1, self.outputs, *values_RUM.shape[1:])

    def join(self, values_BOUM: torch.Tensor) -> torch.Tensor:
        """Return values as (R, F): the inverse of `split`."""
        values_RF = values_BOUM.flatten(2).flatten(0, 1)
        order_F = self.list_features().flatten().to(values_RF.device)
        return torch.empty_like(values_RF).index_copy_(1, order_F, values_RF)


class _UnitExchange:
    """The rows of one layer and group, in a basis in which the inputs of each unit are orthonormal.

    There, the best values of a pruned unit are the residual at its inputs, and their square is what they gain.

    Attributes:
        dense_BOUM: The dense weights.
        weight_BOUM: The current weights.
        residual_BOUM: (dense weights − current weights) × Gram matrix.
        keep_BU: The current mask.
        reach_U: How much each unit can change the residual of one that it can be exchanged for, per size of its values.
    """

    def __init__(
        self,
        units: _Units,
        gram_FF: torch.Tensor,
        dense_RF: torch.Tensor,
        weight_RF: torch.Tensor,
        keep_RF: torch.Tensor,
    ) -> None:
        self.units = units
        order_UM = units.list_features()
        gram_UMVM = gram_FF[order_UM][:, :, order_UM]
        self.factor_UMM = factorize(gram_UMVM.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        self.inverse_UMM = torch.linalg.inv(self.factor_UMM)
        self.gram_UMVM = torch.einsum("uij,ujvk,vlk->uivl", self.inverse_UMM, gram_UMVM, self.inverse_UMM)
        self.blocks_UMM = self.gram_UMVM.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
        links_UV = self.gram_UMVM.square().sum(dim=(1, 3)).fill_diagonal_(0)
        span_U = torch.arange(len(links_UV), device=gram_FF.device) // units.span
        self.reach_U = links_UV.masked_fill_(span_U[:, None] != span_U, 0).amax(dim=1).sqrt()
        self.dense_BOUM, self.weight_BOUM = self._enter_basis(dense_RF), self._enter_basis(weight_RF)
        self.residual_BOUM = torch.empty_like(self.weight_BOUM)
        self.keep_BU = units.split(keep_RF).any(dim=3).any(dim=1)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the current weights and their mask, as (R, F)."""
        weight_BOUM = torch.einsum("boui,uij->bouj", self.weight_BOUM, self.inverse_UMM)
        keep_BOUM = self.keep_BU[:, None, :, None].expand_as(weight_BOUM)
        return self.units.join(weight_BOUM * keep_BOUM), self.units.join(keep_BOUM)

    def _enter_basis(self, weight_RF: torch.Tensor) -> torch.Tensor:
        weight_BOUM: torch.Tensor = torch.einsum("boui,uij->bouj", self.units.split(weight_RF), self.factor_UMM)
        return weight_BOUM

    def refit(self, rows_N: torch.Tensor, iterations: int) -> None:
        """Fit the kept weights of some rows to the dense outputs, and compute their residuals."""
        features = prod(self.units.shape)
        gram_FF = self.gram_UMVM.reshape(features, features)
        dense_1RF, weight_1RF = (
            values[rows_N].reshape(1, -1, features) for values in (self.dense_BOUM, self.weight_BOUM)
        )
        if iterations:
            keep_BOUM = self.keep_BU[rows_N][:, None, :, None].expand_as(self.weight_BOUM[rows_N])
            weight_1RF = conjugate_gradients(
                gram_FF[None], dense_1RF, weight_1RF, keep_BOUM.reshape(weight_1RF.shape), iterations
            )
            self.weight_BOUM[rows_N] = weight_1RF.reshape(keep_BOUM.shape)
        residual_RF = (dense_1RF - weight_1RF)[0] @ gram_FF
        self.residual_BOUM[rows_N] = residual_RF.reshape(-1, *self.residual_BOUM.shape[1:])

    def sweep(self, rows_N: torch.Tensor) -> torch.Tensor:
        """Exchange each kept unit of some rows if that reduces their error, and return the rows that changed."""
        is_promising_BU = torch.zeros_like(self.keep_BU)
        is_promising_BU[rows_N] = self._find_promising(rows_N)
        has_changed_B = torch.zeros_like(self.keep_BU[:, 0])
        for unit in range(self.keep_BU.shape[1]):
            changed_N = self._exchange(unit, is_promising_BU[:, unit].nonzero()[:, 0])
            is_promising_BU[changed_N] = self._find_promising(changed_N)
            has_changed_B[changed_N] = True
        return has_changed_B.nonzero()[:, 0]

    def _find_promising(self, rows_N: torch.Tensor) -> torch.Tensor:
        """Return which units of some rows could be exchanged, judged by bounds on what the others can gain."""
        weight_NOUM, residual_NOUM, keep_NU = self.weight_BOUM[rows_N], self.residual_BOUM[rows_N], self.keep_BU[rows_N]
        loss_NU = self._find_losses(weight_NOUM, residual_NOUM, self.blocks_UMM)
        size_NU = weight_NOUM.square().sum(dim=(1, 3)).sqrt()
        pruned_NU = residual_NOUM.square().sum(dim=(1, 3)).masked_fill_(keep_NU, 0)
        largest_NV1 = pruned_NU.unflatten(1, (-1, self.units.span)).amax(dim=2, keepdim=True).sqrt()
        reach_NVS = (size_NU * self.reach_U).unflatten(1, (-1, self.units.span))
        limit_NU: torch.Tensor = (largest_NV1 + reach_NVS).flatten(1).square()
        return keep_NU & (limit_NU > loss_NU)

    @staticmethod
    def _find_losses(weight_NOUM: torch.Tensor, residual_NOUM: torch.Tensor, blocks_UMM: torch.Tensor) -> torch.Tensor:
        """Return by how much the error increases when each unit is pruned."""
        image_NOUM = torch.einsum("noui,uij->nouj", weight_NOUM, blocks_UMM)
        loss_NU: torch.Tensor = image_NOUM.add_(residual_NOUM, alpha=2).mul_(weight_NOUM).sum(dim=(1, 3))
        return loss_NU

    def _exchange(self, unit: int, rows_N: torch.Tensor) -> torch.Tensor:
        """Exchange a kept unit in those of some rows whose error decreases, and return these rows."""
        if not len(rows_N):
            return rows_N
        first = unit // self.units.span * self.units.span
        span, itself = slice(first, first + self.units.span), slice(unit, unit + 1)
        own_NO1M, residual_NOSM = self.weight_BOUM[rows_N, :, itself], self.residual_BOUM[rows_N, :, span]
        loss_N1 = self._find_losses(own_NO1M, self.residual_BOUM[rows_N, :, itself], self.blocks_UMM[itself])
        removed_NOSM = torch.einsum("noui,isj->nosj", own_NO1M, self.gram_UMVM[unit, :, span]).add_(residual_NOSM)
        gain_NS = removed_NOSM.square().sum(dim=(1, 3)).masked_fill_(self.keep_BU[rows_N, span], -torch.inf)
        gain_N1, chosen_N1 = gain_NS.max(dim=1, keepdim=True)
        improves_N = (gain_N1 - loss_N1 > MARGIN * (gain_N1 + loss_N1.abs()))[:, 0]
        chosen_N = chosen_N1[improves_N, 0]
        new_NOM = removed_NOSM[improves_N, :, chosen_N]
        self._replace(rows_N[improves_N], unit, own_NO1M[improves_N, :, 0], first + chosen_N, new_NOM)
        return rows_N[improves_N]

    def _replace(
        self, rows_N: torch.Tensor, unit: int, own_NOM: torch.Tensor, chosen_N: torch.Tensor, new_NOM: torch.Tensor
    ) -> None:
        """Prune a unit in some rows, restore another one in each, and update the residuals."""
        self.weight_BOUM[rows_N, :, unit] = 0
        self.weight_BOUM[rows_N, :, chosen_N] = new_NOM
        self.keep_BU[rows_N, unit] = False
        self.keep_BU[rows_N, chosen_N] = True
        removed_NOUM = torch.einsum("noi,iuj->nouj", own_NOM, self.gram_UMVM[unit])
        restored_NOUM = torch.einsum("noi,niuj->nouj", new_NOM, self.gram_UMVM[chosen_N])
        self.residual_BOUM[rows_N] += removed_NOUM - restored_NOUM


def _keep_improvements(problem: Problem, before: Solution, after: Solution) -> Solution:
    """Return the new solution for the rows of units whose error decreased, and the old one for the others."""
    errors = [problem.energy(problem.weight - solution.weight) for solution in (before, after)]
    is_better_GR = torch.empty_like(errors[0], dtype=torch.bool)
    for layer in problem.layers:
        rows, outputs = slice(*layer.rows), _Units.from_layer(layer).outputs
        old_GB, new_GB = (error[:, rows].unflatten(1, (-1, outputs)).sum(dim=2) for error in errors)
        is_better_GR[:, rows] = (new_GB < (1 - MARGIN) * old_GB).repeat_interleave(outputs, dim=1)
    is_better_GR1 = is_better_GR[..., None]
    return Solution(
        weight=torch.where(is_better_GR1, after.weight, before.weight),
        keep=torch.where(is_better_GR1, after.keep, before.keep),
    )
