"""Measure the gradients of a loss with respect to masks of units, and to the outputs of the layers that read them.

A mask of value 1 multiplies the features of a unit in the inputs of the layers that read it. Its gradient is the sum of
input times gradient of the input over these features.

Legend: B rows of a batch, T tokens (or positions), F channels, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from secateur.errors import CalibrationError
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.calibration.batches import Batch, get_version, move_to
from secateur.oneshot.pytorch.calibration.calibration_loss import Loss, compute_loss
from secateur.oneshot.pytorch.calibration.input_features import Convolution
from secateur.oneshot.pytorch.calibration.input_statistics import AttentionCalls
from secateur.oneshot.pytorch.units.unit_groups import Reader, UnitGroup
from secateur.oneshot.pytorch.units.unit_problems import LossGradients

__all__ = ["measure_gradients"]

FEW_AXES = 2
"""Axes of inputs whose rows and tokens, or batch and rows, are joined."""


def measure_gradients(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    batches: tuple[Sequence[Batch], Any],
    loss: Loss | None,
    device: torch.device,
) -> LossGradients:
    """Run the calibration data through the dense model, forward and backward, and collect gradients.

    Args:
        model: The model.
        groups: The groups of units.
        batches: The calibration data, as calls of the model, and as it was given.
        loss: Computes the loss from the outputs and the batch; ``None``: see `compute_loss`.
        device: The device of the model.

    Raises:
        CalibrationError: A loss does not depend on what the layers read.
    """
    meter = _Meter(groups)
    calls, originals = batches
    with _frozen_parameters(model), torch.enable_grad(), meter.record():
        for batch in calls:
            meter.start_batch(batch)
            outputs = batch.run(model, device)
            with allow_interrupts():
                value = compute_loss(loss, outputs, batch, move_to(originals[batch.number], device))
                _check_loss(value, batch)
                value.backward()
            meter.end_batch()
    return meter.read()


def _check_loss(value: torch.Tensor, batch: Batch) -> None:
    if not value.requires_grad:
        raise CalibrationError(
            f"calibration batch {batch.number}: the loss must depend on the layers that read units, and it does not."
        )


@contextmanager
def _frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Compute no gradients of parameters, which would need memory and time."""
    with ExitStack() as cleanup:
        for parameter in model.parameters():
            cleanup.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        yield


class _Meter:
    """Collects the gradients of units and outputs.

    Args:
        groups: The groups of units.
    """

    def __init__(self, groups: Sequence[UnitGroup]) -> None:
        self._units = {group.name: group.rule.units for group in groups}
        self._readers: dict[str, list[tuple[str, Reader]]] = {}
        for group in groups:
            for reader in group.readers:
                if isinstance(reader.module, nn.Module):
                    self._readers.setdefault(reader.name, []).append((group.name, reader))
        self._found: dict[str, list[torch.Tensor]] = {name: [] for name in self._units}
        self._batch_sums: dict[str, torch.Tensor] = {}
        self._squares: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._batches = 0
        self._batch = Batch(number=0)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Watch the inputs and outputs of the layers in this context."""
        projections: dict[int, Callable[..., torch.Tensor]] = {}
        with ExitStack() as hooks:
            for name, readers in self._readers.items():
                module = readers[0][1].module
                if isinstance(module, NonDynamicallyQuantizableLinear):
                    projections[id(module.weight)] = partial(self._project, name)
                    continue
                before = module.register_forward_pre_hook(partial(self._watch_inputs, name), with_kwargs=True)
                after = module.register_forward_hook(partial(self._watch_outputs, name))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            hooks.enter_context(AttentionCalls(projections))
            yield

    def start_batch(self, batch: Batch) -> None:
        """Start a batch."""
        self._batch = batch
        self._batch_sums = {}

    def end_batch(self) -> None:
        """Add the gradients of the batch that ends."""
        self._batches += 1
        for name, sums_BU in self._batch_sums.items():
            self._found[name].append(sums_BU.cpu())

    def read(self) -> LossGradients:
        """Return the gradients of all batches; they are zero where the loss does not depend on what was watched."""
        groups = {group for readers in self._readers.values() for group, _ in readers}
        importance = {name: torch.zeros(size) for name, size in self._outputs.items()}
        for name, squares in self._squares.items():
            importance[name] = squares / max(self._counts[name], 1)
        return LossGradients(
            units={
                name: torch.cat(parts) if parts else torch.zeros(self._batches, self._units[name])
                for name, parts in self._found.items()
                if name in groups
            },
            importance=importance,
        )

    def _project(self, name: str, heads: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        outputs = functional.linear(self._watch(name, heads), weight, bias)
        self._watch_outputs(name, None, (), outputs)
        return outputs

    def _watch_inputs(
        self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replace the input of a layer with one whose gradient is that of this layer only."""
        first = args[0] if args else next(iter(kwargs.values()))
        if not isinstance(first, torch.Tensor):
            return args, kwargs
        watched = self._watch(name, first)
        # Self-attention reads its input three times.
        return (
            tuple(watched if item is first else item for item in args),
            {key: watched if item is first else item for key, item in kwargs.items()},
        )

    def _watch(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        if not inputs.requires_grad:
            inputs = inputs.detach().requires_grad_()
        watched = inputs.view_as(inputs)
        values = watched.detach()  # with the same version; a hook that refers to its own tensor keeps the graph alive
        version = get_version(values)

        def add(gradient: torch.Tensor) -> None:
            if get_version(values) != version:
                raise CalibrationError(
                    f"layer {name!r}: its inputs must stay as they are until gradients are computed, and the model "
                    f"changes them in place. Set inplace=False in the modules that follow it."
                )
            self._add_units(name, values.float() * gradient.float())

        watched.register_hook(add)
        return watched

    def _watch_outputs(self, name: str, _: Any, __: Any, outputs: Any) -> None:
        if isinstance(outputs, torch.Tensor) and outputs.requires_grad:
            self._outputs[name] = _arrange(self._readers[name][0][1].module, outputs).shape[-1]
            outputs.register_hook(partial(self._add_outputs, name))

    def _add_outputs(self, name: str, gradient: torch.Tensor) -> None:
        module = self._readers[name][0][1].module
        squares_NR = self._select_tokens(module, gradient.detach().float().square())
        total_R = squares_NR.sum(dim=0)
        self._squares[name] = self._squares[name] + total_R if name in self._squares else total_R
        self._counts[name] = self._counts.get(name, 0) + len(squares_NR)

    def _add_units(self, name: str, products: torch.Tensor) -> None:
        for group, reader in self._readers[name]:
            products_BF = self._sum_tokens(reader.module, products.detach())
            channels_F = _list_units(reader).to(products_BF.device)
            units = self._units[group]
            # Channels without a unit are collected in an extra unit, which is dropped.
            places_F = torch.where(channels_F < 0, units, channels_F)
            sums_BU = products_BF.new_zeros(len(products_BF), units + 1).index_add_(1, places_F, products_BF)[:, :units]
            known = self._batch_sums.get(group)
            if known is not None and len(known) != len(sums_BU):  # only the sum over the batch is known
                known, sums_BU = known.sum(dim=0, keepdim=True), sums_BU.sum(dim=0, keepdim=True)
            self._batch_sums[group] = sums_BU if known is None else known + sums_BU.to(known.device)

    def _sum_tokens(self, module: nn.Module, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the tokens of each row of the batch, of shape (B, F), or over all of them (1, F)."""
        values = _arrange(module, values)
        rows = self._batch.count_rows() or 1
        if len(values) == rows or (values.ndim > FEW_AXES and len(values) % rows == 0):
            return values.reshape(rows, -1, values.shape[-1]).sum(dim=1)
        if values.ndim == FEW_AXES and len(values) == rows * self._count_tokens():
            return values.reshape(rows, -1, values.shape[-1]).sum(dim=1)
        return values.reshape(1, -1, values.shape[-1]).sum(dim=1)

    def _count_tokens(self) -> int:
        if self._batch.keep is not None:
            return self._batch.keep.shape[1]
        first = next(iter(self._batch.tensors), None)
        return first.shape[1] if first is not None and first.ndim > 1 else 1

    def _select_tokens(self, module: nn.Module, values: torch.Tensor) -> torch.Tensor:
        """Return the rows of the tokens that count."""
        values, keep = _arrange(module, values), self._batch.keep
        if keep is not None and keep.shape == values.shape[:-1]:
            values = values[keep.to(values.device)]
        elif keep is not None and values.ndim == FEW_AXES and keep.numel() == len(values):
            values = values[keep.reshape(-1).to(values.device)]
        return values.reshape(-1, values.shape[-1])


def _arrange(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Return values with the rows of the batch first and the channels last."""
    if isinstance(module, Convolution | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        batched = values if values.ndim == len(module.kernel_size) + FEW_AXES else values[None]
        return batched.movedim(1, -1)
    if values.ndim == 1:
        return values[None]
    has_tokens_first = isinstance(module, NonDynamicallyQuantizableLinear) or (
        isinstance(module, nn.MultiheadAttention) and not module.batch_first
    )
    return values.transpose(0, 1) if has_tokens_first and values.ndim > FEW_AXES else values


def _list_units(reader: Reader) -> torch.Tensor:
    """Return the unit of each input channel of a layer; -1: none."""
    view = reader.pattern.views[reader.name]
    return reader.unit_of[: view.canonical_shape[2]].repeat(view.groups)
